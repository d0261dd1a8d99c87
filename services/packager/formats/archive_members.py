"""What the readers of both kinds of archive share: members, caps on what comes out, and the refusals."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, NoReturn

from services.packager.errors import ModelRejected, Reason

_CHUNK = 256 * 1024


@dataclass(frozen=True, slots=True)
class Caps:
    """`total_bytes` may come out of one archive, `ratio` times what went in (beyond the first MiB), in `members` members, files or not."""

    members: int = 1_000
    total_bytes: int = 2 * 2**30
    ratio: int = 200


@dataclass(frozen=True, slots=True)
class Member:
    """One member of an archive: its raw name, what it is (`file`, `folder`, or a word for what is refused), and its bytes."""

    name: str
    kind: str
    pieces: Callable[[], Iterator[bytes]]


class Meter:
    """Counts what came out of an archive, whether it is kept or not."""

    def __init__(self, caps: Caps, packed_bytes: int) -> None:
        self._most = min(caps.total_bytes, max(2**20, caps.ratio * packed_bytes))
        self.out = 0

    def count(self, size: int) -> None:
        """Count bytes before they are written. Raises `ModelRejected`."""
        self.out += size
        if self.out > self._most:
            too_large(f"more than {self._most} bytes come out of it")

    @property
    def left(self) -> int:
        """Bytes that may still come out, and one more: by that one it is noticed."""
        return self._most - self.out + 1


def read_at(file: BinaryIO, place: int, size: int) -> bytes:
    """Read exactly so many bytes. Raises `ModelRejected` (ARCHIVE_INVALID)."""
    if place < 0:
        invalid("a place in it is before its start")
    file.seek(place)
    data = file.read(size)
    if len(data) != size:
        invalid("it ends too early")
    return data


def invalid(why: str) -> NoReturn:
    """Refuse an archive that makes no sense."""
    raise ModelRejected(
        Reason.ARCHIVE_INVALID, f"The archive cannot be read: {why}. Pack it again (zip, tar or tar.gz), and upload it whole."
    )


def too_large(why: str) -> NoReturn:
    """Refuse an archive that is more than may come out."""
    raise ModelRejected(
        Reason.ARCHIVE_TOO_LARGE, f"The archive is too large: {why}. Upload the files by themselves (latebind push FOLDER)."
    )


def refused(what: str) -> NoReturn:
    """Refuse an archive for one of its members."""
    raise ModelRejected(
        Reason.ARCHIVE_REFUSED, f"The archive holds {what}. Only plain files below plain folders are taken; pack it without."
    )


def shown(name: str) -> str:
    """A name as people may see it."""
    return '"' + "".join(char if char.isprintable() else "?" for char in name[:100]) + '"'


def plain_pieces(file: BinaryIO, place: int, size: int) -> Iterator[bytes]:
    """Bytes that are stored as they are."""
    while size:
        piece = read_at(file, place, min(size, _CHUNK))
        place, size = place + len(piece), size - len(piece)
        yield piece
