"""Archives: honest ones come out as they went in, hostile ones leave nothing outside and stop at their caps (SEC-B5)."""

from __future__ import annotations

import gzip
import random
import tarfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from services.packager.errors import ModelRejected, Reason
from services.packager.formats.archive import unpack
from services.packager.formats.archive_members import Caps
from services.packager.sandbox import Sandbox
from services.packager.unpacking import checked
from services.packager.unpacking import unpack as unpack_in_child
from tests.packager.archives import SAVED_MODEL, bombs, hostile, tarred, zip_entry, zip_of, zipped

CAPS = Caps(members=1_000, total_bytes=16 << 20)
REASONS = {Reason.ARCHIVE_INVALID, Reason.ARCHIVE_REFUSED, Reason.ARCHIVE_TOO_LARGE}

HONEST: list[Callable[[], bytes]] = [
    lambda: zipped(SAVED_MODEL),
    lambda: zipped(SAVED_MODEL, zipfile.ZIP_STORED),
    lambda: zipped({"model/": b"", **SAVED_MODEL, "__MACOSX/._x": b"?", "model/.DS_Store": b"?"}),
    lambda: tarred(SAVED_MODEL),
    lambda: tarred(SAVED_MODEL, tarfile.USTAR_FORMAT),
    lambda: tarred(SAVED_MODEL, tarfile.GNU_FORMAT),
    lambda: tarred({f"./{name}": data for name, data in SAVED_MODEL.items()}),
    lambda: gzip.compress(tarred(SAVED_MODEL)),
    lambda: gzip.compress(tarred(SAVED_MODEL)[:700]) + gzip.compress(tarred(SAVED_MODEL)[700:]),
]


def unpacked(folder: Path, data: bytes, caps: Caps = CAPS) -> dict[str, bytes]:
    """The files of an archive by path, written into an empty folder."""
    archive, out = folder / "archive", folder / "out"
    archive.write_bytes(data)
    out.mkdir(exist_ok=True)
    return {one.path: (out / one.name).read_bytes() for one in unpack(archive, out, caps)}


@pytest.mark.parametrize("number", range(len(HONEST)))
def test_honest_archives_come_out_as_they_went_in(tmp_path: Path, number: int) -> None:
    data = HONEST[number]()
    assert unpacked(tmp_path, data) == SAVED_MODEL
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"0", "1", "2", "3"}


def test_long_names_and_many_sizes(tmp_path: Path) -> None:
    rng = random.Random(1)
    name = "d" * 90 + "/" + "e" * 90 + "/" + "f" * 90
    files = {f"{name}{size}": rng.randbytes(size) for size in (0, 1, 511, 512, 513, 300_000)}
    for form in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        assert unpacked(tmp_path / str(form), tarred(files, form)) == files if (tmp_path / str(form)).mkdir() is None else None
    (tmp_path / "zip").mkdir()
    assert unpacked(tmp_path / "zip", zipped(files)) == files


def test_hostile_archives_leave_nothing_outside(tmp_path: Path) -> None:
    """SEC-B5: every one is refused with a typed reason, within its time, and writes nowhere but into its folder."""
    (tmp_path / "work").mkdir()
    count = slowest = 0
    for number, (what, data) in enumerate(hostile()):
        folder = tmp_path / "work" / str(number)
        folder.mkdir()
        began = time.process_time()
        with pytest.raises(ModelRejected) as caught:
            unpacked(folder, data)
        slowest = max(slowest, time.process_time() - began)
        assert caught.value.reason in REASONS, what
        assert all(
            path.parent == folder / "out" and path.name.isdigit()
            for path in folder.rglob("*")
            if path not in {folder / "archive", folder / "out"}
        ), what
        count += 1
    assert {path.name for path in tmp_path.iterdir()} == {"work"}
    assert count >= 300
    assert slowest <= 2.0


