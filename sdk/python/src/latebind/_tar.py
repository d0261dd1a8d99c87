"""The one form of tar member that a bundle has: a regular file of a fixed mode and no owner, so that the same files are the same bytes.

Read by comparing with what a writer must have written, never by interpreting: there is no name, link, type or extension to be misled by.
Layout: POSIX.1-2017 pax, "ustar Interchange Format".
"""

from __future__ import annotations

BLOCK = 512
#: What eleven octal digits hold: 8 GiB less a byte.
MAX_SIZE = 8**11 - 1
#: Two empty blocks end an archive.
END = bytes(2 * BLOCK)

_SIZE = slice(124, 136)
_CHECKSUM = slice(148, 156)


def header(name: str, size: int) -> bytes:
    """The block before a file's bytes. `name` is ASCII, at most 100 characters. Raises ValueError for what does not fit."""
    encoded = name.encode("ascii")
    if not encoded or len(encoded) > 100 or not 0 <= size <= MAX_SIZE:
        raise ValueError(f"{name!r} with {size} bytes does not fit into a tar header")
    block = bytearray(BLOCK)
    block[: len(encoded)] = encoded
    block[100:108] = b"0000644\0"
    block[108:116] = block[116:124] = b"0000000\0"
    block[_SIZE] = b"%011o\0" % size
    block[136:148] = b"00000000000\0"
    block[_CHECKSUM] = b" " * 8
    block[156:157] = b"0"
    block[257:265] = b"ustar\x0000"
    block[_CHECKSUM] = b"%06o\0 " % sum(block)
    return bytes(block)


def size_in(block: bytes, name: str) -> int | None:
    """The size that a header gives, if it is exactly the header of this name with that size; else None."""
    digits = block[_SIZE][:11]
    if len(block) != BLOCK or not digits.isdigit() or b"8" in digits or b"9" in digits:
        return None
    size = int(digits, 8)
    return size if block == header(name, size) else None


def padding(size: int) -> bytes:
    """The zeros between a file's last byte and the next block."""
    return bytes(-size % BLOCK)
