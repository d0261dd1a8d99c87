"""Accounts and keys."""

from __future__ import annotations

from tests.sdk.cli.conftest import CommandLine


def test_the_operator_makes_accounts(nobody: CommandLine) -> None:
    operator = ("--server", nobody.server.url, "--api-key", nobody.server.operator_key)
    made = nobody.json(*operator, "account", "create", "accounts-1", "--title", "One")
    assert made["api_key"]["scopes"] == ["admin"]
    assert "accounts-1" in [one["account"] for one in nobody.json(*operator, "account", "list")]
    assert "ACCOUNT_EXISTS" in nobody.run(*operator, "account", "create", "accounts-1", expect=5).err
    shown = nobody.run(*operator, "account", "create", "accounts-2")
    assert shown.out.startswith("lbk_")
    assert "shown this once" in shown.err


def test_an_admin_makes_no_accounts(cli: CommandLine) -> None:
    assert "FORBIDDEN" in cli.run("account", "create", "mine", expect=3).err


def test_api_keys_have_scopes_and_can_be_revoked(cli: CommandLine) -> None:
    made = cli.json("api-key", "create", "--scope", "read", "--name", "ci", "--expires-in", "90d")
    reader = ("--api-key", made["key"])
    assert cli.json(*reader, "model", "list") == []
    ran = cli.run(*reader, "model", "create", "digits", expect=3)
    assert "publish" in ran.err
    assert {one["name"] for one in cli.json("api-key", "list")} == {"first admin key", "ci"}
    assert cli.json("api-key", "revoke", made["id"])["revoked_at"]
    assert "ci" in cli.run("api-key", "list").out
    cli.run("api-key", "revoke", "nope", expect=4)


def test_enrolment_keys(cli: CommandLine) -> None:
    made = cli.json("enrolment-key", "create", "--quota", "3", "--expires-in", "1h")
    assert made["key"].startswith("lbe_")
    (listed,) = cli.json("enrolment-key", "list")
    assert (listed["quota"], listed["used"]) == (3, 0)
    cli.run("enrolment-key", "revoke", made["id"])
    assert cli.run("enrolment-key", "create").out.startswith("lbe_")
    assert "duration" in cli.run("enrolment-key", "create", "--expires-in", "soon", expect=2).err
