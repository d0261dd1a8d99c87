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
    "aiokafka": ("kit/eventlog/kafka.py",),
    "minio": ("kit/blobs/minio.py",),
    "chdb": ("kit/olap/chdb.py",),
    "pyarrow": ("kit/olap/chdb.py",),
    "clickhouse_driver": ("kit/olap/clickhouse.py",),
    "onnxruntime": ("services/packager/formats/", "latebind/device/engines/"),
    "ai_edge_litert": ("services/packager/formats/", "latebind/device/engines/"),
    "fastapi": ("/app.py", "/routes.py", "kit/web.py", "gateway/"),
    "starlette": ("kit/web.py",),
    "uvicorn": ("services/launch.py",),
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
