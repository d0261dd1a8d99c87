"""How long a request may take: its body may come slowly but not pause, and then its answer must begin in time.

An answer that has begun is limited only by how long it may pause (`gateway.upstreams`): blobs and event streams take as long as they take.
"""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

from kit import http
from kit.errors import Problem

#: How long the next piece of a body may take.
_PIECE_S = 30.0


class DeadlineExceeded(Problem):
    """The answer did not begin in time. What was asked may have happened: repeat it only if it may happen twice."""

    status = 504
    code = "DEADLINE_EXCEEDED"
    retry_after_s = 2


class Deadline:
    """Gives the block `answer_s` until `answered`; `ends` is in the loop's time. Raises `DeadlineExceeded`."""

    def __init__(self, answer_s: float) -> None:
        self._answer_s = answer_s
        self._timer = asyncio.timeout(answer_s)
        self._runs = True
        self._clock = asyncio.get_running_loop().time
        self.ends = self._clock() + answer_s

    async def __aenter__(self) -> Self:
        await self._timer.__aenter__()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._runs = False
        try:
            await self._timer.__aexit__(kind, error, trace)
        except TimeoutError as late:
            raise DeadlineExceeded("the answer did not begin in time; try again") from late

    def answered(self) -> None:
        """The answer has begun; one that tells of an error begins after the block."""
        if self._runs:
            self._timer.reschedule(None)

    def over(self, receive: http.Receive) -> http.Receive:
        """Return the channel of a body, during which the time does not run while pieces come."""

        async def piece() -> http.Message:
            message = await receive()
            self.ends = self._clock() + (_PIECE_S if message.get("more_body", False) else self._answer_s)
            if self._runs and self._timer.when() is not None:
                self._timer.reschedule(self.ends)
            return message

        return piece
