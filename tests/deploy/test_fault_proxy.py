"""The fault proxy does what it says, in front of a small echo server: otherwise outage tests would show nothing."""

from __future__ import annotations

import socket
import socketserver
import threading
import time
from collections.abc import Iterator

import pytest

from deploy.chaos import Fault, FaultProxy

SHORT_S = 0.3


class Echo(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        while data := self.request.recv(4096):
            self.request.sendall(data)


@pytest.fixture
def proxy() -> Iterator[FaultProxy]:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Echo) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with FaultProxy(lambda: server.server_address[1], slow_s=0.2) as made:
            yield made
        server.shutdown()


def connected(proxy: FaultProxy, *, timeout_s: float = 10) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=timeout_s)


def echoed(one: socket.socket, data: bytes) -> bytes:
    one.sendall(data)
    return one.recv(4096)


def silent(one: socket.socket) -> bool:
    one.settimeout(SHORT_S)
    try:
        one.recv(1)
    except TimeoutError:
        return True
    finally:
        one.settimeout(10)
    return False


def test_forwards_both_ways_until_the_end(proxy: FaultProxy) -> None:
    with connected(proxy) as one:
        assert echoed(one, b"hello") == b"hello"
        assert proxy.connections == 1
        one.shutdown(socket.SHUT_WR)
        assert one.recv(1) == b""


def test_down_refuses_closes_and_keeps_its_port(proxy: FaultProxy) -> None:
    with connected(proxy) as one:
        assert echoed(one, b"x") == b"x"
        proxy.set(Fault.DOWN)
        with pytest.raises(ConnectionError):
            one.recv(1)
    with pytest.raises(ConnectionRefusedError):
        connected(proxy)
    proxy.set(Fault.NONE)
    with connected(proxy) as one:
        assert echoed(one, b"again") == b"again"


def test_reset_ends_old_and_new_connections(proxy: FaultProxy) -> None:
    with connected(proxy) as one:
        assert echoed(one, b"x") == b"x"
        proxy.set(Fault.RESET)
        with pytest.raises(ConnectionResetError):
            one.recv(1)
    with pytest.raises(ConnectionError), connected(proxy) as one:
        assert echoed(one, b"x") == b""
        raise ConnectionError  # a reset that came before our first byte reads as the end


def test_slow_delays_each_piece_and_stops_at_once_when_healed(proxy: FaultProxy) -> None:
    with connected(proxy) as one:
        proxy.set(Fault.SLOW)
        began = time.monotonic()
        assert echoed(one, b"x") == b"x"
        assert time.monotonic() - began >= 0.4  # there and back
        proxy.slow_s = 600
        one.sendall(b"y")
        assert silent(one)
        proxy.set(Fault.NONE)
        assert one.recv(1) == b"y"


def test_blackhole_takes_and_says_nothing_then_goes_on(proxy: FaultProxy) -> None:
    with connected(proxy) as old:
        assert echoed(old, b"x") == b"x"
        proxy.set(Fault.BLACKHOLE)
        with connected(proxy) as new:
            old.sendall(b"old")
            new.sendall(b"new")
            assert silent(old)
            assert silent(new)
            proxy.set(Fault.NONE)
            assert (old.recv(9), new.recv(9)) == (b"old", b"new")


def test_half_open_is_for_good_on_old_connections_only(proxy: FaultProxy) -> None:
    with connected(proxy) as old:
        assert echoed(old, b"x") == b"x"
        proxy.set(Fault.HALF_OPEN)
        old.sendall(b"lost")
        with connected(proxy) as new:
            assert echoed(new, b"fine") == b"fine"
        proxy.set(Fault.NONE)
        assert silent(old)


def test_garbage_replaces_what_the_server_says(proxy: FaultProxy) -> None:
    with connected(proxy) as one:
        proxy.set(Fault.GARBAGE)
        said = echoed(one, b"a" * 32)
        assert said
        assert said != b"a" * len(said)
