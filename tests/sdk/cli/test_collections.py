"""Collections and their rules."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.sdk.cli.conftest import CommandLine


def serve(version: int, **more: Any) -> dict[str, Any]:
    return {"model": "adder", "version": version, **more}


RULES = {
    "rules": [{"id": "new-phones", "when": {"attr": "os.api_level", "op": "gte", "value": 33}, "serve": serve(2)}],
    "default": serve(1),
}


@pytest.fixture
def ready(cli: CommandLine) -> CommandLine:
    """An account with two versions."""
    for constant in (1.0, 2.0):
        cli.run("push", str(cli.model(constant=constant)), "--model", "adder")
    return cli


def test_from_draft_to_revert(ready: CommandLine) -> None:
    cli = ready
    made = cli.json("collection", "create", "cameras", "--description", "all of them")
    collection = made["id"]
    assert cli.run("collection", "create", "again").out.startswith("c_")
    answer = cli.json("collection", "edit", collection, "--rules", cli.rules(RULES))
    assert answer["changed"]
    assert not cli.json("collection", "edit", collection, "--rules", cli.rules(RULES))["changed"]
    assert cli.json("collection", "publish", collection, "--check")["revision"] is None
    assert cli.json("collection", "publish", collection, "--note", "first")["revision"]["revision"] == 1
    other = {**RULES, "default": serve(2)}
    assert cli.json("collection", "publish", collection, "--rules", "-", stdin=json.dumps(other))["revision"]["revision"] == 2
    assert cli.json("collection", "revert", collection)["revision"]["reverted_to"] == 1
    assert [one["revision"] for one in cli.json("collection", "revisions", collection)] == [3, 2, 1]
    assert cli.json("collection", "show", collection, "--revision", "3")["rules"] == RULES
    assert cli.json("collection", "show", collection)["rules"] == other
    assert "new-phones" in cli.run("collection", "show", collection).out
    assert "cameras" in cli.run("collection", "list").out
    assert "revision 4" in cli.run("collection", "revert", collection, "2").err


def test_an_editor_changes_the_draft(ready: CommandLine, tmp_path: Path) -> None:
    cli = ready
    collection = cli.collection(RULES)
    editor = tmp_path / "editor.py"
    editor.write_text("import pathlib, sys\npath = pathlib.Path(sys.argv[1])\npath.write_text(path.read_text().replace('33', '34'))\n")
    cli.patch.setenv("EDITOR", f"{sys.executable} {editor}")
    cli.patch.delenv("VISUAL", raising=False)
    answer = cli.json("collection", "edit", collection)
    assert answer["rules"]["rules"][0]["when"]["value"] == 34
    editor.write_text("import sys\nsys.exit(1)\n")
    cli.run("collection", "edit", collection, expect=2)
    cli.patch.delenv("EDITOR")
    assert "--rules" in cli.run("collection", "edit", collection, expect=2).err


def test_wrong_rules_are_listed(ready: CommandLine) -> None:
    cli = ready
    collection = cli.collection(RULES)
    wrong = {"rules": [{"id": "a", "when": {"attr": "device.soc", "op": "like", "value": 1}, "serve": serve(1)}], "default": serve(9)}
    ran = cli.run("collection", "publish", collection, "--rules", cli.rules(wrong), expect=5)
    assert "rules[0].when.op" in ran.err
    assert cli.json("collection", "publish", collection, "--rules", cli.rules(wrong), expect=5)["error"]["errors"]
    for text in ("[1]", "{", ""):
        assert "docs/rules.md" in cli.run("collection", "publish", collection, "--rules", "-", stdin=text, expect=2).err
    cli.run("collection", "publish", collection, "--rules", "nope.json", expect=2)
    cli.run("collection", "create", "x", "--publish", expect=2)
    cli.run("collection", "show", "c_nope", expect=4)


def test_lint_can_be_strict(ready: CommandLine) -> None:
    cli = ready
    hidden = {"rules": [{"id": "all", "serve": serve(1)}, *RULES["rules"]], "default": serve(1)}
    collection = cli.collection(hidden)
    findings = cli.json("collection", "lint", collection)["findings"]
    assert ("SHADOWED", "new-phones") in {(one["code"], one["rule_id"]) for one in findings}
    assert "shadowed" in cli.run("collection", "lint", collection, "--strict", expect=10).err
    cli.run("collection", "lint", collection, "--strict", "--rules", cli.rules(RULES))


def test_explain_and_resolve_agree_about_kinds_and_contexts(ready: CommandLine) -> None:
    cli = ready
    collection = cli.collection(RULES)
    for kind, version in (("pixel-9", 2), ("raspberry-pi-5", 1)):
        explained = cli.json("collection", "explain", collection, "--kind", kind)
        resolved = cli.json("resolve", collection, "--kind", kind)
        assert explained["answer"]["package"] == resolved["package"]
        assert resolved["package"]["version"] == version
    tree = cli.run("collection", "explain", collection, "--kind", "raspberry-pi-5").out
    assert "stopped by when" in tree
    assert "the device says nothing" in tree
    refused = cli.json("resolve", collection, "--kind", "mate-20", expect=8)
    assert (refused["reason"], refused["packages"][0]["condition"]) == ("NO_COMPATIBLE_PACKAGE", "engine")
    assert "litert" in cli.run("resolve", collection, "--kind", "mate-20", expect=8).out
    context = cli.folder / "context.json"
    context.write_text(json.dumps({"os": {"api_level": 35}, "runtimes": [{"engine": "onnxruntime", "version": "1.20.1"}]}))
    assert cli.json("resolve", collection, "--context", str(context))["rule_id"] == "new-phones"
    assert cli.json("resolve", collection)["package"]["version"] == 1
    cli.run("resolve", collection, "--kind", "toaster", expect=2)
    cli.run("resolve", collection, "--kind", "pixel-9", "--context", str(context), expect=2)
    cli.run("collection", "explain", collection, "--install", "nobody", expect=4)
