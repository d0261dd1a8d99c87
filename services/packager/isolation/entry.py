"""The first code of a child: takes rights away from itself, then reads one job from stdin and answers it with one line of JSON.

Started as `main(module)` with the settings as JSON in argv[1]: `limits` for itself; `handover`, the socket that the folder `out` is
handed to the service through (where only this process sees it); `read`, the files that Landlock leaves it besides `out` and `tmp`;
`filter`, whether system calls are filtered; `channel`, what makes it a warm parent (`warm.py` has the settings of one). Nothing that
reads a model is imported before the rights are gone, and no job is read by a process that still has them.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import sys
import traceback
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, NoReturn

from services.packager.isolation import landlock, probe, seccomp, warm
from services.packager.isolation.limits import limit_self

#: Environment that keeps libraries from starting a thread per core, and from what is no business of theirs.
_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TF_NUM_INTRAOP_THREADS": "1",
    "TF_NUM_INTEROP_THREADS": "1",
    "TF_CPP_MIN_LOG_LEVEL": "2",
    # ONNX Runtime reports to its maker from 1.29 on: a thread, a database in shared memory, and calls that no child can make.
    "ORT_DISABLE_TELEMETRY": "1",
    "HOME": "tmp",
    "TMPDIR": "tmp",
}
_DISK_FULL = {errno.EFBIG, errno.ENOSPC, errno.EDQUOT}

Answer = Callable[[dict[str, Any]], dict[str, Any]]


def main(module: str) -> NoReturn:
    """Answer with the function `answer` of a module, which is imported inside the walls."""
    serve(lambda: import_module(module).answer)


def serve(load: Callable[[], Answer]) -> NoReturn:
    """Limit this process, then answer the job on stdin with the function that `load` returns. Ends the process.

    With a `channel` in the settings it becomes a warm parent instead: each of its children does that, for a job of its own.
    """
    settings = json.loads(sys.argv[1])
    os.environ.update(_ENVIRONMENT)
    if settings["channel"] is not None:

        def work(request: Mapping[str, Any]) -> int:
            _confine(request["limits"], settings)
            return _reply((lambda: probe.answer) if request["probe"] else load)

        warm.serve(settings, work)
    _hand_over(settings["handover"])
    _confine(settings["limits"], settings)
    os._exit(_reply(load))


def _confine(limits: Mapping[str, int], settings: Mapping[str, Any]) -> None:
    """Take every right away that a job does not need, for good."""
    limit_self(limits)
    if settings["filter"]:
        landlock.drop_capabilities()
    if settings["read"] is not None:
        landlock.restrict(settings["read"], ["out", "tmp"])
    if settings["filter"]:
        seccomp.install()


def _reply(load: Callable[[], Answer]) -> int:
    """Answer the job on stdin with a line of JSON on stdout. Returns the exit status."""
    # What libraries print must not mix with the answer.
    answer_to = os.dup(1)
    os.dup2(2, 1)
    try:
        data = json.dumps(_answer(load)).encode()
    except Exception:
        traceback.print_exc()
        sys.stderr.flush()
        return 3
    while data:
        data = data[os.write(answer_to, data) :]
    return 0


def _hand_over(handle: int | None) -> None:
    """Give the service a handle to `out`, which lies in memory that only this process can name."""
    if handle is None:
        return
    folder = os.open("out", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    with socket.socket(fileno=handle) as channel:
        socket.send_fds(channel, [b"out"], [folder])
    os.close(folder)


def _answer(load: Callable[[], Answer]) -> dict[str, Any]:
    try:
        return load()(json.loads(sys.stdin.buffer.read()))
    except MemoryError:
        return {"ok": False, "code": "CHILD_OUT_OF_MEMORY", "detail": "The model needs more memory than packaging may use."}
    except OSError as error:
        if error.errno not in _DISK_FULL:
            raise
        return {"ok": False, "code": "CHILD_OUTPUT_TOO_LARGE", "detail": "The results are larger than packaging may write."}
