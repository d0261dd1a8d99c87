"""The command line in this process against the real server in its own."""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from latebind.cli.main import main
from tests.models import onnx_add
from tests.server import ServerProcess

_NUMBERS = itertools.count(1)


@dataclass(frozen=True)
class Ran:
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str


class CommandLine:
    """Runs commands as one user with a configuration file of its own."""

    def __init__(self, server: ServerProcess, folder: Path, capture: pytest.CaptureFixture[str], patch: pytest.MonkeyPatch) -> None:
        self.server = server
        self.folder = folder
        self.config = folder / "config.toml"
        self.patch = patch
        self._capture = capture
        patch.setenv("LATEBIND_CONFIG", str(self.config))

    def run(self, *arguments: str, stdin: str | None = None, expect: int = 0) -> Ran:
        """Run a command; fails when it ends with another code than expected."""
        if stdin is not None:
            self.patch.setattr("sys.stdin", io.StringIO(stdin))
        self._capture.readouterr()
        code = main(list(arguments))
        printed = self._capture.readouterr()
        assert code == expect, f"latebind {' '.join(arguments)}: {code}\n{printed.out}\n{printed.err}"
        return Ran(code, printed.out, printed.err)

    def json(self, *arguments: str, stdin: str | None = None, expect: int = 0) -> Any:
        """Run a command with --json; what it printed must be one JSON document."""
        return json.loads(self.run(*arguments, "--json", stdin=stdin, expect=expect).out)

    def log_in(self, account: str | None = None) -> str:
        """Make an account and log in with its admin key; the key."""
        account = account or f"cli-{next(_NUMBERS)}"
        key = self.server.new_account(account)
        self.run("login", self.server.url, "--api-key", key)
        return key

    def model(self, name: str = "model.onnx", **changes: Any) -> Path:
        """Write a small ONNX file."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(onnx_add(**changes))
        return path

    def rules(self, document: Any, name: str = "rules.json") -> str:
        """Write a rules document; its path."""
        path = self.folder / name
        path.write_text(json.dumps(document))
        return str(path)

    def collection(self, document: Any) -> str:
        """Make a collection with published rules; its id."""
        return str(self.json("collection", "create", "test", "--rules", self.rules(document), "--publish")["id"])


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    quick = {"LATEBIND_DEPLOYER_POLL_AFTER_S": "1", "LATEBIND_DEPLOYER_POLL_SPREAD_S": "0", "LATEBIND_TELEMETRY_LINGER_S": "0.1"}
    with ServerProcess(tmp_path_factory.mktemp("cli") / "data", environment=quick) as server:
        yield server


@pytest.fixture
def nobody(server: ServerProcess, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    """A user who has not logged in."""
    return CommandLine(server, tmp_path, capsys, monkeypatch)


@pytest.fixture
def cli(nobody: CommandLine) -> CommandLine:
    """An admin of a new account."""
    nobody.log_in()
    return nobody
