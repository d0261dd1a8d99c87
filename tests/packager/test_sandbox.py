"""Children that misbehave: each ends as a refusal within the limits, and leaves no process and no file.

The hostile part runs as the worker of a real guard, in place of the code that would have been taken over by a model.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from services.packager import sandbox as module
from services.packager.answer import inspection
from services.packager.errors import ModelRejected, Reason
from services.packager.isolation import cage
from services.packager.isolation.cage import Level
from services.packager.sandbox import SAFE, Limits, NoSandbox, open_sandbox
from tests.packager.conftest import environments
from tests.packager.hostile import ROOT, hostile, marked, safe_levels

LEVELS = safe_levels()


def test_this_machine_gives_the_levels_that_its_kind_should() -> None:
    """Where set-up may install packages both levels are there; a level that is not there is not tested, so this must not pass unseen."""
    assert LEVELS
    if os.getuid() == 0 and shutil.which("apt-get"):
        assert Level.STRONG in LEVELS


@pytest.fixture
def mark() -> Iterator[str]:
    mark = f"latebind-test-{os.getpid()}-{time.monotonic_ns()}"
    yield mark
    left = marked(mark)
    for pid in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, 9)
    assert left == []


async def misbehave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, mark: str, limits: Limits, *, level: Level, warm: bool
) -> tuple[ModelRejected, float]:
    """Run a hostile child; return the refusal and the seconds that it took. Nothing may be left, but its warm parent."""
    monkeypatch.setattr(module.cage, "engine", hostile(body, mark))
    async with open_sandbox(tmp_path / "scratch", limits, environments(), [level], warm_s=60 if warm else 0) as opened:
        took, parents = 0.0, list[int]()
        with pytest.raises(ModelRejected) as caught:
            async with opened.workspace() as workspace:
                if warm:
                    # Importing does not count as time of the job.
                    async with opened._parents.lend(module.cage.engine()):  # type: ignore[union-attr]
                        parents = marked(mark)
                    assert len(parents) == PARENTS[level]
                began = time.monotonic()
                try:
                    raw = await opened.run(workspace, {}, lambda _step: None)
                finally:
                    took = time.monotonic() - began
                inspection(raw)
        assert marked(mark) == parents
        left = [entry.name.partition("-")[0] for entry in (tmp_path / "scratch").glob("*/*")]
        assert sorted(left) == ["lock", "warm"][: 1 + warm]
    assert list((tmp_path / "scratch").iterdir()) == []
    assert marked(mark) == []
    return caught.value, took


FORKER = """
for _ in range(20):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            time.sleep(600)
        os._exit(0)
