"""A process between the service and a child, which outlives the child and cleans up.

What the service starts is the guard. It forks the worker before anything else is loaded, waits for it, and kills whatever the worker
left running, also what moved into another session, because the guard is the reaper of its descendants (`prctl(2)`). When the service
dies, the kernel tells the guard, so that nothing goes on without an owner. It parses nothing and reads no input. Only Linux has all of
it; elsewhere (a laptop) the worker and what stays in its process group are killed. A warm parent (`warm.py`) stands below one such
guard, and forks another one for each of its jobs.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

_LINUX = os.uname().sysname == "Linux"
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_NO_NEW_PRIVS = 38

_LOOK_S = 0.05
_WATCHED = {signal.SIGTERM, signal.SIGCHLD}


def main() -> None:
    """Entry point: `guard <pid of the service> <the child's command, processes and threads it may have, descriptor it is given>`."""
    command, most_threads, given = json.loads(sys.argv[2])
    # Whatever else the service's libraries left open for programs that it starts.
    last = 3 if given is None else given
    os.closerange(3, last)
    os.closerange(last + (given is not None), os.sysconf("SC_OPEN_MAX"))
    sys.exit(guard(lambda: os.execve(command[0], command, {}), int(sys.argv[1]), most_threads))  # noqa: S606 - the command is the service's own


def guard(work: Callable[[], int], parent: int, most_threads: int, stop: Callable[[], bool] = lambda: False) -> int:
    """Run `work` in a forked worker and return its exit status: what it returned, or 128 + signal.

    Args:
        work: called in the worker; its return value is the exit status.
        parent: process id of who started us; when it is not our parent any more, everything ends.
        most_threads: of the worker and all that it started. The kernel's own limit on processes does not hold root.
        stop: asked every few moments; True ends everything.
    """
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    signal.pthread_sigmask(signal.SIG_BLOCK, _WATCHED)
    worker = os.fork()
    if worker == 0:
        os._exit(_work(work, os.getppid()))
    os.close(0)
    os.close(1)
    ended = None
    while os.getppid() == parent:
        ended = _reap(worker)
        if ended is not None or _asked_to_stop() or stop():
            break
        if _threads_below(worker) > most_threads:
            os.write(2, b"too many processes and threads\n")
            break
    if ended is None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker, signal.SIGKILL)
    _kill_descendants()
    return 128 + signal.SIGTERM if ended is None else ended


def _asked_to_stop() -> bool:
    """Wait for a signal, a moment at most. Return whether it was the one that ends everything."""
    if _LINUX:
        arrived = signal.sigtimedwait(_WATCHED, _LOOK_S)
        return arrived is not None and arrived.si_signo == signal.SIGTERM
    time.sleep(0.02)
    return signal.SIGTERM in signal.sigpending()


def _work(work: Callable[[], int], guard_pid: int) -> int:
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _WATCHED)
    if os.getppid() != guard_pid:
        return 128 + signal.SIGKILL
    return work()


def _reap(worker: int) -> int | None:
    """Collect ended children; return the worker's exit status when it is among them."""
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return None
            if pid == worker:
                code = os.waitstatus_to_exitcode(status)
                return code if code >= 0 else 128 - code
    return None


def _kill_descendants() -> None:
    """Kill and collect all children until there are none: the children of a killed one become ours."""
    while True:
        for pid in _children(os.getpid()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(0.005)


def _threads_below(pid: int) -> int:
    """Count the threads of a process and of all its descendants; what just ended counts as none."""
    total, rest = 0, [pid]
    while rest:
        task = Path(f"/proc/{(one := rest.pop())}")
        with contextlib.suppress(OSError, ValueError, IndexError):
            total += int((task / "stat").read_text("latin-1").rpartition(")")[2].split()[17])
            rest += [int(child) for child in (task / "task" / str(one) / "children").read_text().split()]
    return total


def _children(parent: int) -> list[int]:
    found: list[int] = []
    if not _LINUX:
        return found
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError):
                # "pid (name) state ppid …": the name may hold anything, so look behind its last bracket.
                if int((entry / "stat").read_text("latin-1").rpartition(")")[2].split()[1]) == parent:
                    found.append(int(entry.name))
    return found


def _prctl(option: int, value: int) -> None:
    if _LINUX:
        ctypes.CDLL(None, use_errno=True).prctl(option, ctypes.c_ulong(value), 0, 0, 0)
