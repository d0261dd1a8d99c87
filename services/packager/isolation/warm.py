"""A warm parent: imports the libraries of one runtime once, and forks a child for each job.

The parent is clean: it is started like a child, with an empty environment, behind walls of its own; it reads no job, no model and nothing
that a child wrote. From the service it hears which folder and which descriptors the next child gets (`parents.py` is that side). Per job
it forks a guard (`guard.py`), which forks the worker and counts its threads, kills it when the service hangs up, and tells the service
how it ended. The worker takes the same walls upon itself as a one-shot child and ends with its job. It has none of the descriptors of
others, cannot name or signal its guard or its parent, and what it changes of the inherited memory is its own copy.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from services.packager.isolation import landlock, namespaces, seccomp
from services.packager.isolation.guard import guard
from services.packager.isolation.limits import limit_self

_MAX_REQUEST = 64 * 1024
#: Descriptors that come with a request, in this order: the job, the answer, the console, the line to the guard.
_GIVEN = 4
_SHOWN = 2000

#: What a worker does when its walls stand: the settings it was asked with, to its exit status.
Work = Callable[[Mapping[str, Any]], int]


def serve(settings: Mapping[str, Any], work: Work) -> NoReturn:
    """Import, say that the parent is ready (or why not), and fork until the service hangs up. Ends the process.

    Args:
        settings: `channel`, the socket to the service; `strong`, whether children get namespaces of their own; `modules` to import;
            `reach`, what Landlock leaves the parent to (read, write), or null.
        work: called in each worker.
    """
    channel = socket.socket(fileno=settings["channel"])
    fault = _prepare(settings)
    os.write(channel.fileno(), json.dumps({"fault": fault}).encode())
    if fault is not None:
        os._exit(1)
    # Children that ended need no collecting; what was imported is not looked through again in every child.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    sys.stdout.flush()
    sys.stderr.flush()
    gc.collect()
    gc.freeze()
    while True:
        request, given, _, _ = socket.recv_fds(channel, _MAX_REQUEST, _GIVEN)
        if not request:
            os._exit(0)
        try:
            child = os.fork()
        except OSError:
            # The line to the guard that never was is closed: the service sees it.
            child = -1
        if child == 0:
            _guard(settings, json.loads(request), given, work)
        for handle in given:
            os.close(handle)


def _prepare(settings: Mapping[str, Any]) -> str | None:
    """Take the parent's own rights away and import. Return why it cannot be a parent."""
    try:
        limit_self({})
        if settings["reach"] is not None:
            landlock.drop_capabilities()
            landlock.restrict(*settings["reach"])
        seccomp.install(parent=True)
        for module in settings["modules"]:
            import_module(module)
        return _unfit()
    except Exception:
        return traceback.format_exc()[-_SHOWN:]


def _unfit() -> str | None:
    """Return what importing left behind that must not be forked."""
    maps = [line.split(maxsplit=5) for line in Path("/proc/self/maps").read_text().splitlines()]
    if shared := [words[-1] for words in maps if "w" in words[1] and "s" in words[1]]:
        return f"importing left memory that children would share: {shared}"
    # A fork copies one thread; locks that others hold would stay shut for ever.
    threads = len(list(Path("/proc/self/task").iterdir()))
    return None if threads == 1 else f"importing left {threads} threads"


def _guard(settings: Mapping[str, Any], request: Mapping[str, Any], given: list[int], work: Work) -> NoReturn:
    """Guard one worker, and tell the service its exit status. Ends the process."""
    status = None
    try:
        parent = os.getppid()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()
        line = _take_over(given)

        def hung_up() -> bool:
            try:
                return line.recv(1, socket.MSG_DONTWAIT) == b""
            except BlockingIOError:
                return False

        if settings["strong"]:
            namespaces.part()
        ended = guard(lambda: _worker(settings, request, line, work), parent, request["processes"], hung_up)
        # Without a parent the worker was ended for no fault of its own.
        status = ended if os.getppid() == parent else None
        if status is not None:
            os.write(line.fileno(), str(status).encode())
    finally:
        os._exit(0)


def _take_over(given: list[int]) -> socket.socket:
    """Make the given descriptors 0, 1, 2 and 3, close every other one, and return the line to the service."""
    high = [os.dup2(handle, 100 + number, inheritable=False) for number, handle in enumerate(given)]
    for number, handle in enumerate(high):
        os.dup2(handle, number, inheritable=number < 3)
    os.closerange(_GIVEN, os.sysconf("SC_OPEN_MAX"))
    return socket.socket(fileno=3)


def _worker(settings: Mapping[str, Any], request: Mapping[str, Any], line: socket.socket, work: Work) -> int:
    """Go into the job's folder and work. Nothing may get out of here: above it is the parent's code."""
    try:
        os.setsid()
        tempfile.tempdir = None
        if settings["strong"]:
            namespaces.enclose(request["folder"], request["limits"]["file_bytes"])
            folder = os.open("out", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            socket.send_fds(line, [b"out"], [folder])
        else:
            os.chdir(request["folder"])
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))
        return work(request)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        return 3