"""

CASES = {
    "loops": ("while True: pass", Reason.CHILD_TIMEOUT),
    "sleeps": ("time.sleep(600)", Reason.CHILD_TIMEOUT),
    "ignores signals": ("for one in range(1, 65):\n    try: signal.signal(one, signal.SIG_IGN)\n    except (OSError, ValueError): pass\n"
                        "time.sleep(600)", Reason.CHILD_TIMEOUT),
    "eats memory": ("kept = []\nwhile True: kept.append(bytearray(2**24))", Reason.CHILD_OUT_OF_MEMORY),
    "fills a file": ("f = open('out/x', 'wb')\nwhile True: f.write(bytes(2**20))", Reason.CHILD_OUTPUT_TOO_LARGE),
    "fills many files": ("i = 0\nwhile True:\n    i += 1\n    open(f'out/{i}', 'wb').write(bytes(2**20))", Reason.CHILD_OUTPUT_TOO_LARGE),
    "makes folders without end": ("os.chdir('out')\nwhile True:\n    os.mkdir('d')\n    os.chdir('d')", None),
    "makes threads without end": ("import threading\nwhile True: threading.Thread(target=time.sleep, args=(600,)).start()",
                                  Reason.CHILD_KILLED),
    "answers too much": ("while True: os.write(ANSWER, b'{' * 65536)", Reason.CHILD_ANSWER_INVALID),
    "prints too much": ("for _ in range(1000): os.write(2, b'x' * 65536)", Reason.CHILD_ANSWER_INVALID),
    "answers nonsense": ("os.write(ANSWER, b'[1, 2')", Reason.CHILD_ANSWER_INVALID),
    "answers deep": ("os.write(ANSWER, b'[' * 100000)", Reason.CHILD_ANSWER_INVALID),
    "answers yes and nothing else": ("os.write(ANSWER, b'{\"ok\": true}')\nos._exit(0)", Reason.CHILD_ANSWER_INVALID),
    "claims an unknown reason": ("os.write(ANSWER, b'{\"ok\": false, \"code\": \"X\", \"detail\": \"\"}')", Reason.CHILD_ANSWER_INVALID),
    "crashes": ("import ctypes\nctypes.string_at(0)", Reason.CHILD_KILLED),
    "aborts": ("os.abort()", Reason.CHILD_KILLED),
    "exits early": ("os._exit(7)", Reason.CHILD_KILLED),
    "raises": ("raise RuntimeError('no')", Reason.CHILD_KILLED),
    "opens too many files": ("kept = []\nwhile True: kept.append(open('/dev/null'))", Reason.CHILD_KILLED),
    "speaks another architecture": (
        "import ctypes, mmap\ncode = mmap.mmap(-1, 4096, prot=7)\n"
        # mov eax, 20 (getpid of 32 bits); int 0x80; ret
        "code.write(bytes.fromhex('b814000000cd80c3'))\n"
        "ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))()\nos._exit(0)", Reason.CHILD_KILLED),
    "takes x32 system calls": (
        "import ctypes\nctypes.CDLL(None).syscall(ctypes.c_long(0x40000027))\nos._exit(0)", Reason.CHILD_KILLED),
}  # fmt: skip

#: What only a child without walls can do: a guard stands behind them all the same.
WITHOUT_WALLS = {
    "leaves daemons and ends": (FORKER, Reason.CHILD_ANSWER_INVALID),
    "leaves daemons and hangs": (FORKER + "time.sleep(600)", Reason.CHILD_TIMEOUT),
    "keeps stdout open in a daemon": (FORKER + "os._exit(0)", Reason.CHILD_ANSWER_INVALID),
    "forks without end": ("while True:\n    try: os.fork()\n    except OSError: time.sleep(0.01)", None),
    "stops its guard": (FORKER + "os.kill(os.getppid(), signal.SIGSTOP)\ntime.sleep(600)", Reason.CHILD_TIMEOUT),
    "kills its guard": ("os.kill(os.getppid(), signal.SIGKILL)\ntime.sleep(600)", Reason.CHILD_KILLED),
    "locks its folder": ("os.makedirs('out/a/b')\nopen('out/a/b/c', 'w')\nos.chmod('out/a', 0)\nos._exit(9)", Reason.CHILD_KILLED),
}

#: Processes of a warm parent that carry the mark: its guard, bubblewrap's monitor, itself.
PARENTS = {Level.STRONG: 3, Level.FALLBACK: 2}

ALL = [(level, warm, name, *case) for level in LEVELS for warm in (True, False) for name, case in CASES.items()]
ALL += [(Level.UNSAFE, False, name, *case) for name, case in WITHOUT_WALLS.items()]


@pytest.mark.parametrize(
    ("level", "warm", "name", "body", "reason"),
    ALL,
    ids=[f"{level}-{'warm' if warm else 'one-shot'}-{name}" for level, warm, name, *_ in ALL],
)
async def test_a_hostile_child_is_contained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mark: str, level: Level, warm: bool, name: str, body: str, reason: Reason | None
) -> None:
    """SEC-B3: killed within two seconds of its limit, no process and no file left; a warm parent lives on."""
    if "architecture" in name or "x32" in name:
        body = body if os.uname().machine == "x86_64" else "os.abort()"
    # The deadline is short only where it is what ends the child.
    limits = Limits(seconds=1.0 if reason in {Reason.CHILD_TIMEOUT, None} else 20.0, memory_bytes=2**29, disk_bytes=8 * 2**20, processes=48)
    rejected, took = await misbehave(tmp_path, monkeypatch, body, mark, limits, level=level, warm=warm)
    if reason is not None:
        assert rejected.reason is reason, rejected
    # Root without walls may fork faster than anybody can kill; that ends too, but is no level that holds.
    assert took <= limits.seconds + (2 if level in LEVELS else 15)
    assert str(tmp_path) not in rejected.detail


@pytest.mark.parametrize("level", [*LEVELS, Level.UNSAFE])
async def test_cancelling_kills_the_child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mark: str, level: Level) -> None:
    monkeypatch.setattr(module.cage, "engine", hostile((FORKER if level is Level.UNSAFE else "") + "time.sleep(600)", mark))
    async with open_sandbox(tmp_path / "scratch", Limits(), environments(), [level]) as opened:

        async def job() -> None:
            async with opened.workspace() as workspace:
                await opened.run(workspace, {}, lambda _step: None)

        task = asyncio.create_task(job())
        while len(marked(mark)) < 2:
            await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert marked(mark) == []


@pytest.mark.parametrize("level", [*LEVELS, Level.UNSAFE])
async def test_a_child_dies_with_its_service(tmp_path: Path, mark: str, level: Level) -> None:
    body = (FORKER if level is Level.UNSAFE else "") + "time.sleep(600)"
    script = f"""
