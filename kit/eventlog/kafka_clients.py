"""How clients of the Kafka library are closed: bounded, and without being taken down with them."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from kit.logs import get_logger

log = get_logger(__name__)

_closing = set[asyncio.Task[None]]()


async def closed(closing: Coroutine[Any, Any, None], within_s: float) -> None:
    """Let a client close itself, and return when it has, or after `within_s` seconds. What goes wrong is only logged.

    In a task of its own: aiokafka 0.14 cancels its background tasks, awaits them, and lets their `CancelledError` out. In the task of the
    caller that looks as if the caller was told to end. It is not cut short either: what is left of a consumer sends heartbeats for ever.
    """
    task = asyncio.create_task(_logged(closing))
    _closing.add(task)
    task.add_done_callback(_closing.discard)
    await asyncio.wait({task}, timeout=within_s)


async def _logged(closing: Coroutine[Any, Any, None]) -> None:
    try:
        await closing
    except Exception as error:
        log.info("a client of the event log closed with an error", error=f"{type(error).__name__}: {error}"[:200])
