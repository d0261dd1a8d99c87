"""Files appear whole or not at all."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from latebind import _files
from latebind.errors import DiskFull


def test_a_file_is_replaced_whole_with_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "file"
    _files.write_whole(path, b"old")
    _files.write_whole(path, b"new" * 1000, mode=0o600)
    assert path.read_bytes() == b"new" * 1000
    assert path.stat().st_mode & 0o777 == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_failed_write_leaves_the_old_content_and_no_rubbish(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    program = (
        "import resource, sys; from pathlib import Path; from latebind import _files; from latebind.errors import DiskFull\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))\n"
        "try: _files.write_whole(Path(sys.argv[1]), bytes(5000))\n"
        "except DiskFull as error: print(error.code)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "DISK_FULL"
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_only_a_lack_of_room_becomes_disk_full(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        _files.write_whole(tmp_path / "missing" / "file", b"")
    with pytest.raises(DiskFull), _files.disk_errors(tmp_path):
        raise OSError(28, "No space left on device")
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] == resource.RLIM_INFINITY


def test_json_that_is_missing_or_broken_is_none(tmp_path: Path) -> None:
    assert _files.read_json(tmp_path / "missing") is None
    (tmp_path / "broken").write_bytes(b'{"a": ')
    assert _files.read_json(tmp_path / "broken") is None
    (tmp_path / "deep").write_bytes(b"[" * 100_000)
    assert _files.read_json(tmp_path / "deep") is None
    _files.write_json(tmp_path / "good", {"a": [1]})
    assert _files.read_json(tmp_path / "good") == {"a": [1]}


def test_hashes_of_files_equal_those_of_bytes(tmp_path: Path) -> None:
    data = os.urandom(3 << 20)
    (tmp_path / "file").write_bytes(data)
    assert _files.xxh3_of_file(tmp_path / "file") == _files.xxh3_of(data)
