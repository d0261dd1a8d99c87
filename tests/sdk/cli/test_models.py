"""Models, versions, aliases."""

from __future__ import annotations

from tests.sdk.cli.conftest import CommandLine


def test_versions_compare_archive(cli: CommandLine) -> None:
    cli.json("model", "create", "adder", "--description", "adds one", "--label", "team=vision")
    cli.run("model", "create", "adder", expect=5)
    cli.run("model", "create", "other", "--label", "nonsense", expect=2)
    for number, constant in ((1, 1.0), (2, 2.0)):
        cli.run("push", str(cli.model(constant=constant)), "--model", "adder", "--param", f"N:int={number}")
    found = cli.json("model", "compare", "adder", "1", "2")
    assert {(one["area"], one["name"]) for one in found["differences"]} >= {("parameters", "N")}
    assert "N" in cli.run("model", "compare", "adder", "1", "2").out
    assert "do not differ" in cli.run("model", "compare", "adder", "1", "1").out
    assert [one["version"] for one in cli.json("model", "versions", "adder")] == [2, 1]
    assert [one["model_id"] for one in cli.json("model", "list", "vision")] == ["adder"]
    assert "N: int" in cli.run("model", "show", "adder").out
    cli.run("alias", "set", "adder", "stable", "1")
    assert "VERSION_IN_USE" in cli.run("model", "archive", "adder", "1", expect=5).err
    assert cli.json("model", "archive", "adder", "1", "--force")["state"] == "archived"
    assert "MODEL_NOT_FOUND" in cli.run("model", "show", "nope", expect=4).err
    assert "VERSION_NOT_FOUND" in cli.run("model", "show", "adder", "9", expect=4).err


def test_an_alias_keeps_its_history(cli: CommandLine) -> None:
    for constant in (1.0, 2.0):
        cli.run("push", str(cli.model(constant=constant)), "--model", "adder", "--alias", "stable")
    cli.run("alias", "set", "adder", "stable", "1", "--why", "slower than it looked")
    moves = cli.json("alias", "history", "adder", "stable")
    assert [(move["from_version"], move["to_version"]) for move in moves] == [(2, 1), (1, 2), (None, 1)]
    assert "slower than it looked" in cli.run("alias", "history", "adder", "stable").out
    assert [one["name"] for one in cli.json("alias", "list", "adder")] == ["stable"]
    cli.run("alias", "remove", "adder", "stable")
    assert cli.json("alias", "list", "adder") == []
    cli.run("alias", "set", "adder", "stable", "7", expect=4)
