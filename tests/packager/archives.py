"""Archives for tests: honest ones by Python's own modules, hostile ones byte by byte."""

from __future__ import annotations

import gzip
import io
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping

SAVED_MODEL = {
    "model/saved_model.pb": b"graph",
    "model/variables/variables.index": b"index",
    "model/variables/variables.data-00000-of-00001": bytes(range(256)) * 40,
    "model/assets/labels.txt": b"cat\ndog\n",
}


def zipped(files: Mapping[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def tarred(files: Mapping[str, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def tar_header(name: bytes, size: int = 0, kind: bytes = b"0", link: bytes = b"", size_field: bytes | None = None) -> bytes:
    """A ustar header with anything in it, and the checksum that belongs to it."""
    block = bytearray(512)
    block[: len(name[:100])] = name[:100]
    block[100:108] = b"0000644\0"
    block[108:116] = block[116:124] = b"0000000\0"
    block[124:136] = (size_field if size_field is not None else b"%011o\0" % size).ljust(12, b"\0")[:12]
    block[136:148] = b"00000000000\0"
    block[148:156] = b" " * 8
    block[156:157] = kind
    block[157 : 157 + len(link[:100])] = link[:100]
    block[257:265] = b"ustar\x0000"
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def tar_member(name: bytes, data: bytes = b"x", kind: bytes = b"0", link: bytes = b"") -> bytes:
    return tar_header(name, len(data), kind, link) + data + bytes(-len(data) % 512)


def pax_header(records: bytes) -> bytes:
    return tar_header(b"x", len(records), b"x") + records + bytes(-len(records) % 512)


def zip_entry(
    name: bytes,
    data: bytes = b"x",
    *,
    local: bytes | None = None,
    flags: int = 0,
    method: int = 0,
    mode: int = 0,
    size: int | None = None,
    crc: int | None = None,
    packed: bytes | None = None,
) -> tuple[bytes, bytes, tuple[int, ...]]:
    """Local part, name and the numbers of the directory entry: what an archive says and what it holds may differ."""
    packed = data if packed is None else packed
    crc = zlib.crc32(data) if crc is None else crc
    size = len(data) if size is None else size
    local = name if local is None else local
    part = struct.pack("<4s5H3I2H", b"PK\x03\x04", 20, flags, method, 0, 0, crc, len(packed), size, len(local), 0) + local + packed
    return part, name, (flags, method, crc, len(packed), size, mode)


def zip_of(*entries: tuple[bytes, bytes, tuple[int, ...]], offsets: list[int] | None = None, count: int | None = None) -> bytes:
    body, directory, places = b"", b"", []
    for part, _, _ in entries:
        places.append(len(body))
        body += part
    for (_, name, (flags, method, crc, packed, size, mode)), place in zip(entries, offsets or places, strict=True):
        versions, no_extra = (3 << 8 | 20, 20), (0, 0, 0, 0)
        numbers = (*versions, flags, method, 0, 0, crc, packed, size, len(name), *no_extra, mode << 16, place)
        directory += struct.pack("<4s6H3I5H2I", b"PK\x01\x02", *numbers) + name
    number = len(entries) if count is None else count
    return body + directory + struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, number, number, len(directory), len(body), 0)


def deflated(data: bytes) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return packer.compress(data) + packer.flush()


#: Names that lead out of a folder, or mean something else on some system.
EVIL_NAMES = [
    b'../outside', b'../../outside', b'a/../../outside', b'/etc/passwd', b'//etc/passwd', b'a//b', b'a/./b', b'..', b'a/..',
    b'..\\outside', b'a\\..\\..\\outside', b'C:\\outside', b'C:outside', b'\\\\server\\share', b'a:b', b'~/x', b'~root/x',
    b'a\nb', b'a\x1b[2Jb', b'a\tb', b' a', b'a ', b'a.', b'a/b./c', b'.hidden', b'a/.git/config', b'con\xc3\xa9', b'\xff\xfe',
    b'a*b', b'a?b', b'a|b', b'a"b', b'a<b', b'$HOME/x', b'%TEMP%/x', b'`id`', b'a;b', b'a/a/a/a/a/a/a/a/a',
    b'\xe2\x80\xaegnp.exe', b'\xef\xbd\x81', b'a\x7fb',
    b"-" * 129, b"x" * 129, b"/".join([b"a"] * 9), b"/".join([b"a" * 100, b"b" * 100, b"c" * 101]),
]  # fmt: skip


def hostile() -> Iterator[tuple[str, bytes]]:
    """(what it is, the archive): none of them may be unpacked."""
    for name in EVIL_NAMES:
        yield f"zip name {name!r}", zip_of(zip_entry(name))
        yield f"zip second name {name!r}", zip_of(zip_entry(b"good.txt"), zip_entry(name))
        if len(name) <= 100:
            yield f"tar name {name!r}", tar_member(name) + bytes(1024)
        pax = b" path=" + name + b"\n"
        length = len(pax) + 2 if len(pax) + 2 < 100 else len(pax) + 3
        record = str(length).encode() + pax
        yield (
            f"pax path {name!r}",
            tar_header(b"x", len(record), b"x") + record + bytes(-len(record) % 512) + tar_member(b"x") + bytes(1024),
        )
        long = tar_header(b"././@LongLink", len(name) + 1, b"L") + name + b"\0" + bytes(-(len(name) + 1) % 512)
        yield f"gnu long name {name!r}", gzip.compress(long + tar_member(b"x") + bytes(1024))
    yield "zip nul in a name", zip_of(zip_entry(b"a\0b"))
    yield "zip empty name", zip_of(zip_entry(b""))
    for kind in (b"1", b"2", b"3", b"4", b"6", b"S", b"M", b"V", b"Z", b"D"):
        yield f"tar kind {kind!r}", tar_member(b"good", b"") + tar_member(b"evil", b"", kind, b"/etc/passwd") + bytes(1024)
        yield f"tar kind {kind!r}, relative", tar_member(b"evil", b"", kind, b"../../x") + bytes(1024)
    for mode in (0o120777, 0o020666, 0o060666, 0o010666, 0o140777, 0o040755):
        yield f"zip mode {mode:o}", zip_of(zip_entry(b"evil", b"/etc/passwd", mode=mode))
    yield "a link, then a file through it", tar_member(b"d", b"", b"2", b"/tmp") + tar_member(b"d/evil") + bytes(1024)
    for first, second in ((b"a", b"a"), (b"a", b"A"), (b"a", b"a/b"), (b"a/b", b"a"), (b"A/b", b"a"), (b"./a", b"a")):
        yield f"tar twice {first!r} {second!r}", tar_member(first) + tar_member(second) + bytes(1024)
        yield f"zip twice {first!r} {second!r}", zip_of(zip_entry(first), zip_entry(second))
    yield "zip encrypted", zip_of(zip_entry(b"a", flags=1))
    yield "zip strongly encrypted", zip_of(zip_entry(b"a", flags=0x40))
    yield "zip with a hidden directory", zip_of(zip_entry(b"a", flags=0x2000))
    for method in (1, 6, 9, 12, 14, 93, 95, 99):
        yield f"zip method {method}", zip_of(zip_entry(b"a", method=method))
    yield "zip local name differs", zip_of(zip_entry(b"good", local=b"evil"))
    yield "zip wrong checksum", zip_of(zip_entry(b"a", crc=1))
    yield "zip says less than it has", zip_of(zip_entry(b"a", b"x" * 100, size=1))
    yield "zip says more than it has", zip_of(zip_entry(b"a", b"x", size=1 << 31))
    yield "zip deflate that ends early", zip_of(zip_entry(b"a", bytes(9999), method=8, packed=deflated(bytes(9999))[:5]))
    yield "zip deflate that is none", zip_of(zip_entry(b"a", b"x" * 99, method=8, packed=b"\xff" * 99))
    one = zip_entry(b"a", b"x" * 1000)
    yield "zip members that overlap", zip_of(one, one, offsets=[0, 0])
    yield "zip members that overlap a little", zip_of(one, zip_entry(b"b", b"y"), offsets=[0, 900])
    yield "zip offset outside", zip_of(zip_entry(b"a"), offsets=[1 << 30])
    yield "zip offset into the directory", zip_of(zip_entry(b"a"), offsets=[40])
    yield "zip count too high", zip_of(zip_entry(b"a"), count=2)
    yield "zip count for zip64", zip_of(zip_entry(b"a"), count=0xFFFF)
    yield "zip of nothing", zip_of()
    yield "zip without a directory", zip_entry(b"a")[0] + bytes(100)
    for size in (b"-0000000001", b"99999999999", b"0x10", b"\x80" + bytes(10) + b"\x01", b"\xff" * 12, b"", b" " * 12, b"77777777777"):
        yield f"tar size {size!r}", tar_header(b"a", size_field=size) + b"x" * 512 + bytes(1024)
    broken = bytearray(tar_member(b"a"))
    broken[148] ^= 1
    yield "tar wrong checksum", bytes(broken) + bytes(1024)
    for record in (b"5 a", b"99 path=x\n", b"0 \n", b"-1 path=x\n", b"x path=y\n", b"\n" * 99, b"9" * 30 + b" path=x\n", b"12 size=-5\n\n"):
        yield (
            f"pax record {record!r}",
            tar_header(b"x", len(record), b"x") + record + bytes(-len(record) % 512) + tar_member(b"x") + bytes(1024),
        )
    yield "pax sparse", tar_header(b"x", 24, b"x") + b"24 GNU.sparse.size=9999\n" + bytes(488) + tar_member(b"x") + bytes(1024)
    yield "pax header of a gigabyte", tar_header(b"x", 1 << 30, b"x") + bytes(4096)
    yield "long name of a gigabyte", tar_header(b"x", 1 << 30, b"L") + bytes(4096)
    yield "gzip cut off", gzip.compress(tarred(SAVED_MODEL))[:-30]
    yield "gzip of a gzip", gzip.compress(gzip.compress(tarred(SAVED_MODEL)))
    yield "gzip of no tar", gzip.compress(b"hello" * 999)
    for cut in range(600, len(tarred(SAVED_MODEL)) - 10_240, 911):
        yield f"tar cut at {cut}", tarred(SAVED_MODEL)[:cut]
    for cut in range(30, len(zipped(SAVED_MODEL)), 97):
        yield f"zip cut at {cut}", zipped(SAVED_MODEL)[:cut]


def bombs() -> Iterator[tuple[str, bytes]]:
    """(what it is, the archive): each would write or read far more than the cap of the tests."""
    zeros = bytes(32 << 20)
    yield "one large deflated member", zip_of(zip_entry(b"a", zeros, method=8, packed=deflated(zeros)))
    yield "a gzip of zeros in a tar", gzip.compress(tar_member(b"a", zeros) + bytes(1024), 9)
    yield "litter of zeros, which is stepped over", gzip.compress(tar_member(b"__MACOSX/a", zeros) + tar_member(b"b") + bytes(1024), 9)
    yield "fifty thousand empty members", gzip.compress(tar_member(b"a/", b"", b"5") * 50_000 + bytes(1024), 1)
    yield "thirty thousand headers for nothing", gzip.compress(tar_member(b"g", b"9 a=bcd\n\n", b"g") * 30_000 + bytes(1024), 1)
    many = [zip_entry(b"f%d" % number) for number in range(3_000)]
    yield "three thousand members", zip_of(*many)
    yield (
        "many middle-sized members",
        zip_of(*[zip_entry(b"f%d" % n, zeros[: 4 << 20], method=8, packed=deflated(zeros[: 4 << 20])) for n in range(8)]),
    )
    yield "a size that lies small", zip_of(zip_entry(b"a", zeros, size=10, crc=0, method=8, packed=deflated(zeros)))
