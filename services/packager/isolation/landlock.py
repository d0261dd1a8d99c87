"""Takes the file system away from this process, but for named folders and files (Landlock, `landlock(7)`), and all capabilities.

Needs no privilege. Landlock watches what is opened, made, moved and removed; what it does not watch (modes, owners, times, attributes)
`seccomp` denies.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import stat
import struct
from collections.abc import Iterable
from pathlib import Path

#: The first that also watches `truncate(2)` (Linux 6.2): below it a file that must not be opened could still be emptied.
LEAST_ABI = 3

_CREATE, _ADD, _RESTRICT = 444, 445, 446
_ASK_VERSION = 1
_PR_SET_NO_NEW_PRIVS, _PR_CAPBSET_DROP, _PR_CAP_AMBIENT, _CLEAR_ALL = 38, 24, 47, 4
_LAST_CAPABILITY = 63

_WRITE_FILE, _READ_FILE, _READ_DIR, _REMOVE_DIR, _REMOVE_FILE = 1 << 1, 1 << 2, 1 << 3, 1 << 4, 1 << 5
_MAKE_DIR, _MAKE_REG, _REFER, _TRUNCATE = 1 << 7, 1 << 8, 1 << 13, 1 << 14
_READ = _READ_FILE | _READ_DIR
#: Folders and plain files: no links, pipes, sockets, devices.
_WRITE = _READ | _WRITE_FILE | _REMOVE_DIR | _REMOVE_FILE | _MAKE_DIR | _MAKE_REG | _REFER | _TRUNCATE
_OF_FILES = _WRITE_FILE | _READ_FILE | _TRUNCATE


class LandlockUnavailable(Exception):
    """The kernel has no Landlock, or one that is too old."""


def abi() -> int:
    """Return the version of Landlock that the kernel has; 0 when none."""
    return max(0, int(_libc().syscall(_CREATE, None, ctypes.c_size_t(0), ctypes.c_uint(_ASK_VERSION))))


def restrict(read: Iterable[str], write: Iterable[str]) -> None:
    """Leave this thread, and what it starts from now on, only these folders and files; those that are not there are left out.

    No network and no signals to others either, where the kernel's version watches them. Call it while the process has one thread.
    Raises `LandlockUnavailable`.
    """
    version = abi()
    if version < LEAST_ABI:
        raise LandlockUnavailable(f"Landlock {version}; needed is {LEAST_ABI} (Linux 6.2)")
    files = (1 << 16) - 1 if version >= 5 else (1 << 15) - 1
    # Everything that this version knows is denied unless a rule below allows it: TCP (4), abstract sockets and signals (6).
    attributes = struct.pack("=QQQ", files, 3 if version >= 4 else 0, 3 if version >= 6 else 0)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    libc = _libc()
    rules = libc.syscall(_CREATE, attributes, ctypes.c_size_t(size), ctypes.c_uint(0))
    if rules < 0:
        raise LandlockUnavailable(f"Landlock: {os.strerror(ctypes.get_errno())}")
    try:
        for paths, rights in ((read, _READ), (write, _WRITE)):
            for path in paths:
                _allow(libc, rules, path, rights)
        libc.prctl(_PR_SET_NO_NEW_PRIVS, ctypes.c_ulong(1), 0, 0, 0)
        if libc.syscall(_RESTRICT, rules, ctypes.c_uint(0)) != 0:
            raise LandlockUnavailable(f"Landlock: {os.strerror(ctypes.get_errno())}")
    finally:
        os.close(rules)


def drop_capabilities() -> None:
    """Give up every capability for good: root is then no more than the owner of root's files."""
    libc = _libc()
    for number in range(_LAST_CAPABILITY + 1):
        libc.prctl(_PR_CAPBSET_DROP, ctypes.c_ulong(number), 0, 0, 0)
    libc.prctl(_PR_CAP_AMBIENT, ctypes.c_ulong(_CLEAR_ALL), 0, 0, 0)
    # Version 3 of the header, this process; two words each of effective, permitted and inheritable.
    if libc.capset(struct.pack("=Ii", 0x20080522, 0), bytes(24)) != 0:
        raise OSError(ctypes.get_errno(), "capset")


def capabilities() -> int:
    """Return the effective capabilities of this process as a mask."""
    found = (ctypes.c_uint32 * 6)()
    _libc().capget(struct.pack("=Ii", 0x20080522, 0), found)
    return int(found[0]) | int(found[3]) << 32


def _allow(libc: ctypes.CDLL, rules: int, path: str, rights: int) -> None:
    with contextlib.suppress(FileNotFoundError):
        handle = os.open(Path(path), os.O_PATH | os.O_CLOEXEC)
        try:
            if not stat.S_ISDIR(os.fstat(handle).st_mode):
                rights &= _OF_FILES
            if libc.syscall(_ADD, rules, ctypes.c_uint(1), struct.pack("=Qi", rights, handle), ctypes.c_uint(0)) != 0:
                raise LandlockUnavailable(f"Landlock: {os.strerror(ctypes.get_errno())}")
        finally:
            os.close(handle)


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
