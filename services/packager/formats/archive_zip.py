"""Members of a ZIP file, by its central directory: what is not in it does not exist. Stored or deflated; not encrypted, not ZIP64.

Members may not overlap, so that nothing comes out twice, and the local header must name the same file. APPNOTE.TXT 6.3.
"""

from __future__ import annotations

import stat
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from services.packager.formats.archive_members import Caps, Member, Meter, invalid, plain_pieces, read_at, refused, shown, too_large

_END = struct.Struct("<4s4H2IH")
_ENTRY = struct.Struct("<4s6H3I5H2I")
_LOCAL = struct.Struct("<4s5H3I2H")
_MAX_COMMENT = 0xFFFF
_CHUNK = 64 * 1024
_STORED, _DEFLATED = 0, 8
_ENCRYPTED = 0x0001 | 0x0040 | 0x2000


@dataclass(frozen=True, slots=True)
class _Entry:
    name: bytes
    flags: int
    method: int
    crc: int
    packed: int
    size: int
    mode: int
    offset: int


def members(file: BinaryIO, caps: Caps, meter: Meter) -> Iterator[Member]:
    """Yield the members in the order of the directory. Raises `ModelRejected`."""
    entries = list(_entries(file, caps))
    ends = 0
    for entry in sorted(entries, key=lambda one: one.offset):
        if entry.offset < ends:
            refused("members that overlap")
        ends = entry.offset + _LOCAL.size + len(entry.name) + entry.packed
    for entry in entries:
        name = _name(entry)
        yield Member(name, _kind(entry, name), lambda entry=entry: _pieces(file, entry, meter))  # type: ignore[misc]


def _entries(file: BinaryIO, caps: Caps) -> Iterator[_Entry]:
    """Read the central directory, at most as many entries as are taken."""
    size = file.seek(0, 2)
    tail_at = max(0, size - _END.size - _MAX_COMMENT)
    tail = read_at(file, tail_at, size - tail_at)
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or len(tail) - at < _END.size:
        invalid("its directory is missing")
    _, disk, first_disk, here, count, length, start, _ = _END.unpack_from(tail, at)
    if 0xFFFF in {here, count} or 0xFFFFFFFF in {length, start}:
        too_large("it is in the form for archives over 4 GiB")
    if disk or first_disk or here != count or start + length > tail_at + at:
        invalid("its directory is damaged")
    if count > caps.members:
        too_large(f"it has more than {caps.members} members")
    place = start
    for _ in range(count):
        fields = _ENTRY.unpack(read_at(file, place, _ENTRY.size))
        signature, _, _, flags, method, _, _, crc, packed, unpacked, name_size, extra_size, comment_size, _, _, attributes, offset = fields
        if signature != b"PK\x01\x02" or place + _ENTRY.size + name_size > start + length:
            invalid("its directory is damaged")
        name = read_at(file, place + _ENTRY.size, name_size)
        yield _Entry(name, flags, method, crc, packed, unpacked, attributes >> 16, offset)
        place += _ENTRY.size + name_size + extra_size + comment_size


def _name(entry: _Entry) -> str:
    try:
        name = entry.name.decode("utf-8")
    except UnicodeDecodeError:
        refused("a name that is not UTF-8")
    if not name or "\0" in name or "\\" in name:
        refused(f"the name {shown(name)}")
    return name


def _kind(entry: _Entry, name: str) -> str:
    kind = stat.S_IFMT(entry.mode)
    if name.endswith("/"):
        return "folder" if kind in {0, stat.S_IFDIR} and not entry.size else "a folder that is none"
    if kind == stat.S_IFLNK:
        return "a link"
    return "file" if kind in {0, stat.S_IFREG} else "a device, folder or pipe"


def _pieces(file: BinaryIO, entry: _Entry, meter: Meter) -> Iterator[bytes]:
    """The bytes of a member, checked against its size and checksum at the end."""
    if entry.flags & _ENCRYPTED:
        refused(f"an encrypted member, {shown(entry.name.decode('utf-8', 'replace'))}")
    signature, _, _, method, _, _, _, _, _, name_size, extra_size = _LOCAL.unpack(read_at(file, entry.offset, _LOCAL.size))
    if signature != b"PK\x03\x04" or method != entry.method or read_at(file, entry.offset + _LOCAL.size, name_size) != entry.name:
        invalid("its directory and its members do not agree")
    place = entry.offset + _LOCAL.size + name_size + extra_size
    crc, size = 0, 0
    for piece in _content(file, entry, place, meter):
        crc, size = zlib.crc32(piece, crc), size + len(piece)
        if size > entry.size:
            break
        yield piece
    if (crc, size) != (entry.crc, entry.size):
        invalid(f"{shown(entry.name.decode('utf-8', 'replace'))} is damaged")


def _content(file: BinaryIO, entry: _Entry, place: int, meter: Meter) -> Iterator[bytes]:
    if entry.method == _STORED:
        yield from plain_pieces(file, place, entry.packed)
        return
    if entry.method != _DEFLATED:
        refused(f"a member in the compression {entry.method}; only stored and deflated ones are taken")
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        for packed in plain_pieces(file, place, entry.packed):
            rest = packed
            while rest and not inflate.eof:
                piece = inflate.decompress(rest, min(_CHUNK, meter.left))
                rest = inflate.unconsumed_tail
                yield piece
        while not inflate.eof and (piece := inflate.decompress(b"", min(_CHUNK, meter.left))):
            yield piece
    except zlib.error:
        invalid(f"{shown(entry.name.decode('utf-8', 'replace'))} is damaged")
