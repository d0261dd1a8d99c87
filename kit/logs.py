"""One log format for everything: ours, the standard library's and uvicorn's, as JSON lines, or in colour on a terminal.

Secrets are taken out before a line is written, from values and from exception texts. It writes to one stream and knows no files,
rotation or shipping: what runs the process does that.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from typing import Any, TextIO, cast

import structlog
from structlog.contextvars import bound_contextvars
from structlog.typing import FilteringBoundLogger, Processor

from kit.context import request_id, traceparent
from kit.log_repeats import FewRepeats

REDACTED = "[redacted]"

#: Keys whose value is never written, whatever it is.
_SECRET_KEYS = re.compile(
    r"(?i)(^|[_-])(authorization|cookie|password|passwd|secret|token|api[_-]?key|enrolment[_-]?key|private[_-]?key|master[_-]?key|credential)s?$"
)
#: What is taken out of any text: our keys, JWTs, authorization values, passwords in URLs, signatures of links.
_SECRET_TEXT = re.compile(
    r"lb[a-z]_[a-z0-9]{4,}_[A-Za-z0-9_-]{8,}"
    r"|eyJ[A-Za-z0-9_-]{5,}\.[A-Za-z0-9_-]{5,}\.[A-Za-z0-9_-]*"
    r"|(?i:(?<=bearer )|(?<=basic ))[A-Za-z0-9._~+/=-]{8,}"
    r"|(?<=://)[^\s/@:]+:[^\s/@]+(?=@)"
    r"|(?<=signature=)[A-Za-z0-9_%-]{8,}"
)
_MAX_DEPTH = 6
#: Libraries that tell each step of theirs at debug, where nobody would find ours, and each attempt while a server is away.
_CHATTY = ("aiokafka", "asyncio", "urllib3")
_ROUTED = ("uvicorn", "uvicorn.error", "uvicorn.access", "alembic")


def redact(value: Any, depth: int = 0) -> Any:
    """Return `value` with every secret in it replaced; mappings, lists and tuples are searched, other objects left alone."""
    if isinstance(value, str):
        return _SECRET_TEXT.sub(REDACTED, value)
    if isinstance(value, bytes):
        return redact(value.decode("utf-8", "replace"))
    if depth >= _MAX_DEPTH:
        return value
    if isinstance(value, Mapping):
        return {
            key: REDACTED if isinstance(key, str) and _SECRET_KEYS.search(key) else redact(item, depth + 1) for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [redact(item, depth + 1) for item in value]
    return value


def _redact_event(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    # Marks of the formatter (`_record`, `_from_structlog`) are objects it still needs.
    for key, value in event.items():
        if not key.startswith("_"):
            event[key] = REDACTED if _SECRET_KEYS.search(key) else redact(value)
    return event


def _add_request_id(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    if current := request_id.get():
        event.setdefault("request_id", current)
    if span := traceparent.get():
        event.setdefault("trace_id", span[3:35])
    return event


def configure_logging(*, level: str = "info", json: bool | None = None, stream: TextIO | None = None) -> None:
    """Send everything to `stream` (standard error) at `level` and above. `json=None`: JSON unless the stream is a terminal.

    Called once by the composition root; calling it again replaces the earlier setting.
    """
    stream = stream or sys.stderr
    as_json = not stream.isatty() if json is None else json
    number = logging.getLevelNamesMapping()[level.upper()]
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        _add_request_id,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.stdlib.ExtraAdder(),
    ]
    last: list[Processor] = [structlog.stdlib.ProcessorFormatter.remove_processors_meta]
    if as_json:
        last += [structlog.processors.format_exc_info, _redact_event, structlog.processors.JSONRenderer(default=str)]
    else:
        last += [structlog.processors.format_exc_info, _redact_event, structlog.dev.ConsoleRenderer(colors=stream.isatty())]
    handler = logging.StreamHandler(stream)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=last))
    handler.addFilter(FewRepeats(_CHATTY))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(number)
    for name in _ROUTED:
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
        # What they say at info repeats what we say ourselves.
        logger.setLevel(max(number, logging.WARNING))
    for name in _CHATTY:
        logging.getLogger(name).setLevel(max(number, logging.INFO))
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.make_filtering_bound_logger(number),
        cache_logger_on_first_use=False,
    )


def debugging() -> bool:
    """Whether debug lines are written. Ask where every request comes by: a line that is not written costs microseconds, this does not."""
    return logging.root.isEnabledFor(logging.DEBUG)


def get_logger(name: str) -> FilteringBoundLogger:
    """Return a logger: `log.info("what happened", key=value)`. The text is fixed, what varies goes into the keys."""
    return cast("FilteringBoundLogger", structlog.stdlib.get_logger(name))


@contextmanager
def log_context(**values: Any) -> Iterator[None]:
    """Add keys (`account`, `worker` …; the request id is there by itself) to lines written inside the block and in tasks it starts."""
    with bound_contextvars(**values):
        yield
