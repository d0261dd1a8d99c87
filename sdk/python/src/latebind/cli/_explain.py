"""An explanation as a tree, and the device contexts that people ask about without having the device."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

from rich.text import Text
from rich.tree import Tree

from latebind import __version__
from latebind.cli._errors import CommandError
from latebind.cli._kinds import read_kinds
from latebind.cli._output import Output, size_text

# Percentages and splits depend on the install id: a context without one gets this, so that the same question has the same answer.
_SOMEBODY = str(uuid.UUID(int=0))


def context_of(kind: str | None, path: Path | None) -> dict[str, Any]:
    """The device context to ask about: of a built-in kind, from a file, or of this machine."""
    if kind is not None and path is not None:
        raise CommandError("--kind and --context name two devices", hint="pass one of them")
    if path is not None:
        try:
            context = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise CommandError(f"{path} holds no device context: {error}", hint="docs/rules.md shows one") from error
        if not isinstance(context, dict):
            raise CommandError(f"{path} holds no device context", hint="docs/rules.md shows one")
        return {"install_id": _SOMEBODY, **context}
    if kind is not None:
        kinds = {one.name: one for one in read_kinds()}
        if kind not in kinds:
            raise CommandError(f"there is no kind {kind!r}", hint=f"one of {', '.join(kinds)}")
        found = kinds[kind]
        return {"install_id": _SOMEBODY, **found.context, "groups": list(found.groups), "runtimes": [dict(one) for one in found.runtimes]}
    return this_machine()


def this_machine() -> dict[str, Any]:
    """The context of this machine with the engines that are installed here."""
    from latebind.device.context import detect_context, full_context  # noqa: PLC0415 - numpy and the engines take half a second
    from latebind.device.engines import describe_engines, find_engines  # noqa: PLC0415

    runtimes = describe_engines(find_engines().values())
    return full_context(detect_context(), install_id=_SOMEBODY, sdk_version=__version__, runtimes=runtimes, installed=())


def answer_text(answer: dict[str, Any]) -> Text:
    """The answer in a line."""
    package = answer["package"]
    if package is None:
        return Text.assemble((answer["reason"], "bold red"), " – no package")
    rule = f"rule {answer['rule_id']}" if answer["rule_id"] else "default"
    name = f"{package['model_id']} v{package['version']} {package['variant']}"
    return Text.assemble((name, "bold green"), f"  {size_text(package['size'])}  ({answer['reason']}, {rule})")


def show_explanation(out: Output, found: dict[str, Any]) -> None:
    """Show what a device gets and why."""
    tree = Tree(answer_text(found["answer"]))
    for rule in found["rules"]:
        tree.add(_rule(rule))
    if found["default"] is not None:
        branch = tree.add(_head("default", served=found["default"]["served"], reached=found["default"]["reached"], why=None))
        _packages(branch, found["default"]["packages"])
    out.tree(tree)
    revision = "draft" if found["revision"] is None else f"revision {found['revision']}"
    out.note(f"{found['collection']}, {revision}, install {found['install_id']}, at {found['at']}")


def _head(name: str, *, served: bool, reached: bool, why: str | None) -> Text:
    if served:
        return Text.assemble(("● ", "green"), (name, "bold"), " serves")
    if not reached:
        return Text(f"○ {name}: not reached" + (f" (would stop at {why})" if why else ""), style="dim")
    return Text.assemble(("○ ", "yellow"), (name, "bold"), f": stopped by {why}" if why else ": serves nothing that can run")


def _rule(rule: dict[str, Any]) -> Tree:
    tree = Tree(_head(rule["id"], served=rule["served"], reached=rule["reached"], why=rule["stopped_by"]))
    _predicate(tree, rule["when"])
    if not rule["active"]["open"]:
        tree.add(_check(False, f"active from {rule['active']['from'] or 'ever'} until {rule['active']['until'] or 'ever'}"))
    if rule["rollout"] is not None:
        rollout = rule["rollout"]
        tree.add(_check(rollout["included"], f"rollout {rollout['percent']} %: this install is at {rollout['point']:.3f} %"))
    if rule["split"] is not None:
        split = rule["split"]
        tree.add(Text(f"split: option {split['picked'] + 1} (point {split['point']} of {split['total_weight']})"))
    if rule["stopped_by"] in {None, "compatibility"}:
        _packages(tree, rule["packages"])
    return tree


def _predicate(tree: Tree, node: dict[str, Any]) -> None:
    for word in ("all", "any", "not"):
        if word in node:
            parts = node[word] if isinstance(node[word], list) else [node[word]]
            branch = tree if word == "all" else tree.add(_check(node["result"], word))
            for part in parts:
                _predicate(branch, part)
            return
    wanted = json.dumps(node["value"], ensure_ascii=False)
    actual = "nothing" if node["actual"] is None else json.dumps(node["actual"], ensure_ascii=False)
    tree.add(_check(node["result"], f"{node['attr']} {node['op']} {wanted}: the device says {actual}"))


def _packages(tree: Tree, packages: list[dict[str, Any]]) -> None:
    for package in packages:
        name = f"{package['model_id']} v{package['version']} {package['variant'] or ''}".rstrip()
        branch = tree.add(_check(package["runnable"], f"{name}{' is served' if package['chosen'] else ''}"))
        for check in package["checks"]:
            if not check["result"]:
                branch.add(_check(False, f"{check['condition']}: needs {check['needed']}, the device reports {check['reported']}"))
        for check in package["not_checked"]:
            branch.add(Text(f"? {check['condition']}: needs {check['needed']}, the device does not say", style="dim"))


def _check(holds: bool, text: str) -> Text:
    return Text.assemble(("✓ ", "green") if holds else ("✗ ", "red"), text)
