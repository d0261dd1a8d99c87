"""How much one caller may ask: a rate per credential, and the size of a body.

The rate is held in this process; with several gateways a caller gets the sum. GCRA (ITU-T I.371) keeps one number per caller.
"""

from __future__ import annotations

import time

from kit import http
from kit.errors import TooLarge, TooManyRequests

_CALLERS = 200_000


class RateLimit:
    """`per_minute` requests on average, with a burst of half a minute's worth."""

    def __init__(self, per_minute: int) -> None:
        self._interval = 60.0 / per_minute
        self._burst = max(30.0, self._interval)
        self._next: dict[str | bytes, float] = {}

    def take(self, caller: str | bytes) -> None:
        """Count one request. Raises `TooManyRequests` with the time to wait."""
        now = time.monotonic()
        planned = self._next.get(caller, now)
        planned = max(planned, now)
        if planned - now > self._burst:
            wait = int(planned - now - self._burst) + 1
            raise TooManyRequests(f"too many requests with this credential; wait {wait} s", retry_after_s=wait)
        if len(self._next) >= _CALLERS:
            self._next = {one: at for one, at in self._next.items() if at > now}
        self._next[caller] = planned + self._interval


def capped(scope: http.Scope, receive: http.Receive, max_bytes: int) -> http.Receive:
    """Return a receive channel that ends with `TooLarge` when more than `max_bytes` arrive; a larger announced length raises at once."""
    declared = http.header(scope, b"content-length")
    if declared is not None:
        if not declared.isdigit() or int(declared) > max_bytes:
            raise TooLarge(f"the body is over the {max_bytes} bytes taken here")
        return receive  # the server holds the client to its length
    taken = 0

    async def counted() -> http.Message:
        nonlocal taken
        message = await receive()
        taken += len(message.get("body", b""))
        if taken > max_bytes:
            raise TooLarge(f"the body is over the {max_bytes} bytes taken here")
        return message

    return counted
