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


def test_the_contract_level_is_chosen_shown_and_held(cli: CommandLine) -> None:
    cli.run("model", "create", "loose", "--contract", "additive")
    cli.run("model", "create", "other", "--contract", "free", expect=2)
    model = str(cli.model())
    cli.run("push", model, "--model", "loose", "--param", "S:int=1", "--alias", "stable")
    collection = cli.collection({"rules": [], "default": {"model": "loose", "alias": "stable"}})
    refused = cli.run("push", model, "--model", "loose", "--param", "S:int=1", "--param", "T:float=0.4", "--input", "x:int8[1]", expect=5)
    assert "T: absent → float (a new parameter needs a default)" in refused.err
    assert "input x: float32 → int8" in refused.err
    assert f"served by collection {collection} test" in refused.err
    cli.run("push", model, "--model", "loose", "--param", "S:int=1", "--param", "T:float=0.4", "--default", "T=0.5")
    cli.run("push", model, "--model", "loose", "--param", "S:int=1", "--default", "T=0.5", expect=2)
    shown = cli.run("model", "show", "loose").out
    assert "S: int, T: float (where it lacks: 0.5)" in shown
    assert "additive, set " in shown
    assert "x float32 [·" in shown
    assert cli.json("model", "show", "loose", "3")["packages"][0]["manifest"]["params"]["T"] == {
        "type": "float",
        "value": 0.4,
        "default": 0.5,
    }
    assert "breaks the contract (additive): T: float → absent" in cli.run("model", "compare", "loose", "3", "1").err
    assert cli.json("model", "set", "loose", "--contract", "frozen", "--description", "adds")["contract_level"] == "frozen"
    cli.run("model", "set", "loose", expect=2)


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
