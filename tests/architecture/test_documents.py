"""Every setting, topic, error code and metric is explained in docs/."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
from pathlib import Path
from types import ModuleType

import pytest

import gateway
import kit
import services
from kit.errors import Problem
from kit.metrics import Metric
from kit.settings import Settings
from services.topics import TOPICS

ROOT = Path(__file__).parents[2]


def modules() -> list[ModuleType]:
    found = []
    for package in (kit, gateway, services):
        for info in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            # Converters run in environments of their own, with packages that the server must not have.
            if ".migrations" in info.name or info.name.endswith("__main__") or info.name.startswith("services.packager.converters."):
                continue
            found.append(importlib.import_module(info.name))
    return found


MODULES = modules()


def subclasses(base: type) -> set[type]:
    found = set(base.__subclasses__())
    return found.union(*(subclasses(one) for one in found)) if found else found


def headings(name: str) -> set[str]:
    text = (ROOT / "docs" / name).read_text()
    return set(re.findall(r"^#+ .*$|^\|.*\|$", text, re.MULTILINE))


def listed(name: str) -> set[str]:
    """Names in code style inside headings and table rows of a document."""
    return {word for line in headings(name) for word in re.findall(r"`([^`]+)`", line)}


@pytest.mark.parametrize("code", sorted({one.code for one in subclasses(Problem)} | {Problem.code}))
def test_every_error_code_is_explained(code: str) -> None:
    assert code in listed("errors.md")


def setting_names() -> list[str]:
    names = []
    for one in subclasses(Settings):
        prefix = str(one.model_config.get("env_prefix", ""))
        names += [f"{prefix}{field}".upper() for field in one.model_fields]
    return sorted(set(names))


@pytest.mark.parametrize("name", setting_names())
def test_every_setting_is_explained(name: str) -> None:
    assert name in listed("settings.md")


def topics_in_code() -> set[str]:
    """String constants that look like a topic, in the files that name topics."""
    found: set[str] = set()
    for path in (ROOT / "services").rglob("events.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and re.fullmatch(r"[a-z]+(-[a-z]+)*(\.[a-z-]+)+", node.value):
                found.add(node.value)
    return found


def test_every_topic_is_explained() -> None:
    used = topics_in_code()
    assert used
    assert used <= listed("topics.md")


def test_every_topic_is_made_by_the_migration() -> None:
    assert set(TOPICS) == topics_in_code()


def test_every_metric_is_explained() -> None:
    declared = {value.name for module in MODULES for value in vars(module).values() if isinstance(value, Metric)}
    for module in MODULES:
        for value in vars(module).values():
            if isinstance(value, tuple):
                declared |= {one.name for one in value if isinstance(one, Metric)}
    assert declared
    assert declared <= listed("metrics.md")
    mentioned = set(re.findall(r"\blatebind_[a-z_]+", (ROOT / "docs/metrics.md").read_text()))
    assert {name.removesuffix("_bucket") for name in mentioned} <= declared
