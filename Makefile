# Latebind. `make` lists the targets.
SHELL := /bin/bash
.DEFAULT_GOAL := help

TOOLS := build/tools
UV := $(shell command -v uv 2>/dev/null || echo $(TOOLS)/bin/uv)
RUN := $(UV) run --frozen --no-sync

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(TOOLS)/bin/uv:
	@echo "uv is missing: installing it into $(TOOLS)"
	@python3 -m venv $(TOOLS) && $(TOOLS)/bin/pip install --quiet --disable-pip-version-check 'uv>=0.8'

.PHONY: setup
setup: $(if $(findstring $(TOOLS),$(UV)),$(TOOLS)/bin/uv) ## Make .venv from uv.lock (gets uv when it is missing)
	@$(UV) sync --frozen --quiet

.PHONY: proto
proto: $(if $(findstring $(TOOLS),$(UV)),$(TOOLS)/bin/uv) ## Generate proto/src/latebind_proto from proto/latebind
	@$(UV) run --isolated --no-project --with 'grpcio-tools==1.72.2' --with 'mypy-protobuf==3.6.0' --with 'setuptools<80' bash proto/generate.sh
