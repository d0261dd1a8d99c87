"""Devices that polled and kept what they have: remembered in memory, bounded, and written in bulk every few seconds.

A crash loses the last seconds of "last seen"; decisions are not here, they are in the event log before they are answered.
"""

from __future__ import annotations

from datetime import datetime

from services.deployer.domain import Sighting

#: Body and trusted country of a request.
Sent = tuple[bytes, bytes | None]

MAX_DEVICES = 200_000
MAX_CONTEXTS = 20_000


class Sightings:
    """The newest sighting per device since the last `take`."""

    def __init__(self, max_devices: int = MAX_DEVICES, max_contexts: int = MAX_CONTEXTS) -> None:
        self._max_devices, self._max_contexts = max_devices, max_contexts
        self._seen: dict[tuple[str, str], datetime] = {}
        self._contexts: dict[tuple[str, str], Sent] = {}
        self.dropped = 0

    def seen(self, account: str, install_id: str, at: datetime) -> None:
        """Note a device whose context did not change."""
        key = (account, install_id)
        if len(self._seen) < self._max_devices or key in self._seen:
            self._seen[key] = at
        else:
            self.dropped += 1

    def told(self, account: str, install_id: str, at: datetime, body: bytes, country: bytes | None) -> None:
        """Note a device with what it sent. When there is no room for that only the moment is kept."""
        key = (account, install_id)
        if len(self._seen) < self._max_devices or key in self._seen:
            self._seen[key] = at
            if len(self._contexts) < self._max_contexts or key in self._contexts:
                self._contexts[key] = (body, country)
        else:
            self.dropped += 1

    def take(self) -> list[tuple[Sighting, Sent | None]]:
        """Return what was noted, each with what it sent, or None, and start anew."""
        seen, contexts = self._seen, self._contexts
        self._seen, self._contexts = {}, {}
        return [(Sighting(key[0], key[1], at, None), contexts.get(key)) for key, at in seen.items()]

    def put_back(self, noted: list[tuple[Sighting, Sent | None]]) -> None:
        """Keep what could not be written, unless something newer came."""
        for one, sent in noted:
            key = (one.account, one.install_id)
            if key in self._seen or len(self._seen) >= self._max_devices:
                continue
            self._seen[key] = one.at
            if sent is not None and len(self._contexts) < self._max_contexts:
                self._contexts[key] = sent

    def take_dropped(self) -> int:
        """Return how many sightings found no room since the last call."""
        dropped, self.dropped = self.dropped, 0
        return dropped

    def __len__(self) -> int:
        return len(self._seen)
