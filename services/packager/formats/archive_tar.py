"""Members of a tar file, plain or gzipped: ustar, the `path` and `size` of pax headers, and GNU long names. Everything else is refused.

A header of names is read only up to 64 KiB; headers, and what is stepped over, count like what is kept.
POSIX.1-2017 pax; GNU tar manual, "Basic Tar Format".
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import BinaryIO

from services.packager.formats.archive_members import Member, Meter, invalid, refused, shown

_BLOCK = 512
_CHUNK = 256 * 1024
_MAX_HEADER = 64 * 1024
_LONGEST_NUMBER = 20
_KINDS = {
    b"0": "file", b"\0": "file", b"7": "file", b"5": "folder", b"1": "a link", b"2": "a link", b"3": "a device", b"4": "a device",
    b"6": "a pipe", b"S": "a sparse file", b"M": "a part of another archive", b"V": "a label",
}  # fmt: skip


def members(file: BinaryIO, meter: Meter) -> Iterator[Member]:
    """Yield the members in their order; each one's bytes must be taken before the next is asked for, or are stepped over."""
    file.seek(0)
    gzipped = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    stream = _Stream(_gunzipped(file, meter) if gzipped else _plain(file), meter)
    long_name: str | None = None
    attributes: dict[str, str] = {}
    while (header := stream.take(_BLOCK)) and header != bytes(_BLOCK):
        size, kind = _checked(header), header[156:157]
        if kind in {b"L", b"x", b"X", b"g"}:
            data = stream.small(size)
            if kind == b"L":
                long_name = _text(data.rstrip(b"\0"))
            elif kind != b"g":
                attributes = _pax(data)
            continue
        if kind == b"K":
            stream.small(size)
            continue
        if any(name.startswith("GNU.sparse") for name in attributes):
            refused("a sparse file")
        name = attributes.get("path") or long_name or _ustar_name(header)
        if "size" in attributes:
            size = _number(attributes["size"])
        long_name, attributes = None, {}
        if not name or "\0" in name or "\\" in name:
            refused(f"the name {shown(name)}")
        what = _KINDS.get(kind, "a member of an unknown kind")
        stream.open(size if what == "file" else 0)
        yield Member(name, "folder" if what == "file" and name.endswith("/") and not size else what, stream.pieces)
        stream.close()


class _Stream:
    """Bytes in blocks, of which the current member may take its part."""

    def __init__(self, pieces: Iterator[bytes], meter: Meter) -> None:
        self._pieces, self._meter = pieces, meter
        self._buffer = b""
        self._left = self._padding = 0

    def take(self, size: int) -> bytes:
        """Exactly so many bytes, or nothing at the end."""
        while len(self._buffer) < size:
            piece = next(self._pieces, b"")
            if not piece:
                if self._buffer:
                    invalid("it ends too early")
                return b""
            self._buffer += piece
        self._meter.count(size)
        data, self._buffer = self._buffer[:size], self._buffer[size:]
        return data

    def small(self, size: int) -> bytes:
        """The bytes of a header that holds names."""
        if size > _MAX_HEADER:
            invalid("a name in it is far too long")
        data = self.take(size + -size % _BLOCK)
        if size and not data:
            invalid("it ends too early")
        return data[:size]

    def open(self, size: int) -> None:
        """Begin a member of this size."""
        self._left, self._padding = size, -size % _BLOCK

    def pieces(self) -> Iterator[bytes]:
        """The member's bytes."""
        while self._left:
            if not self._buffer:
                self._buffer = next(self._pieces, b"") or invalid("it ends too early")
            piece, self._buffer = self._buffer[: self._left], self._buffer[self._left :]
            self._left -= len(piece)
            yield piece

    def close(self) -> None:
        """Step over what was not taken, which counts too, and over the padding."""
        for piece in self.pieces():
            self._meter.count(len(piece))
        self.take(self._padding)


def _plain(file: BinaryIO) -> Iterator[bytes]:
    while piece := file.read(_CHUNK):
        yield piece


def _gunzipped(file: BinaryIO, meter: Meter) -> Iterator[bytes]:
    """What comes out of a gzip file, in pieces that are no larger than what may still come."""
    inflate = zlib.decompressobj(zlib.MAX_WBITS | 16)
    rest = b""
    try:
        while True:
            rest = rest or file.read(_CHUNK)
            if inflate.eof:
                if not rest:
                    return
                inflate = zlib.decompressobj(zlib.MAX_WBITS | 16)  # another member: gzip files may be joined
            piece = inflate.decompress(rest, min(_CHUNK, meter.left + 2 * _BLOCK))
            if not rest and not piece and not inflate.eof:
                invalid("it ends too early")
            rest = inflate.unused_data if inflate.eof else inflate.unconsumed_tail
            if piece:
                yield piece
    except zlib.error:
        invalid("its compression is damaged")


def _checked(header: bytes) -> int:
    """The size in a header whose checksum holds."""
    total = sum(header) - sum(header[148:156]) + 8 * 32
    if _octal(header[148:156]) != total:
        invalid("a header in it is damaged")
    return _octal(header[124:136])


def _octal(field: bytes) -> int:
    text = field.rstrip(b"\0 ").lstrip(b" ")
    if not text or len(text) > 12 or any(byte not in b"01234567" for byte in text):
        invalid("a number in it is damaged")
    return int(text, 8)


def _number(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > _LONGEST_NUMBER:
        invalid("a number in it is damaged")
    return int(text)


def _ustar_name(header: bytes) -> str:
    name = header[:100].partition(b"\0")[0]
    prefix = header[345:500].partition(b"\0")[0] if header[257:263] == b"ustar\0" else b""
    return _text(prefix + b"/" + name if prefix else name)


def _pax(data: bytes) -> dict[str, str]:
    """Records of the form `LENGTH KEY=VALUE\\n`."""
    found = {}
    while data:
        length, _, _ = data.partition(b" ")
        if not length.isdigit() or len(length) > _LONGEST_NUMBER or not len(length) + 3 <= int(length) <= len(data):
            invalid("a header in it is damaged")
        record, data = data[len(length) + 1 : int(length)], data[int(length) :]
        key, _, value = record.removesuffix(b"\n").partition(b"=")
        found[_text(key)] = _text(value)
    return found


def _text(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        refused("a name that is not UTF-8")