import asyncio, sys
from pathlib import Path
sys.path.insert(0, {str(ROOT)!r})
from services.packager import sandbox as module
from services.packager.environments import Environments
runtime = module.cage.Runtime(Path(sys.executable), {hostile(body, mark)().start!r}, module.cage.engine().read)
module.cage.engine = lambda: runtime
async def main():
    environments = Environments(Path({str(tmp_path / "environments")!r}))
    async with module.open_sandbox(Path({str(tmp_path / "scratch")!r}), module.Limits(), environments, [{str(level)!r}]) as opened:
        async with opened.workspace() as workspace:
            print("up", flush=True)
            await opened.run(workspace, {{}}, lambda step: None)
asyncio.run(main())
"""
    service = await asyncio.create_subprocess_exec(sys.executable, "-c", script, stdout=asyncio.subprocess.PIPE)
    assert service.stdout is not None
    await service.stdout.readline()
    while len(marked(mark)) < 2:
        await asyncio.sleep(0.02)
    service.kill()
    await service.wait()
    for _ in range(400):
        if not marked(mark):
            break
        await asyncio.sleep(0.02)
    assert marked(mark) == []
    assert list((tmp_path / "scratch").iterdir()) != []
    async with open_sandbox(tmp_path / "scratch", Limits(), environments()):
        assert len(list((tmp_path / "scratch").iterdir())) == 1


async def test_folders_of_living_services_stay(tmp_path: Path) -> None:
    first, second = (open_sandbox(tmp_path, Limits(), environments()) for _ in range(2))
    async with first as opened, opened.workspace() as workspace, second:
        assert workspace.folder.is_dir()


async def test_results_are_taken_only_when_plain(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    async with open_sandbox(tmp_path / "scratch", Limits(), environments()) as sandbox, sandbox.workspace() as workspace:
        out = workspace.folder / "out"
        (out / "link").symlink_to(secret)
        (out / "hard").hardlink_to(secret)
        (out / "folder").mkdir()
        (out / "folder" / "inner").write_bytes(b"inner")
        os.mkfifo(out / "pipe")
        (out / "large").write_bytes(bytes(2000))
        (out / "good").write_bytes(b"good")
        with pytest.raises(ModelRejected):
            workspace.take("good", "x-before", 1000)  # no child has run
        workspace.hold(os.open(out, os.O_RDONLY | os.O_DIRECTORY))
        for name in ("link", "hard", "folder", "pipe", "absent", "../in/0", "folder/inner", "."):
            with pytest.raises(ModelRejected) as caught:
                workspace.take(name, f"x-{name.replace('/', '-')}", 1000)
            assert caught.value.reason is Reason.CHILD_ANSWER_INVALID
        with pytest.raises(ModelRejected) as caught:
            workspace.take("large", "x", 1000)
        assert caught.value.reason is Reason.CHILD_OUTPUT_TOO_LARGE
        assert workspace.take("good", "good", 1000).read_bytes() == b"good"


async def test_a_machine_without_a_sandbox_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Below the fallback nothing starts unless it is told to; the text says what to do."""
    monkeypatch.setattr(module.landlock, "abi", lambda: 2)
    monkeypatch.setattr(cage, "bubblewrap", lambda: None)
    with pytest.raises(NoSandbox, match=r"bubblewrap \(bwrap\) is not installed.*Landlock 2.*UNSAFE_WITHOUT_SANDBOX"):
        async with open_sandbox(tmp_path, Limits(), environments()):
            pass
    async with open_sandbox(tmp_path, Limits(), environments(), [*SAFE, Level.UNSAFE]) as sandbox:
        assert sandbox.level is Level.UNSAFE


@pytest.mark.parametrize("level", LEVELS)
async def test_a_level_is_not_claimed_where_its_walls_do_not_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, level: Level) -> None:
    """The probe is a child that really tries: without the filter, or without the file system's walls, it gets out and says so."""
    whole = cage.command

    def broken(*arguments: Any) -> list[str]:
        words = whole(*arguments)
        settings = json.loads(words[-1])
        settings.update({"filter": False})
        return [*words[:-1], json.dumps(settings)]

    monkeypatch.setattr(module.cage, "command", broken)
    with pytest.raises(NoSandbox, match=r"could reach.*a socket"):
        async with open_sandbox(tmp_path, Limits(), environments(), [level]):
            pass
