"""A catalogue from export to take."""

from __future__ import annotations

import json

from tests.sdk.cli.conftest import CommandLine


def test_export_offer_take(cli: CommandLine) -> None:
    (cli.folder / "labels.txt").write_text("a\n")
    cli.run("push", str(cli.model()), "--model", "adder", "--param", f"labels:file={cli.folder / 'labels.txt'}")
    catalogue = cli.folder / "catalogue"
    answer = cli.json(
        "catalogue", "export", "adder", "1", str(catalogue), "--name", "adder-cli", "--license", "Apache-2.0", "--title", "Adder"
    )
    digest = answer["entry"]["packages"][0]["digest"]
    assert (catalogue / "packages" / digest / "labels.txt").read_text() == "a\n"
    assert json.loads((catalogue / "catalogue.json").read_text())["catalogue_version"] == 1
    cli.run("catalogue", "export", "adder", "1", str(catalogue), "--name", "adder-cli")
    assert len(json.loads((catalogue / "catalogue.json").read_text())["entries"]) == 1
    cli.run("catalogue", "export", "adder", "9", str(catalogue), expect=4)

    operator = ("--api-key", cli.server.operator_key)
    source = cli.json(*operator, "catalogue", "add-source", f"file:{catalogue}", "--keys", str(catalogue / "keys.json"))
    assert source["problem"] is None
    assert source["id"] in cli.run(*operator, "catalogue", "sources").out
    cli.run(*operator, "catalogue", "add-source", "file:/x", "--keys", "nope.json", expect=2)
    cli.run("catalogue", "add-source", f"file:{catalogue}", "--keys", str(catalogue / "keys.json"), expect=3)

    cli.log_in()
    (entry,) = cli.json("catalogue", "list", "adder-cli")
    taken = cli.json("catalogue", "take", entry["id"], "--model", "mine")
    assert (taken["model_id"], taken["state"]) == ("mine", "ready")
    assert taken["packages"][0]["digest"] != digest
    assert cli.json("model", "show", "mine")["contract"] == {"labels": "file"}
    assert "jobs watch" in cli.run("catalogue", "take", entry["id"], "--no-watch").err
    cli.run("catalogue", "take", "nope", expect=4)
    cli.run(*operator, "catalogue", "remove-source", source["id"])
    assert cli.json("catalogue", "list", "adder-cli") == []
