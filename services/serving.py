"""The HTTP servers of a process: on sockets that it binds itself, or that whoever started it holds open (socket activation).

Knows no service and no gateway; `services.launch` gives it applications.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager

import uvicorn

from kit.http import ASGIApp

_FIRST_INHERITED = 3
#: Longer than clients and load balancers keep an idle connection, so that they close it, not we under their next request.
_KEEP_ALIVE_S = 75


class AddressInUse(Exception):
    """Another program listens on the address."""


class _Server(uvicorn.Server):
    """Leaves signals to `services.launch`: uvicorn would raise SIGTERM again after its own stop, and the flush would never run."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@asynccontextmanager
async def serving(app: ASGIApp, bound: socket.socket, *, finish_s: int) -> AsyncIterator[None]:
    """Serve while the block runs; then close the port and give requests in flight `finish_s` seconds."""
    config = uvicorn.Config(
        app,
        http="httptools",
        lifespan="off",
        ws="none",
        access_log=False,
        log_config=None,
        server_header=False,
        date_header=True,
        timeout_graceful_shutdown=finish_s,
        timeout_keep_alive=_KEEP_ALIVE_S,
        backlog=2048,
    )
    server = _Server(config)
    task = asyncio.create_task(server.serve(sockets=[bound]), name=f"server {url_of(bound)}")
    while not server.started and not task.done():  # noqa: ASYNC110 - uvicorn has no event for it
        await asyncio.sleep(0.005)
    try:
        yield
    finally:
        server.should_exit = True
        await task
        bound.close()


def inherited_socket() -> socket.socket | None:
    """Return the listening socket that was handed over, or None: `LISTEN_FDS` and `LISTEN_PID` of sd_listen_fds(3).

    Whoever holds it open elsewhere (systemd, `deploy.cluster`) keeps connections waiting while this process is restarted, and may give it
    to several processes at once.
    """
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return None
    if os.environ.get("LISTEN_FDS") != "1":
        raise ValueError(f"one socket is taken over, the public port's; LISTEN_FDS is {os.environ.get('LISTEN_FDS')!r}")
    for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
        os.environ.pop(name, None)
    os.set_inheritable(_FIRST_INHERITED, False)
    return socket.socket(fileno=_FIRST_INHERITED)


def bind(host: str, port: int) -> socket.socket:
    """Return a socket on the address. Raises `AddressInUse`."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        if error.errno in {errno.EADDRINUSE, errno.EACCES, errno.EADDRNOTAVAIL}:
            raise AddressInUse(f"cannot listen on {host}:{port} ({error.strerror}); choose another with --host and --port") from error
        raise
    return bound


def url_of(bound: socket.socket) -> str:
    """Return the address of a socket as a URL."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def default_loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return uvloop's factory where it runs, else None for asyncio's own."""
    if sys.platform == "win32":
        return None
    import uvloop  # noqa: PLC0415 - not there on every platform

    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory
