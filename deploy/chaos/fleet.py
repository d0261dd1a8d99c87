"""Many installs that send telemetry as the SDK does: a batch is kept and repeated under its id until somebody took it.

Beyond the SDK, some repeat a batch that was taken (as if the answer had been lost) and some give up on one that was not (a device that
dies), so that both sides of the promise are tried.
"""

from __future__ import annotations

import asyncio
import random
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass

import httpx2
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from deploy.chaos.batches import Batch, facts_of, make
from deploy.chaos.history import History, Known
from latebind.device.identity import Identity

_TIMEOUT_S = 20.0
_TOKEN_S = 50.0
_ENROL_AT_A_TIME = 16
_RETRY_S = (0.2, 1.5)


@dataclass(frozen=True, slots=True)
class Habits:
    """What the devices do. Shares are of batches; times in seconds."""

    pause_s: tuple[float, float] = (0.5, 2.0)
    samples: tuple[int, int] = (20, 120)
    poisoned: float = 0.02
    repeated: float = 0.05
    #: Of failed attempts: the device never tries this batch again.
    given_up: float = 0.03


class Fleet:
    """`size` installs of one account. Every random choice follows from the seed and the device's number."""

    def __init__(self, gateway: str, account: str, enrolment_key: str, history: History, *, size: int, seed: int) -> None:
        self._gateway, self._account, self._enrolment_key = gateway, account, enrolment_key
        self._history, self._seed = history, seed
        self.size = size
        self.install_ids: list[str] = []
        self._tokens: list[str] = []
        self._identities: list[Identity] = []

    async def run(self, stop: asyncio.Event, habits: Habits) -> None:
        """Send until `stop`, and on until every batch was taken or given up."""
        async with _client() as http, asyncio.TaskGroup() as devices:
            for number in range(self.size):
                devices.create_task(self._send_until(stop, http, number, habits))

    async def enrol(self) -> None:
        """Enrol every install."""
        for _ in range(self.size):
            key = Ed25519PrivateKey.generate().private_bytes_raw()
            self._identities.append(Identity(self._account, str(uuid.uuid4()), key, None))
        self.install_ids = [one.install_id for one in self._identities]
        self._tokens = [""] * self.size
        turns = asyncio.Semaphore(_ENROL_AT_A_TIME)

        async def one(http: httpx2.AsyncClient, number: int) -> None:
            async with turns:
                identity = self._identities[number]

                def proof(nonce: str) -> dict[str, str]:
                    signature, public_key = identity.sign_enrolment(nonce), identity.public_key_text
                    return {"enrolment_key": self._enrolment_key, "public_key": public_key, "signature": signature}

                self._tokens[number] = await self._token(http, "enroll", identity.install_id, proof)

        async with _client() as http, asyncio.TaskGroup() as enrolments:
            for number in range(self.size):
                enrolments.create_task(one(http, number))
        self._history.write("enrolled", devices=self.size)

    async def _renew(self, http: httpx2.AsyncClient, number: int) -> None:
        identity = self._identities[number]
        self._tokens[number] = await self._token(
            http, "token", identity.install_id, lambda nonce: {"signature": identity.sign_token_request(nonce)}
        )

    async def _token(self, http: httpx2.AsyncClient, what: str, install_id: str, proof: Callable[[str], dict[str, str]]) -> str:
        """Ask for a token; a new account has to wait for its signing keys."""
        until = time.monotonic() + _TOKEN_S
        while True:
            challenge = await http.post(f"{self._gateway}/v1/device/challenge")
            nonce = str(challenge.raise_for_status().json()["nonce"])
            body = {"account": self._account, "install_id": install_id, "nonce": nonce, **proof(nonce)}
            answer = await http.post(f"{self._gateway}/v1/device/{what}", json=body)
            if answer.status_code != 503 or time.monotonic() > until:
                return str(answer.raise_for_status().json()["token"])
            await asyncio.sleep(_RETRY_S[1])

    async def _send_until(self, stop: asyncio.Event, http: httpx2.AsyncClient, number: int, habits: Habits) -> None:
        rng = random.Random(f"{self._seed}/{number}")
        facts = facts_of(rng)
        while await _waited(stop, rng.uniform(*habits.pause_s)):
            poisoned = rng.random() < habits.poisoned
            batch = make(rng, number, facts, int(time.time() * 1000), samples=rng.randint(*habits.samples), poisoned=poisoned)
            self._history.made(batch)
            await self._deliver(http, rng, batch, habits)

    async def _deliver(self, http: httpx2.AsyncClient, rng: random.Random, batch: Batch, habits: Habits) -> None:
        while True:
            answer = await self._post(http, batch)
            self._history.answered(batch, answer)
            if self._history.known[batch.id] is not Known.UNKNOWN:
                break
            if rng.random() < habits.given_up:
                return
            if answer == "401":
                # A gateway says so only of a token that is at its end; anything else would be a fault, and the summary shows it.
                await self._renew_somehow(http, batch.device)
            await asyncio.sleep(rng.uniform(*_RETRY_S))
        if rng.random() < habits.repeated:
            self._history.answered(batch, await self._post(http, batch))

    async def _renew_somehow(self, http: httpx2.AsyncClient, number: int) -> None:
        try:
            await self._renew(http, number)
        except (httpx2.HTTPError, KeyError, ValueError) as error:
            self._history.write("not renewed", device=number, error=f"{type(error).__name__}: {error}"[:200])

    async def _post(self, http: httpx2.AsyncClient, batch: Batch) -> str:
        headers = {"authorization": f"Bearer {self._tokens[batch.device]}", "content-type": "application/x-protobuf"}
        if batch.packed:
            headers["content-encoding"] = "zstd"
        try:
            answer = await http.post(f"{self._gateway}/v1/device/telemetry", content=batch.body, headers=headers)
        except httpx2.HTTPError:
            return "lost"
        return str(answer.status_code)


def _client() -> httpx2.AsyncClient:
    limits = httpx2.Limits(max_connections=200, max_keepalive_connections=200)
    return httpx2.AsyncClient(timeout=_TIMEOUT_S, limits=limits, trust_env=False)


async def _waited(stop: asyncio.Event, seconds: float) -> bool:
    """Wait; answer False as soon as it is time to stop."""
    try:
        async with asyncio.timeout(seconds):
            await stop.wait()
    except TimeoutError:
        return True
    return False
