"""Gives a forked child its own namespaces and its own view of the machine, below those that bubblewrap gave its warm parent.

The parent (`warm.py`, level `strong`) has the read-only file system that bubblewrap laid out, and in `/jobs` the folders of all jobs. It
may mount inside its own namespaces, and nothing else. Of that a child keeps: the same file system, the input of its own job, one folder
in memory with a cap, and no way back. What is set up here is what bubblewrap sets up for a one-shot child.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

#: Where the parent sees the folders of all jobs, and where a child sees its own.
JOBS, JOB = "/jobs", "/job"

_NEW_MOUNTS, _NEW_CGROUP, _NEW_UTS, _NEW_IPC = 0x00020000, 0x02000000, 0x04000000, 0x08000000
_NEW_USER, _NEW_PIDS, _NEW_NETWORK = 0x10000000, 0x20000000, 0x40000000
_READ_ONLY, _NO_SUID, _NO_DEVICES, _NO_PROGRAMS, _REMOUNT, _BIND, _DETACH = 1, 2, 4, 8, 32, 4096, 2
#: What of /proc can be written by who has the rights; bubblewrap covers the same.
_COVERED = ("sys", "sysrq-trigger", "irq", "bus")


def part() -> None:
    """Leave the parent's network, objects of IPC, host name and control group; the next process that is forked is alone in a namespace."""
    _check(_libc().unshare(_NEW_PIDS | _NEW_NETWORK | _NEW_IPC | _NEW_UTS | _NEW_CGROUP), "unshare")


def enclose(name: str, output_bytes: int) -> None:
    """Lay out the file system of the job in the folder `name`, and go into its folder. Call it as process 1 of a namespace, after `part`.

    Afterwards there are `in` (read-only), `out` and `tmp` (in memory, `output_bytes` together), a `/proc` of this process alone, and
    no other job. The process is in a user namespace of its own, where no further one can be made.
    """
    _check(_libc().unshare(_NEW_MOUNTS), "unshare")
    _mount("tmpfs", JOB, "tmpfs", _NO_SUID | _NO_DEVICES, f"size={output_bytes},mode=0755")
    for folder in ("in", "out", "tmp"):
        Path(JOB, folder).mkdir()
    _mount(f"{JOBS}/{name}/in", f"{JOB}/in", None, _BIND)
    _mount(None, f"{JOB}/in", None, _REMOUNT | _BIND | _READ_ONLY | _NO_SUID | _NO_DEVICES)
    _check(_libc().umount2(JOBS.encode(), _DETACH), "umount")
    _mount("proc", "/proc", "proc", _NO_SUID | _NO_DEVICES | _NO_PROGRAMS)
    settings = os.open("/proc/sys", os.O_PATH | os.O_CLOEXEC)
    for path in (f"/proc/{one}" for one in _COVERED):
        if Path(path).exists():
            _mount(path, path, None, _BIND)
            _mount(None, path, None, _REMOUNT | _BIND | _READ_ONLY | _NO_SUID | _NO_DEVICES | _NO_PROGRAMS)
    os.chdir(JOB)
    user, group = os.getuid(), os.getgid()
    _check(_libc().unshare(_NEW_USER), "unshare")
    for file, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
        Path("/proc/self", file).write_text(text)
    # Looked up now, through the way that is not covered: it is the new namespace's own setting.
    handle = os.open("user/max_user_namespaces", os.O_WRONLY | os.O_CLOEXEC, dir_fd=settings)
    os.write(handle, b"0\n")
    os.close(handle)
    os.close(settings)


def _mount(source: str | None, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    words = [None if word is None else word.encode() for word in (source, target, kind)]
    data = None if options is None else options.encode()
    _check(_libc().mount(*words, ctypes.c_ulong(flags), data), f"mount {target}")


def _check(result: int, what: str) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
