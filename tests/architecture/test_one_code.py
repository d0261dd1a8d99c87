"""The same code runs embedded and on servers: which adapter is behind a port is asked where ports are opened, and nowhere else."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from kit.ports import PortSettings

ROOT = Path(__file__).parents[2]
PORTS = ("kit.db", "kit.blobs", "kit.eventlog", "kit.olap", "services.packager.signing")
SCHEMES = frozenset(scheme for port in PORTS for scheme in importlib.import_module(port).SCHEMES)
URLS = frozenset(name for name in (*PortSettings.model_fields, "signer_url") if name.endswith("_url"))
#: Words that only a question about the shape of the installation needs.
WORDS = ("embedded", "in_process", "one_process", "single_process", "is_cluster", "clustered")
#: Schemes that are ordinary words too: they count where a scheme or a URL is asked about.
ORDINARY = frozenset({"file", "local"})
#: Places that may ask, besides every function named `open_…`.
MAY_ASK = {
    "services/launch.py": "the composition root",
    "kit/ports.py PortSettings": "where an empty URL becomes the URL of the embedded default",
    "services/registry/catalogue/fetch.py": "a source of the catalogue is a web address or a folder; it is no port of ours",
}


def adapters() -> frozenset[str]:
    """Modules that the `open_…` functions of the ports load: an adapter knows what it is."""
    found = set()
    for port in PORTS:
        path = ROOT / port.replace(".", "/")
        for node in ast.walk(ast.parse((path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("open_"):
                found |= {f"{one.module.replace('.', '/')}.py" for one in ast.walk(node) if isinstance(one, ast.ImportFrom) and one.module}
    return frozenset(found)


ADAPTERS = adapters()
CLASSES = frozenset(
    node.name for name in ADAPTERS for node in ast.walk(ast.parse((ROOT / name).read_text())) if isinstance(node, ast.ClassDef)
)


def questions(node: ast.AST) -> list[ast.AST]:
    """What a node decides by: conditions, filters, defaults, the subject and the patterns of a match, types asked for, keys looked up."""
    match node:
        case ast.If() | ast.IfExp() | ast.While() | ast.Assert():
            return [node.test]
        case ast.comprehension():
            return list(node.ifs)
        case ast.BoolOp():
            return list(node.values[:-1])
        case ast.Match():
            return [node.subject, *node.cases]
        case ast.Call(func=ast.Name("isinstance" | "issubclass" | "type" | "hasattr" | "getattr")):
            return [node]
        case ast.Subscript(value=ast.Dict()):
            return [node.slice, *filter(None, node.value.keys)]
    return []


def reveals(question: ast.AST) -> Iterator[str]:
    """Whatever in a question asks which adapter, which scheme or which shape it is."""
    about_urls = any(word in ast.unparse(question) for word in ("scheme", "url"))
    for one in ast.walk(question):
        match one:
            case ast.Constant(value=str(text)) if text in WORDS or text.partition(":")[0] in SCHEMES:
                if text not in ORDINARY or about_urls:
                    yield repr(text)
            case ast.Name(id=name) | ast.Attribute(attr=name):
                if name in CLASSES or name in URLS or any(word in name for word in WORDS):
                    yield name
                if isinstance(one, ast.Attribute) and name == "name" and "dialect" in ast.unparse(one.value):
                    yield ast.unparse(one)


def branches(source: str, name: str = "") -> list[str]:
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("open_"):
            return
        if isinstance(node, ast.ClassDef) and f"{name} {node.name}" in MAY_ASK:
            return
        for question in questions(node):
            found.update(f"{name}:{getattr(question, 'lineno', 0)} {reason}" for reason in reveals(question))
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(source))
    return sorted(found)


def test_nothing_asks_whether_it_runs_embedded() -> None:
    wrong = []
    for folder in ("kit", "services", "gateway"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            name = path.relative_to(ROOT).as_posix()
            if name not in MAY_ASK and name not in ADAPTERS:
                wrong += branches(path.read_text(), name)
    assert wrong == []


def test_the_adapters_are_found() -> None:
    assert {"kit/db/sqlite.py", "kit/db/postgres.py", "kit/blobs/minio.py", "kit/eventlog/kafka.py", "kit/olap/chdb.py"} <= ADAPTERS
    assert {"PostgresDialect", "KafkaLog", "S3Blobs"} <= CLASSES
    assert {"database_url", "eventlog_url", "blobs_url", "olap_url", "signer_url"} <= URLS


@pytest.mark.parametrize(
    "seeded",
    [
        "if embedded: pass",
        "if settings.embedded: pass",
        "if not settings.database_url: pass",
        "if settings.olap_url == '': pass",
        "x = settings.eventlog_url or default",
        "x = 1 if urlsplit(url).scheme == 'sqlite' else 2",
        "if url.startswith('postgresql:'): pass",
        "while url.partition(':')[0] in {'kafka', 'pulsar'}: pass",
        "match urlsplit(url).scheme:\n    case 'chdb': pass",
        "match log:\n    case KafkaLog(): pass",
        "x = isinstance(blobs, S3Blobs)",
        "if type(database.dialect) is PostgresDialect: pass",
        "if connection.dialect.name != 'mysql': pass",
        "x = [one for one in stores if one.scheme != 's3']",
        "if urlsplit(url).scheme == 'file': pass",
        "x = {'local': 1, 'kafka': 2}[scheme]",
        "def f():\n    assert mode == 'embedded'",
        "def reopen():\n    if scheme == 'chdb': pass",
    ],
)
def test_it_bites(seeded: str) -> None:
    assert branches(seeded)


@pytest.mark.parametrize(
    "harmless",
    [
        "def open_log(url):\n    if urlsplit(url).scheme == 'kafka': pass",
        "x = f'clickhouse:{host}'",
        "if settings.traces_url: pass",
        "if scheme == b'bearer': pass",
        "log.info('embedded')",
        "if parameter.type == 'file': pass",
    ],
)
def test_it_lets_the_rest_alone(harmless: str) -> None:
    assert not branches(harmless)
