"""Faults on purpose: a proxy that breaks connections, a nemesis that kills, senders that remember, and a checker that counts.

`python -m deploy.chaos` (`make chaos`) runs the long form, `tests/cluster` the short one. docs/chaos.md says what is shown by which.
"""

from deploy.chaos.proxy import Fault, FaultProxy

__all__ = ["Fault", "FaultProxy"]
