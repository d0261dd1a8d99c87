"""What the tree promises: who imports whom, where drivers appear, how long files are, what the documents list."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SERVICES = ("registry", "packager", "deployer", "telemetry")
#: Pure files import the standard library, each other and errors. mmh3 is a leaf: one hash function in C (docs/adr).
DRIVERS = {
    "sqlalchemy": ("kit/db/", "/store.py", "/store_", "/tables.py", "/migrations/"),
    "aiosqlite": ("kit/db/",),
    "alembic": ("kit/db/", "/migrations/"),
    "aiokafka": ("kit/eventlog/kafka",),
    "minio": ("kit/blobs/minio.py",),
    "chdb": ("kit/olap/chdb.py",),
    "pyarrow": ("kit/olap/chdb.py",),
    "clickhouse_driver": ("kit/olap/clickhouse.py",),
    "onnxruntime": ("services/packager/formats/", "services/packager/converters/", "latebind/device/engines/"),
    "ai_edge_litert": ("services/packager/formats/", "latebind/device/engines/"),
    **dict.fromkeys(
        ("tensorflow", "keras", "tf2onnx", "onnx", "onnxslim", "skl2onnx", "sklearn", "skops", "onnxmltools", "xgboost", "lightgbm"),
        ("services/packager/converters/",),
    ),
    "fastapi": ("/app.py", "/routes.py", "kit/web.py", "gateway/"),
    "starlette": ("kit/web.py",),
    "uvicorn": ("services/serving.py",),
}
MAX_LINES = 400


def sources(*folders: str) -> Iterator[Path]:
    for folder in folders:
        yield from sorted((ROOT / folder).rglob("*.py"))


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def shown(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_drivers_appear_in_one_place() -> None:
    wrong = []
    for path in sources("kit", "services", "gateway", "sdk/python/src"):
        for module in imports(path):
            allowed = DRIVERS.get(module.split(".")[0])
            if allowed is not None and not any(place in f"/{shown(path)}" for place in allowed):
                wrong.append(f"{shown(path)} imports {module}")
    assert wrong == []


def test_converters_know_nothing_of_ours() -> None:
    """They run in environments of their own: the standard library, the environment's packages, and each other."""
    wrong = []
    for folder, ours in (("converters", ("services.packager.converters",)), ("isolation", ("services.packager.isolation",))):
        inside = [path for path in sources(f"services/packager/{folder}") if path.name not in {"process.py", "cage.py", "levels.py"}]
        for path in inside:
            wrong += [
                f"{shown(path)} imports {module}"
                for module in imports(path)
                if module.split(".")[0] in {"kit", "services", "gateway", "latebind", "latebind_proto"} and not module.startswith(ours)
            ]
    assert wrong == []


def test_the_servers_environment_holds_no_converter() -> None:
    assert {"tensorflow", "onnx", "keras", "sklearn", "xgboost"} & packages_distributions().keys() == set()


def test_files_stay_readable() -> None:
    long = [
        f"{shown(path)}: {lines}"
        for path in sources("kit", "services", "gateway", "sdk/python/src/latebind", "bench", "examples")
        if (lines := len(path.read_text().splitlines())) > MAX_LINES
    ]
    assert long == []


def test_nothing_else_provides_our_names() -> None:
    """`kit`, `services` and `gateway` are generic names: in the server's environment they must be ours alone."""
    providers = packages_distributions()
    for name in ("kit", "services", "gateway"):
        assert set(providers.get(name, ["latebind-server"])) <= {"latebind-server"}
    assert set(providers.get("latebind", ["latebind"])) <= {"latebind"}


def test_import_rules_hold() -> None:
    done = subprocess.run([ROOT / ".venv/bin/lint-imports", "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("service", SERVICES)
def test_services_have_the_same_rooms(service: str) -> None:
    names = {path.name for path in (ROOT / "services" / service).iterdir()}
    assert {"__init__.py", "app.py", "settings.py", "store.py", "tables.py", "migrations", "errors.py"} <= names


def test_nothing_logs_to_stdout_or_carries_a_machine_path() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    machine = re.compile(r"(?<![\w./-])/(?:work|farm|root)/[\w.-]+")
    wrong = []
    for name in listed:
        path = ROOT / name
        if not name or name.endswith((".lock", ".png")) or not path.is_file():
            continue
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        if machine.search(text):
            wrong.append(name)
    assert wrong == []


def test_public_files_have_a_docstring_that_says_what_they_are_for() -> None:
    bare = [
        shown(path)
        for path in sources("kit", "services", "gateway", "sdk/python/src/latebind")
        if "migrations" not in path.parts and not ast.get_docstring(ast.parse(path.read_text()))
    ]
    assert bare == []


#: Who stands above whom inside a service (STYLE section 3, rule 5): a file imports files of its own or a higher number.
LAYERS = {
    "app": 0,
    "routes": 1, "device": 1, "workers": 1, "writer": 1, "bootstrap": 1,
    "schemas": 2,
    "service": 3,
    "store": 5, "events": 5, "queries": 5, "signing": 5,
    "tables": 6,
    "domain": 8, "errors": 9,
}  # fmt: skip


def layer(module: str) -> int | None:
    """The layer of a module by the file names that all services share; None for a service's own files in the middle."""
    return LAYERS.get(module.rsplit(".", 1)[-1].partition("_")[0])


def test_services_import_downwards() -> None:
    wrong = []
    for service in SERVICES:
        for path in sources(f"services/{service}"):
            own = layer(path.stem)
            if own is None or "migrations" in path.parts:
                continue
            for module in imports(path):
                if module.startswith(f"services.{service}.") and (ROOT / f"{module.replace('.', '/')}.py").exists():
                    other = layer(module)
                    if other is not None and other < own:
                        wrong.append(f"{shown(path)} imports {module}")
    assert wrong == []


def test_only_app_reads_settings() -> None:
    wrong = [
        shown(path)
        for service in SERVICES
        for path in sources(f"services/{service}")
        if path.name != "app.py" and any(module.endswith(".settings") for module in imports(path) if module.startswith("services."))
    ]
    assert wrong == []


def test_messages_are_read_and_written_at_the_edges_only() -> None:
    allowed = {"events.py", "decode.py", "routes.py", "device.py", "packed.py", "json_batch.py"}
    wrong = [
        shown(path)
        for path in sources("services")
        if path.name not in allowed and any(m.startswith("latebind_proto") for m in imports(path))
    ]
    assert wrong == []


def test_pure_files_import_no_one_who_acts() -> None:
    """Decisions are values in, values out: no clock, no database, no network, no framework."""
    acting = {"asyncio", "sqlalchemy", "fastapi", "httpx2", "socket", "subprocess", "threading", "os", "time", "kit"}
    pure = {
        "domain.py",
        "binding.py",
        "manifest.py",
        "decode.py",
        "predicates.py",
        "compatibility.py",
        "bucketing.py",
        "explain.py",
        "lint.py",
        "index.py",
        "simulation.py",
    }
    wrong = []
    for path in sources("services"):
        if path.name in pure:
            found = {name for module in imports(path) if (name := module.split(".")[0]) in acting and not module.startswith("kit.errors")}
            if found:
                wrong.append(f"{shown(path)} imports {sorted(found)}")
    assert wrong == []
