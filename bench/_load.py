"""The load generator: `python -m bench._load PORT SECONDS CONNECTIONS`, requests as a JSON list of latin-1 text on standard input.

Speaks just enough HTTP/1.1 to keep a connection busy: answers with Content-Length, 204 and 304. Prints one JSON document.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import cast

import uvloop


class _Run:
    """What all connections share."""

    def __init__(self, requests: Sequence[bytes], until: float) -> None:
        self.requests = requests
        self.until = until
        self.turn = 0
        self.statuses: Counter[str] = Counter()
        self.latencies: list[float] = []
        self.first: dict[int, bytes] = {}

    def next(self) -> int:
        turn = self.turn
        self.turn = (turn + 1) % len(self.requests)
        return turn


class _Connection(asyncio.Protocol):
    def __init__(self, run: _Run, done: asyncio.Future[None]) -> None:
        self._run, self._done = run, done
        self._buffer = b""
        self._number = 0
        self._sent = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are not instances of asyncio's classes.
        self._transport = cast("asyncio.Transport", transport)
        self._send()

    def _send(self) -> None:
        self._sent = time.perf_counter()
        if self._sent >= self._run.until:
            self._transport.close()
            return
        self._number = self._run.next()
        self._transport.write(self._run.requests[self._number])

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, found, rest = self._buffer.partition(b"\r\n\r\n")
        if not found:
            return
        length = _content_length(head)
        if len(rest) < length:
            return
        status = head[9:12].decode()
        self._run.statuses[status] += 1
        self._run.latencies.append(time.perf_counter() - self._sent)
        if self._number not in self._run.first:
            self._run.first[self._number] = status.encode() + rest[:length]
        self._buffer = rest[length:]
        self._send()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._done.done():
            if exc is None and time.perf_counter() >= self._run.until:
                self._done.set_result(None)
            else:
                self._done.set_exception(exc or ConnectionError("the server closed the connection"))


def _content_length(head: bytes) -> int:
    lowered = head.lower()
    place = lowered.find(b"\r\ncontent-length:")
    if place >= 0:
        return int(lowered[place + 17 :].split(b"\r\n", 1)[0])
    if lowered[9:12] in {b"204", b"304"}:
        return 0
    raise ValueError("an answer without Content-Length")


async def _main(port: int, seconds: float, connections: int, requests: Sequence[bytes]) -> dict[str, object]:
    loop = asyncio.get_running_loop()
    start = time.perf_counter()
    run = _Run(requests, start + seconds)
    ends = [loop.create_future() for _ in range(connections)]
    for end in ends:
        await loop.create_connection(partial(_Connection, run, end), "127.0.0.1", port)
    async with asyncio.timeout(seconds + 30):
        await asyncio.gather(*ends)
    elapsed = time.perf_counter() - start
    latencies = sorted(run.latencies)
    digest = hashlib.sha256(b"".join(run.first[number] for number in sorted(run.first)))
    return {
        "requests": len(latencies),
        "seconds": elapsed,
        "statuses": dict(run.statuses),
        "bodies": digest.hexdigest(),
        "p50_ms": latencies[len(latencies) // 2] * 1000,
        "p99_ms": latencies[len(latencies) * 99 // 100] * 1000,
    }


if __name__ == "__main__":
    texts = json.load(sys.stdin)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        result = runner.run(_main(int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]), [text.encode("latin-1") for text in texts]))
    json.dump(result, sys.stdout)
