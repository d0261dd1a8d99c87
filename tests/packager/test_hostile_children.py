"""SEC-B2: hostile code really runs in a child and gets nothing, at each level that the machine gives; SEC-B9: nor from other accounts.

The programs are in hostile_programs.py. Their control is a child without walls, where they must succeed.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import random
import socket
import subprocess
import sys
import sysconfig
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from services.packager import sandbox as module
from services.packager.answer import parse_answer
from services.packager.isolation import seccomp
from services.packager.isolation.cage import Level
from services.packager.sandbox import Limits, Sandbox, Workspace, open_sandbox
from tests.packager.conftest import environments
from tests.packager.hostile import ROOT, hostile, safe_levels

SECRET = "canary-5e1c7a4f90b2"
PROGRAMS = (Path(__file__).parent / "hostile_programs.py").read_text()
BODY = "space = {'__name__': 'hostile'}\nexec(open('in/2').read(), space)\nreturn space['attack'](job)"

#: Would leave something behind, or do it to the test itself, where nothing stops them.
HARMFUL = ("fork", "vfork", "msgget", "shmget", "semget", "vhangup", "personality", "setfsuid", "setfsgid", "setgroups", "iopl", "execve")
#: Without walls and as root these fail all the same: what a process is not given without a sandbox either, and what kernels lack.
NEVER = {
    "has_an_environment_with_secrets", "has_descriptors_that_nobody_gave_it", "may_gain_privileges",
    "loads_a_module_into_the_kernel", "triggers_system_requests", "lifts_its_own_limits",
    "fills_more_memory_than_its_cap_with_files", "takes_a_system_call_of_the_future",
}  # fmt: skip


@pytest.fixture
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """What there is to be had on a server: secrets, servers, other processes, other jobs."""
    monkeypatch.setenv("LATEBIND_TEST_CANARY", SECRET)
    for name in ("secret", "other", "doomed"):
        (tmp_path / name).write_text(SECRET)
        (tmp_path / name).chmod(0o600)
    victim = subprocess.Popen([sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)"], stdout=subprocess.PIPE)
    assert victim.stdout is not None
    victim.stdout.readline()
    libc = ctypes.CDLL(None, use_errno=True)
    segment = libc.shmget(0, 4096, 0o1600)
    libc.shmat.restype = ctypes.c_void_p
    address = libc.shmat(segment, None, 0)
    ctypes.memmove(address, SECRET.encode(), len(SECRET))
    abstract = f"latebind-{os.getpid()}"
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as file, socket.socket(socket.AF_UNIX) as hidden:
        file.bind(str(tmp_path / "socket"))
        file.listen()
        hidden.bind("\0" + abstract)
        hidden.listen()
        yield {
            "secret": SECRET, "secret_file": str(tmp_path / "secret"), "other_file": str(tmp_path / "other"),
            "doomed_file": str(tmp_path / "doomed"), "service": os.getpid(), "victim": victim.pid, "home": str(Path.home()),
            "root": str(ROOT), "site": sysconfig.get_path("purelib"), "port": server.getsockname()[1], "abstract": abstract,
            "socket_file": str(tmp_path / "socket"), "segment": segment, "calls": seccomp.denied(os.uname().machine),
            "harmful": HARMFUL,
        }  # fmt: skip
        libc.shmdt(ctypes.c_void_p(address))
        libc.shmctl(segment, 0, None)
        assert victim.poll() is None
        victim.kill()
        victim.wait()


@asynccontextmanager
async def two_jobs(tmp_path: Path, level: Level, warm: bool) -> AsyncIterator[tuple[Sandbox, Workspace, Workspace]]:
    limits = Limits(seconds=60, memory_bytes=2**30, disk_bytes=16 * 2**20)
    async with (
        open_sandbox(tmp_path / "scratch", limits, environments(), [level], warm_s=60 if warm else 0) as sandbox,
        sandbox.workspace() as mine,
        sandbox.workspace() as other,
    ):
        for name in ("0", "1"):
            mine.path(name).write_text("input")
        mine.path("2").write_text(PROGRAMS)
        other.path("0").write_text(SECRET)
        yield sandbox, mine, other


async def attack(
    tmp_path: Path, level: Level, surroundings: dict[str, Any], monkeypatch: pytest.MonkeyPatch, *, warm: bool
) -> dict[str, Any]:
    monkeypatch.setattr(module.cage, "engine", hostile(BODY))
    async with two_jobs(tmp_path, level, warm) as (sandbox, mine, other):
        job = {**surroundings, "other_job": str(other.path("0")), "in_memory": level is Level.STRONG}
        answer = parse_answer(await sandbox.run(mine, job, lambda _step: None))
        assert sandbox.warm_parents == warm
        return answer


@pytest.mark.parametrize("warm", [True, False], ids=["warm", "one-shot"])
@pytest.mark.parametrize("level", safe_levels())
async def test_hostile_code_gets_nothing(
    tmp_path: Path, surroundings: dict[str, Any], monkeypatch: pytest.MonkeyPatch, level: Level, warm: bool
) -> None:
    answer = await attack(tmp_path, level, surroundings, monkeypatch, warm=warm)
    assert len(answer["tried"]) >= 80
    assert answer["got"] == {}
    assert answer["looked"] == {}
    for name in ("secret", "other", "doomed"):
        assert (tmp_path / name).read_text() == SECRET
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o600


async def test_without_walls_the_same_programs_succeed(
    tmp_path: Path, surroundings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control of the test above."""
    answer = await attack(tmp_path, Level.UNSAFE, surroundings, monkeypatch, warm=False)
    failed = set(answer["tried"]) - answer["got"].keys()
    if os.getuid() == 0:
        assert failed <= NEVER, failed
        assert len(answer["looked"]) >= 80
    else:
        assert len(answer["got"]) >= 30


