"""When to try again: pauses that grow with full jitter, and what `Retry-After` says. Pure: it never sleeps and reads no clock of its own.

Full jitter is the scheme of "Exponential Backoff And Jitter" (AWS Architecture Blog, 2015): a random pause between zero and the growing
bound, so that devices which failed together do not come back together.
"""

from __future__ import annotations

import email.utils
import random
from dataclasses import dataclass

RETRYABLE_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})
LONGEST_RETRY_AFTER_S = 86_400.0


@dataclass(slots=True)
class Backoff:
    """Pauses after failures in a row. `base_s` bounds the first pause, `cap_s` every pause."""

    random: random.Random
    base_s: float = 1.0
    cap_s: float = 300.0
    failures: int = 0

    def failed(self, retry_after_s: float | None = None) -> float:
        """Count one more failure; the seconds to wait: random up to the bound, and never less than the server asked for."""
        self.failures += 1
        bound = min(self.cap_s, self.base_s * 2.0 ** min(self.failures - 1, 32))
        return self.random.uniform(0.0, bound) + (retry_after_s or 0.0)

    def succeeded(self) -> None:
        """Start again from the smallest pause."""
        self.failures = 0


def parse_retry_after(value: str | None, now: float) -> float | None:
    """Seconds that a `Retry-After` header asks for (RFC 9110 section 10.2.3: seconds or a date), or None; at most a day.

    `now` is Unix seconds.
    """
    if value is None:
        return None
    text = value.strip()
    if text.isascii() and text.isdigit():
        return min(float(text), LONGEST_RETRY_AFTER_S)
    try:
        moment = email.utils.parsedate_to_datetime(text)
    except (ValueError, TypeError):
        return None
    return min(max(moment.timestamp() - now, 0.0), LONGEST_RETRY_AFTER_S)


def is_retryable(status: int) -> bool:
    """Whether the same request may succeed later."""
    return status in RETRYABLE_STATUSES
