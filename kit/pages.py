"""Gives back the pages of a large shared library that only its start used.

Loading chDB touches some 165 MB of its 540 MB file: constructors all over the text segment. These pages are clean copies of the file
(the kernel may drop them whenever it likes), but until it does they count as resident and weigh on a container's limit.
Linux only; elsewhere nothing happens.
"""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

_SMAPS = Path("/proc/self/smaps")
_MADV_DONTNEED = 4
_HEAD = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) (r-xp|r--p) \S+ \S+ \S+ +(\S.*)$")
_FIELD = re.compile(r"^(Rss|Anonymous|Private_Dirty): +(\d+) kB$")


def release_clean_pages(library: str) -> int:
    """Drop the resident pages of every read-only mapping of files whose name contains `library`; returns kibibytes.

    Only mappings without a private page are touched: what is dropped is read from the file again when it is needed, so nothing is lost
    (madvise(2), MADV_DONTNEED on a file mapping). Relocated data is private and stays.
    """
    if not _SMAPS.exists():
        return 0
    libc = ctypes.CDLL(None, use_errno=True)
    libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    released = 0
    for start, end, sizes in _clean_mappings(library):
        if libc.madvise(start, end - start, _MADV_DONTNEED) == 0:
            released += sizes["Rss"]
    return released


def _clean_mappings(library: str) -> list[tuple[int, int, dict[str, int]]]:
    found: list[tuple[int, int, dict[str, int]]] = []
    sizes: dict[str, int] | None = None
    for line in _SMAPS.read_text().splitlines():
        head = _HEAD.match(line)
        if head is not None:
            sizes = {}
            if library in Path(head.group(4)).name:
                found.append((int(head.group(1), 16), int(head.group(2), 16), sizes))
        elif sizes is not None and (one := _FIELD.match(line)) is not None:
            sizes[one.group(1)] = int(one.group(2))
        elif "-" in line.partition(" ")[0]:
            sizes = None
    return [(start, end, sizes) for start, end, sizes in found if not sizes.get("Anonymous", 1) and not sizes.get("Private_Dirty", 1)]
