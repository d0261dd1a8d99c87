"""Resource limits that a child puts on itself before it reads any input."""

from __future__ import annotations

import os
import resource
from collections.abc import Mapping
from pathlib import Path

_LINUX = os.uname().sysname == "Linux"
_LIMITS = {
    "memory_bytes": resource.RLIMIT_AS,
    "cpu_seconds": resource.RLIMIT_CPU,
    "file_bytes": resource.RLIMIT_FSIZE,
    "open_files": resource.RLIMIT_NOFILE,
    "processes": resource.RLIMIT_NPROC,
}


def limit_self(limits: Mapping[str, int]) -> None:
    """Set this process's resource limits for good; keys as in `_LIMITS`. Core files are never written.

    `processes` is how many more processes and threads the user may have than it has now. The kernel does not hold root to it, so the
    guard counts too.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for name, wanted in limits.items():
        more = _of_this_user() if name == "processes" else 0
        _, hard = resource.getrlimit(_LIMITS[name])
        value = wanted + more if hard == resource.RLIM_INFINITY else min(wanted + more, hard)
        try:
            resource.setrlimit(_LIMITS[name], (value, value))
        except (OSError, ValueError):
            if _LINUX:
                raise


def _of_this_user() -> int:
    """Count the threads of this user that can be seen: those of other namespaces do not count."""
    found = 0
    try:
        entries = list(Path("/proc").iterdir())
    except OSError:
        return 0
    for entry in entries:
        if entry.name.isdigit():
            try:
                found += sum(1 for _ in (entry / "task").iterdir()) if entry.stat().st_uid == os.getuid() else 0
            except OSError:
                continue
    return found