def test_bombs_stop_at_their_cap(tmp_path: Path) -> None:
    for number, (what, data) in enumerate(bombs()):
        folder = tmp_path / str(number)
        folder.mkdir()
        caps = Caps(members=1_000, total_bytes=8 << 20, ratio=10_000)
        began = time.process_time()
        with pytest.raises(ModelRejected) as caught:
            unpacked(folder, data, caps)
        assert time.process_time() - began <= 2.0, what
        assert caught.value.reason in {Reason.ARCHIVE_TOO_LARGE, Reason.ARCHIVE_INVALID}, what
        written = sum(path.stat().st_size for path in (folder / "out").iterdir())
        assert written <= caps.total_bytes + (1 << 20), what


def test_the_ratio_is_a_cap_of_its_own(tmp_path: Path) -> None:
    data = zipped({"zeros": bytes(8 << 20)})
    with pytest.raises(ModelRejected) as caught:
        unpacked(tmp_path, data, Caps(ratio=100))
    assert caught.value.reason is Reason.ARCHIVE_TOO_LARGE
    assert sum(path.stat().st_size for path in (tmp_path / "out").iterdir()) <= max(1 << 20, 100 * len(data)) + (1 << 20)


@pytest.mark.parametrize("make", [zipped, tarred, lambda files: gzip.compress(tarred(files))])
def test_mutants_end_in_one_error_or_in_plain_files(tmp_path: Path, make: Callable[[Any], bytes]) -> None:
    good = make(SAVED_MODEL)
    rng = random.Random(len(good))
    refused = 0
    for number in range(250):
        data = bytearray(good)
        for _ in range(rng.randint(1, 6)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        folder = tmp_path / str(number)
        folder.mkdir()
        try:
            unpacked(folder, bytes(data))
        except ModelRejected as rejected:
            assert rejected.reason in REASONS
            refused += 1
        assert all(path.name.isdigit() for path in (folder / "out").iterdir())
    assert refused > 50


async def test_the_sandbox_unpacks_and_the_service_takes_the_files(sandbox: Sandbox) -> None:
    async with sandbox.workspace() as workspace:
        workspace.path("upload").write_bytes(gzip.compress(tarred(SAVED_MODEL)))
        paths = await unpack_in_child(sandbox, workspace, "upload", "source", on_step=lambda step: None)
        assert {path: workspace.path(f"source/{path}").read_bytes() for path in paths} == SAVED_MODEL


async def test_hostile_archives_in_the_sandbox(sandbox: Sandbox, tmp_path: Path) -> None:
    before = {path for path in tmp_path.rglob("*") if "scratch" not in path.parts}
    samples = [one for number, one in enumerate(hostile()) if number % 60 == 0] + list(bombs())[:3]
    for what, data in samples:
        async with sandbox.workspace() as workspace:
            workspace.path("upload").write_bytes(data)
            with pytest.raises(ModelRejected) as caught:
                await unpack_in_child(sandbox, workspace, "upload", "source", on_step=lambda step: None, caps=Caps(total_bytes=8 << 20))
            assert caught.value.reason in REASONS, what
            assert not workspace.path("source").exists()
    assert {path for path in tmp_path.rglob("*") if "scratch" not in path.parts} == before


@pytest.mark.parametrize(
    "files",
    [
        None, [], {}, ["x"], [{"path": "a"}], [{"path": "../a", "size": 1}], [{"path": "/a", "size": 1}], [{"path": "a", "size": -1}],
        [{"path": "a", "size": True}], [{"path": "a", "size": 1 << 40}], [{"path": "a", "size": 1}, {"path": "A", "size": 1}],
        [{"path": "a", "size": 1}, {"path": "a/b", "size": 1}], [{"path": "a/b", "size": 1}, {"path": "a", "size": 1}],
        [{"path": "x" * 301, "size": 1}], [{"path": 5, "size": 1}], [{"path": f"f{n}", "size": 0} for n in range(1_001)],
    ],
)  # fmt: skip
def test_a_child_that_was_taken_over_cannot_name_a_place(files: Any) -> None:
    with pytest.raises(ModelRejected) as caught:
        checked({"ok": True, "files": files}, CAPS)
    assert caught.value.reason is Reason.CHILD_ANSWER_INVALID


def test_what_is_told_of_a_name_is_printable(tmp_path: Path) -> None:
    with pytest.raises(ModelRejected) as caught:
        unpacked(tmp_path, zip_of(zip_entry(b"a\x1b[2Jb")))
    assert caught.value.detail.isprintable()
