# Latebind. `make` lists the targets.
SHELL := /bin/bash
.DEFAULT_GOAL := help

# uv from the PATH, or one of our own in build/tools when there is none.
TOOLS := build/tools
UV := $(or $(shell command -v uv 2>/dev/null),$(TOOLS)/bin/uv)
RUN := .venv/bin
export UV_PYTHON_PREFERENCE ?= only-system

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(TOOLS)/bin/uv:
	@echo "uv is not on the PATH: putting it into $(TOOLS)"
	@python3 -m venv $(TOOLS)
	@$(TOOLS)/bin/pip install --quiet --disable-pip-version-check 'uv>=0.9,<1'

.PHONY: setup
setup: $(filter $(TOOLS)/%,$(UV)) ## Make .venv from uv.lock; gets uv when it is missing
	@echo "installing what uv.lock names into .venv (the first time about 1.2 GB)"
	@$(UV) sync --frozen
	@$(RUN)/python -m deploy.sandbox

.PHONY: demo
demo: setup ## Package, bind, run, measure and re-bind real models on a simulated fleet; KEEP=1 leaves the server up
	@$(RUN)/python -m examples.demo $(if $(KEEP),--keep)

.PHONY: serve
serve: setup ## Start the whole server in one process, data in ./data
	@$(RUN)/latebindd

.PHONY: test
test: setup lint types ## Lint, check types, run every test
	@PATH="$(abspath $(dir $(UV))):$$PATH" $(RUN)/pytest $(PYTEST_ARGS)

.PHONY: servers
servers: setup ## Start real PostgreSQL, Kafka, S3 and ClickHouse below build/servers; SERVERS="kafka minio" picks some
	@$(RUN)/python -m deploy.servers up $(SERVERS)

.PHONY: servers-stop
servers-stop: ## Stop them; their data stays
	@$(RUN)/python -m deploy.servers stop $(SERVERS)

.PHONY: cluster
cluster: servers ## Start every part as processes of its own, two each, on the real servers; below build/cluster
	@$(RUN)/python -m deploy.cluster up

.PHONY: cluster-stop
cluster-stop: ## Stop them; data and servers stay
	@$(RUN)/python -m deploy.cluster stop

.PHONY: demo-cluster
demo-cluster: servers ## The demo on separate processes and the real servers, which are stopped afterwards; KEEP=1 leaves all up
	@$(RUN)/python -m examples.demo --cluster $(if $(KEEP),--keep); passed=$$?; $(if $(KEEP),,$(RUN)/python -m deploy.servers stop;) exit $$passed

.PHONY: test-cluster
test-cluster: servers ## Run the contract suites and the cluster tests on the real servers, then stop those
	@PATH="$(abspath $(dir $(UV))):$$PATH" $(RUN)/pytest -m 'cluster or contract' $(PYTEST_ARGS); passed=$$?; $(if $(KEEP),,$(RUN)/python -m deploy.servers stop;) exit $$passed

.PHONY: chaos
chaos: setup ## Kill everything while 2,000 devices send 2,000,000 samples, then count; about half an hour, history in build/chaos
	@$(RUN)/python -m deploy.chaos $(CHAOS_ARGS)

.PHONY: lint
lint: ## Check format and style
	@$(RUN)/ruff format --check --quiet . || (echo "not formatted: run make format"; exit 1)
	@$(RUN)/ruff check --quiet .

.PHONY: types
types: ## Check types
	@$(RUN)/mypy

.PHONY: format
format: ## Format and fix what can be fixed
	@$(RUN)/ruff format --quiet . && $(RUN)/ruff check --fix --quiet .

.PHONY: fuzz
fuzz: setup ## Send 10,000 malformed models through the packager's children; CASES=500 SEED=7 LEVEL=fallback picks
	@$(RUN)/python -m tests.packager.fuzz $(if $(CASES),--cases $(CASES)) $(if $(SEED),--seed $(SEED)) $(if $(LEVEL),--level $(LEVEL))

.PHONY: corpus
corpus: setup ## Package every valid model of the onnx package's test data, about half an hour; STRIDE=20 takes some
	@$(RUN)/python -m tests.packager.corpus $(if $(STRIDE),--stride $(STRIDE))

.PHONY: bench
bench: setup ## Measure against peers; GOALS="R1 S1" picks some
	@PATH="$(abspath $(dir $(UV))):$$PATH" $(RUN)/python -m bench $(GOALS)

# An old protoc on purpose: old runtimes can read what it generates.
PROTO_TOOLS := --with 'grpcio-tools==1.72.2' --with 'mypy-protobuf==3.6.0' --with 'setuptools<80'

.PHONY: proto
proto: setup ## Generate proto/src/latebind_proto from proto/latebind
	@$(UV) run --isolated --no-project $(PROTO_TOOLS) bash proto/generate.sh

.PHONY: converter-locks
converter-locks: setup ## Lock the converter environments again
	@cd services/packager/converters && for name in onnx tf sk; do \
		$(abspath $(UV)) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header -o $$name.lock $$name.in || exit 1; done

.PHONY: wheels
wheels: setup ## Build the wheels of server, SDK and protobuf messages into dist/
	@$(UV) build --all-packages --quiet --out-dir dist

.PHONY: clean
clean: ## Remove build results; keeps .venv and data
	@rm -rf build/demo build/demo-cluster build/bench dist .pytest_cache .mypy_cache .ruff_cache
