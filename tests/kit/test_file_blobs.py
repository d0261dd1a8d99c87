"""What is particular to blobs in local files (kit.blobs.files)."""

from __future__ import annotations

import asyncio
import fcntl
import os
import resource
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kit.blobs.files import FileBlobs, open_file_blobs
from kit.errors import Unavailable

SECRET = b"l" * 32


@pytest.fixture
async def blobs(tmp_path: Path) -> AsyncIterator[FileBlobs]:
    async with open_file_blobs(f"file:{tmp_path}/blobs", link_secret=SECRET) as opened:
        yield opened


async def stream(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


async def test_a_blob_lies_at_its_digest_and_nothing_else_is_left(blobs: FileBlobs, tmp_path: Path) -> None:
    info = await blobs.put("acme", stream(b"x"))
    await blobs.put("acme", stream(b"x"))
    assert files(tmp_path / "blobs") == [f"acme/{info.sha256[:2]}/{info.sha256}"]


async def test_leftovers_of_a_killed_process_are_deleted_at_the_next_start(tmp_path: Path) -> None:
    folder = tmp_path / "blobs" / ".tmp"
    folder.mkdir(parents=True)
    (folder / "leftover").write_bytes(b"half")
    handle = os.open(folder / "in-use", os.O_CREAT | os.O_WRONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    async with open_file_blobs(f"file:{tmp_path}/blobs", link_secret=SECRET):
        assert files(folder) == ["in-use"], "another process still writes this one"
    os.close(handle)
    async with open_file_blobs(f"file:{tmp_path}/blobs", link_secret=SECRET):
        assert files(folder) == []


async def test_a_blob_that_decayed_to_another_size_is_replaced(blobs: FileBlobs, tmp_path: Path) -> None:
    info = await blobs.put("acme", stream(b"whole"))
    path = tmp_path / "blobs" / "acme" / info.sha256[:2] / info.sha256
    path.write_bytes(b"who")
    await blobs.put("acme", stream(b"whole"))
    assert path.read_bytes() == b"whole"


@pytest.mark.parametrize("url", ["file:", "file://host/path", "file:/x?y=1"])
async def test_a_wrong_url_is_an_error(url: str) -> None:
    with pytest.raises(ValueError, match="file:/path"):
        async with open_file_blobs(url, link_secret=SECRET):
            pass


async def test_a_folder_that_cannot_be_made_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(Unavailable):
        async with open_file_blobs(f"file:{tmp_path}/file/blobs", link_secret=SECRET):
            pass


DISK_FULL = """
import asyncio, resource, signal, sys
from kit.blobs.files import open_file_blobs
from kit.errors import Unavailable

async def stream():
    for _ in range(10):
        yield bytes(1 << 20)

async def main():
    async with open_file_blobs(sys.argv[1], link_secret=b"l" * 32) as blobs:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (3 << 20, resource.RLIM_INFINITY))
        try:
            await blobs.put("acme", stream())
        except Unavailable as error:
            print("refused", error.status)

asyncio.run(main())
"""


async def test_a_disk_that_takes_no_more_refuses_and_leaves_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-c", DISK_FULL, f"file:{tmp_path}/blobs"]
    answer = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=True, timeout=60)
    assert answer.stdout.strip() == "refused 503"
    assert files(tmp_path / "blobs") == []


async def test_memory_stays_constant_for_big_blobs(blobs: FileBlobs) -> None:
    chunk = os.urandom(1 << 16)

    async def big() -> AsyncIterator[bytes]:
        for _ in range(4096):
            yield chunk

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    info = await blobs.put("acme", big())
    async for _ in blobs.open("acme", info.sha256):
        pass
    assert info.size == 256 << 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32 << 10, "kibibytes"