@pytest.mark.parametrize("warm", [True, False], ids=["warm", "one-shot"])
@pytest.mark.parametrize("level", safe_levels())
async def test_interleaved_jobs_of_two_accounts_see_nothing_of_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, level: Level, warm: bool
) -> None:
    """SEC-B9, small: 24 jobs, four at a time; each looks everywhere that it can reach for marks that are not its own."""
    body = """
import re
seen = set()
def look(data):
    seen.update(re.findall(rb"mark-of-[a-z]+-[0-9]+", data))
for folder in ("in", "out", "tmp", ".", "..", "/", "/job", "/tmp", "/dev/shm", "/proc", job["scratch"]):
    for base, folders, files in os.walk(folder):
        if base.startswith(("/usr", "/lib", "/sys", "/root", "/opt", "/home")):
            folders.clear()
            continue
        for name in files:
            try:
                with open(os.path.join(base, name), "rb") as file:
                    look(file.read(65536))
            except OSError:
                pass
# Memory that was somebody's before comes zeroed.
import mmap
fresh = mmap.mmap(-1, 2**24)
look(fresh[:])
# Its own memory, the inherited one included, around what Python allocated: a pipe says where there is none, instead of crashing.
reading, writing = os.pipe()
libc = __import__("ctypes").CDLL(None)
libc.write.argtypes = [__import__("ctypes").c_int, __import__("ctypes").c_void_p, __import__("ctypes").c_size_t]
libc.sbrk.restype = __import__("ctypes").c_void_p
pages = 0
for middle in (id(seen), id(fresh), id(os), id(job), libc.sbrk(0)):
    for page in range((middle >> 12) - 2048, (middle >> 12) + 2048):
        if libc.write(writing, page << 12, 4096) == 4096:
            look(os.read(reading, 4096))
            pages += 1
own = job["mark"].encode()
open("out/result", "wb").write(own * 1000)
open("tmp/left", "wb").write(own * 1000)
return {"ok": True, "seen": sorted(one.decode() for one in seen), "empty": os.listdir("tmp") == ["left"], "pages": pages}
"""
    monkeypatch.setattr(module.cage, "engine", hostile(body))
    chance = random.Random(20261130)
    turn = asyncio.Semaphore(4)
    async with open_sandbox(tmp_path / "scratch", Limits(seconds=60), environments(), [level], warm_s=60 if warm else 0) as sandbox:

        async def one(mark: str) -> None:
            async with turn, sandbox.workspace() as workspace:
                workspace.path("0").write_text(mark)
                await asyncio.sleep(chance.random() / 50)
                job = {"mark": mark, "scratch": str(tmp_path)}
                answer = parse_answer(await sandbox.run(workspace, job, lambda _step: None))
                assert answer["seen"] == [mark]
                assert answer["empty"]
                assert answer["pages"] > 500
                assert workspace.take("result", "result", 2**20).read_bytes() == mark.encode() * 1000

        await asyncio.gather(*(one(f"mark-of-{'ab'[number % 2] * 4}-{number}") for number in range(24)))
        assert sandbox.warm_parents == warm


