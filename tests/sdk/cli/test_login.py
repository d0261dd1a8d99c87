"""Which server, as whom."""

from __future__ import annotations

from tests.sdk.cli.conftest import CommandLine


def test_login_checks_the_key_and_stores_it_for_its_owner_only(nobody: CommandLine) -> None:
    key = nobody.server.new_account("login-1")
    ran = nobody.run("login", nobody.server.url + "/", "--api-key", key)
    assert "login-1" in ran.err
    assert nobody.config.stat().st_mode & 0o777 == 0o600
    who = nobody.json("whoami")
    assert (who["server"], who["account"], who["kind"], who["scopes"]) == (
        nobody.server.url,
        "login-1",
        "user",
        ["admin", "publish", "read"],
    )


def test_the_key_can_come_from_stdin(nobody: CommandLine) -> None:
    key = nobody.server.new_account("login-2")
    answer = nobody.json("login", nobody.server.url, stdin=key + "\n")
    assert answer["account"] == "login-2"
    assert key not in nobody.run("whoami").out
    assert nobody.run("login", nobody.server.url, stdin="", expect=2).err.count("next") == 1


def test_a_wrong_key_is_not_stored(nobody: CommandLine) -> None:
    ran = nobody.run("login", nobody.server.url, "--api-key", "lbk_wrong", expect=3)
    assert "UNAUTHENTICATED" in ran.err
    assert not nobody.config.exists()


def test_arguments_win_over_the_environment_and_that_over_the_file(nobody: CommandLine) -> None:
    file_key, environment_key, typed_key = (nobody.server.new_account(f"login-{source}") for source in ("file", "env", "typed"))
    nobody.run("login", nobody.server.url, "--api-key", file_key)
    assert nobody.json("whoami")["account"] == "login-file"
    nobody.patch.setenv("LATEBIND_API_KEY", environment_key)
    assert nobody.json("whoami")["account"] == "login-env"
    assert nobody.json("--api-key", typed_key, "whoami")["account"] == "login-typed"


def test_a_stored_key_never_goes_to_another_server(cli: CommandLine) -> None:
    ran = cli.run("--server", "http://127.0.0.1:9", "model", "list", expect=3)
    assert "NOT_LOGGED_IN" in ran.err


def test_profiles(nobody: CommandLine) -> None:
    for account in ("login-a", "login-b"):
        nobody.run("login", nobody.server.url, "--api-key", nobody.server.new_account(account), "--profile", account)
    assert nobody.json("whoami")["account"] == "login-b"
    assert nobody.json("--profile", "login-a", "whoami")["account"] == "login-a"
    assert "login-a, login-b" in nobody.run("--profile", "nope", "whoami", expect=2).err
    nobody.run("logout")
    assert nobody.json("whoami")["account"] == "login-a"
    nobody.run("logout")
    nobody.run("logout", expect=2)
    assert "latebind login" in nobody.run("whoami", expect=3).err


def test_a_broken_file_says_what_to_do(nobody: CommandLine) -> None:
    nobody.config.write_text("current = [")
    assert "CONFIG_UNUSABLE" in nobody.run("whoami", expect=2).err


def test_a_server_that_is_not_there(nobody: CommandLine) -> None:
    error = nobody.json("--server", "http://127.0.0.1:9", "--api-key", "lbk_x", "model", "list", expect=6)["error"]
    assert error["code"] == "SERVER_UNREACHABLE"
    assert "livez" in error["next"]


def test_the_operator_has_no_account(nobody: CommandLine) -> None:
    nobody.run("login", nobody.server.url, "--api-key", nobody.server.operator_key)
    who = nobody.json("whoami")
    assert (who["kind"], who["account"]) == ("operator", None)
