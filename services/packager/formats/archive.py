"""Unpacks an uploaded .zip, .tar or .tar.gz in a loop of its own: regular files only, under generated names, with caps on everything.

Runs in a child. A member's name is never a path here: it is checked, and answered beside the name (`0`, `1`, …) that its bytes got. Sizes
that an archive claims decide nothing; bytes are counted as they come out. Links, devices, encrypted or sparse members, and two members in
one place, refuse the whole archive: a SavedModel has none of them.
Formats: APPNOTE.TXT 6.3 (ZIP), POSIX.1-2017 pax and GNU tar headers, RFC 1952.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from services.packager.domain import is_plain_name
from services.packager.formats import archive_tar, archive_zip
from services.packager.formats.archive_members import Caps, Member, Meter, invalid, refused, shown, too_large

_MAX_DEPTH = 8
_MAX_PATH = 300
#: What operating systems leave in archives.
_LITTER = frozenset({"__MACOSX", ".DS_Store", "Thumbs.db", "desktop.ini"})


@dataclass(frozen=True, slots=True)
class Unpacked:
    """A file: its path in the archive, the name that its bytes have in the folder, its size."""

    path: str
    name: str
    size: int


def unpack(archive: Path, folder: Path, caps: Caps) -> list[Unpacked]:
    """Write the files of an archive into an empty folder, as `0`, `1`, …, and say which is which, in the order of the archive.

    Raises:
        ModelRejected: ARCHIVE_INVALID, ARCHIVE_REFUSED (a member that is not taken), ARCHIVE_TOO_LARGE.
    """
    unpacked: list[Unpacked] = []
    places: dict[str, bool] = {}
    meter = Meter(caps, archive.stat().st_size)
    with archive.open("rb") as file:
        members = archive_zip.members(file, caps, meter) if file.read(2) == b"PK" else archive_tar.members(file, meter)
        for number, member in enumerate(members):
            if number >= caps.members:
                too_large(f"it has more than {caps.members} members")
            path = _path(member)
            if path is None or member.kind == "folder":
                continue
            _take_place(places, path)
            name = str(len(unpacked))
            with (folder / name).open("xb") as out:
                size = _write(out, member.pieces(), meter)
            unpacked.append(Unpacked(path, name, size))
    if not unpacked:
        invalid("there is no file in it")
    return unpacked


def _path(member: Member) -> str | None:
    """The checked path of a member; None for what is left out: litter, and the folder that everything is packed in."""
    parts = member.name.removesuffix("/").split("/")
    while parts and parts[0] == ".":
        parts = parts[1:]
    if any(part in _LITTER or part.startswith("._") for part in parts):
        return None
    if member.kind not in {"file", "folder"}:
        refused(f"{member.kind}, {shown(member.name)}")
    if not parts:
        return None
    path = "/".join(parts)
    if len(parts) > _MAX_DEPTH or len(path) > _MAX_PATH or not all(is_plain_name(part) for part in parts):
        refused(f"the name {shown(member.name)}")
    return path


def _take_place(places: dict[str, bool], path: str) -> None:
    """Note a file's place; no other file, and no folder of another, may have it, on any file system."""
    parts = path.casefold().split("/")
    folders = ["/".join(parts[:end]) for end in range(1, len(parts))]
    if "/".join(parts) in places or any(places.get(folder) for folder in folders):
        refused(f"two members in the place of {shown(path)}")
    places.update(dict.fromkeys(folders, False))
    places["/".join(parts)] = True


def _write(out: BinaryIO, pieces: Iterator[bytes], meter: Meter) -> int:
    size = 0
    for piece in pieces:
        meter.count(len(piece))
        out.write(piece)
        size += len(piece)
    return size
