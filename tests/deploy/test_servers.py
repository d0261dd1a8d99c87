"""How real servers are found, started, ended and installed, shown on a small one that every machine has: Python's web server."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import urllib.request
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from deploy.processes import Daemon
from deploy.servers import __main__ as command_line
from deploy.servers import install
from deploy.servers.install import NotInstalled
from deploy.servers.kinds import KINDS, Kind
from deploy.servers.server import Server, ServerFailed
from tests.e2e.world import eventually

_PACKAGE = Path(install.__file__).parent


def _answers(ports: Mapping[str, int]) -> None:
    urllib.request.urlopen(f"http://127.0.0.1:{ports['http']}/", timeout=5).close()


def _kind(name: str, *code: str) -> Kind:
    return Kind(
        name,
        ("http",),
        lambda _tell: Path(sys.executable),
        lambda program, _folder, ports: [str(program), *(part.replace("PORT", str(ports["http"])) for part in code)],
        _answers,
        lambda ports: {"WEB_URL": f"http://user:hidden@127.0.0.1:{ports['http']}"},
        {},
        ready_within_s=30,
    )


@pytest.fixture
def web(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a server of the kind `web`."""
    monkeypatch.setitem(KINDS, "web", _kind("web", "-m", "http.server", "PORT", "--bind", "127.0.0.1"))
    return tmp_path / "web"


def test_is_found_again_and_keeps_its_ports(web: Path) -> None:
    with Server("web", web) as server:
        first = server.pid
        again = Server("web", web).start()
        assert (again.pid, again.ports, again.started_here) == (first, server.ports, False)
        again.stop()
        assert server.pid is None
        assert not server.is_ready()
        assert Server("web", web).start().ports == server.ports
        assert server.pid != first
    assert Server("web", web).pid is None


def test_two_who_start_it_at_once_get_one(web: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        servers = list(pool.map(lambda _turn: Server("web", web).start(), range(4)))
    try:
        assert sum(server.started_here for server in servers) == 1
        assert len({(server.pid, server.ports["http"]) for server in servers}) == 1
    finally:
        servers[0].kill()


def test_a_process_whose_first_thread_ended_is_not_gone(tmp_path: Path) -> None:
    code = "import ctypes, threading, time; threading.Thread(target=time.sleep, args=(60,)).start(); ctypes.CDLL(None).syscall(EXIT, 0)"
    code = code.replace("EXIT", {"x86_64": "60", "aarch64": "93"}[os.uname().machine])
    daemon = Daemon(tmp_path, "log")
    daemon.launch([sys.executable, "-c", code], {})
    child = daemon.pid
    assert child is not None
    eventually(lambda: "\nState:\tZ" in Path(f"/proc/{child}/status").read_text())
    assert daemon.pid == child
    daemon.end(signal.SIGKILL)
    assert daemon.pid is None


def test_kill_ends_it_at_once(web: Path) -> None:
    with Server("web", web) as server:
        child = server._child
        assert child is not None
        server.kill()
        assert child.wait() == -signal.SIGKILL
        assert server.start().is_ready()


def test_a_number_that_went_to_another_program_is_left_alone(web: Path) -> None:
    web.mkdir()
    (web / "process.json").write_text(json.dumps({"pid": os.getpid(), "started": 1, "ports": {"http": 9}}))
    server = Server("web", web)
    assert server.pid is None
    server.kill()


@pytest.mark.parametrize("left", ["", "{", "{}", '{"pid": 1}'])
def test_a_torn_process_file_counts_as_not_running(web: Path, left: str) -> None:
    web.mkdir()
    (web / "process.json").write_text(left)
    with Server("web", web) as server:
        assert server.started_here


def test_a_server_that_ends_shows_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KINDS, "broken", _kind("broken", "-c", "raise SystemExit('no such disk')"))
    with pytest.raises(ServerFailed, match=r"(?s)ended by itself.*no such disk"):
        Server("broken", tmp_path / "broken").start()


def test_a_server_that_never_answers_is_not_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    silent = _kind("silent", "-c", "import time; print('thinking', flush=True); time.sleep(600)")
    monkeypatch.setitem(KINDS, "silent", replace(silent, ready_within_s=0.5))
    server = Server("silent", tmp_path / "silent")
    with pytest.raises(ServerFailed, match="does not answer after"):
        server.start()
    assert server.pid is None


def test_no_password_is_shown(web: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(command_line, "FOLDER", tmp_path)
    monkeypatch.setattr(command_line, "ENV_FILE", tmp_path / "servers.env")
    try:
        assert command_line.main(["up", "web"]) == 0
        assert command_line.main(["status", "web"]) == 0
        assert (tmp_path / "servers.env").read_text().startswith("LATEBIND_TEST_WEB_URL=http://user:hidden@127.0.0.1:")
    finally:
        assert command_line.main(["stop", "web"]) == 0
    assert command_line.main(["status", "web"]) == 1
    shown = capfd.readouterr()
    assert "http://127.0.0.1:" in shown.out
    assert "hidden" not in shown.out + shown.err


def test_an_unknown_server_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        command_line.main(["up", "oracle"])
    assert "no such server: oracle" in capsys.readouterr().err


def test_a_program_appears_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATEBIND_SERVERS_CACHE", str(tmp_path))
    installed = []

    def half(folder: Path) -> None:
        (folder / "half").touch()
        raise NotInstalled("the network went away")

    with pytest.raises(NotInstalled):
        install._installed("tool-1", half)
    assert [path.name for path in tmp_path.iterdir()] == [".tool-1.lock"]
    for _ in range(2):
        assert install._installed("tool-1", installed.append) == tmp_path / "tool-1"
    assert len(installed) == 1


def test_without_root_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 1000)
    with pytest.raises(NotInstalled, match=r"sudo apt-get install -y .* some-package"):
        install.need_programs({"no-such-program": "some-package"}, print)


def test_what_is_fetched_is_pinned() -> None:
    assert f"<version>{install.KAFKA_VERSION}</version>" in (_PACKAGE / "pom.xml").read_text()
    for name, version in install._WHEELS.items():
        assert re.match(rf"{name}=={re.escape(version)} \\\n +--hash=sha256:", install._locked_requirement(name))


def test_postgresql_loses_no_acknowledged_commit(tmp_path: Path) -> None:
    """docs/adr/0100: `fsync=off` survives kill -9, `synchronous_commit=off` does not."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "PG_VERSION").touch()
    command = KINDS["postgres"].start(Path("/programs"), tmp_path, {"sql": 5432})
    assert "synchronous_commit=on" in command