def test_every_denied_call_has_one_number_per_machine() -> None:
    for machine in ("x86_64", "aarch64"):
        numbers = seccomp.denied(machine)
        assert len(set(numbers.values())) == len(numbers) >= 100
        assert all(0 <= number <= 450 for number in numbers.values())
        code = seccomp.program(machine, 42)
        assert len(code) < 4096
        # Every path ends in a return, and no jump leaves the program.
        for place, (operation, yes, no, _operand) in enumerate(code):
            if operation in {0x15, 0x25, 0x35, 0x45}:
                assert place + 1 + max(yes, no) < len(code)
        assert code[-1][0] == 0x06


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_filter_decides_as_it_says(machine: str) -> None:
    """An interpreter of the program, for both machines whichever this one is."""
    arch = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
    allow, kill, no = 0x7FFF0000, 0x80000000, 0x00050001
    column = 0 if machine == "x86_64" else 1
    code = seccomp.program(machine, 42)

    def decide(number: int, *arguments: int, spoken: int = arch[machine]) -> int:
        words = {0: number, 4: spoken, **{16 + 8 * index: value & 0xFFFFFFFF for index, value in enumerate((*arguments, 0, 0, 0))}}
        place, held = 0, 0
        while True:
            operation, yes, other, operand = code[place]
            place += 1
            match operation:
                case 0x20:
                    held = words[operand]
                case 0x06:
                    return operand
                case _:
                    holds = {0x15: held == operand, 0x25: held > operand, 0x35: held >= operand, 0x45: bool(held & operand)}[operation]
                    place += yes if holds else other

    for number in seccomp.denied(machine).values():
        assert decide(number) == no
    assert decide(0, spoken=arch["aarch64" if machine == "x86_64" else "x86_64"]) == kill
    assert decide(0x40000000) == kill
    assert decide(451) == 0x00050000 | 38
    assert decide((56, 220)[column], 0x10000) == allow
    assert decide((56, 220)[column], 17) == no
    for number in ((62, 129)[column], (234, 131)[column]):
        assert (decide(number, 42), decide(number, 43), decide(number, -1)) == (allow, no, no)
    assert (decide((302, 261)[column], 0), decide((302, 261)[column], 7)) == (allow, no)
    assert (decide((72, 25)[column], 3, 8), decide((72, 25)[column], 3, 1)) == (no, allow)
    assert (decide((16, 29)[column], 0, 0x5412), decide((16, 29)[column], 0, 0x5401)) == (0x00050000 | 25, allow)
    for number in ((1, 64), (0, 63), (9, 222), (202, 98), (231, 94)):  # write, read, mmap, futex, exit_group
        assert decide(number[column]) == allow


def test_the_surroundings_are_gone(surroundings: dict[str, Any]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(surroundings["victim"], 0)
