"""Identity, enrolment and tokens against the simulated server."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from latebind.device.agent import DeviceAgent
from latebind.device.api import _parse_poll_header
from latebind.device.decision import PollResult
from latebind.device.identity import IdentityFile
from latebind.errors import Forbidden, InstallAlreadyEnrolled, LatebindError, NotEnrolled, VerificationFailed
from tests.sdk.simulator import ACCOUNT, COLLECTION, Simulator

MakeAgent = Callable[..., DeviceAgent]


def test_an_identity_is_made_once_and_kept_private(tmp_path: Path) -> None:
    path = tmp_path / "identity.json"
    identity = IdentityFile(path, ACCOUNT).load()
    assert path.stat().st_mode & 0o777 == 0o600
    assert IdentityFile(path, ACCOUNT).load() == identity
    assert [entry.name for entry in tmp_path.iterdir()] == ["identity.json"]


def test_two_processes_that_start_at_once_share_one_identity(tmp_path: Path) -> None:
    found: list[str] = []
    barrier = threading.Barrier(8)

    def start() -> None:
        barrier.wait()
        found.append(IdentityFile(tmp_path / "identity.json", ACCOUNT).load().install_id)

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8 and len(set(found)) == 1


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"account": "acme"}', '{"account":"evil","install_id":"x","private_key":"AA==","trust":null}']
)
def test_a_damaged_identity_is_a_clear_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "identity.json").write_text(content)
    with pytest.raises(LatebindError, match=r"identity\.json is damaged"):
        IdentityFile(tmp_path / "identity.json", ACCOUNT).load()


def test_enrolling_happens_once_and_pins_the_keys(simulator: Simulator, make_agent: MakeAgent, tmp_path: Path) -> None:
    agent = make_agent()
    assert agent.enrol() == agent.enrol() == agent.install_id
    assert simulator.requests["/v1/device/enroll"] == 1
    agent.close()
    again = make_agent(enrolment_key=None)
    simulator.assign(simulator.add_adder(1))
    assert again.poll_once(COLLECTION).result is PollResult.SWITCHED
    assert again.install_id == agent.install_id
    stored = json.loads((tmp_path / "device" / ACCOUNT / "identity.json").read_text())
    assert stored["trust"]["package_keys"] == [simulator.package_key.public()]


def test_without_an_enrolment_key_the_error_says_so(make_agent: MakeAgent) -> None:
    with pytest.raises(NotEnrolled, match="enrolment key"):
        make_agent(enrolment_key=None).enrol()
    with pytest.raises(Forbidden) as caught:
        make_agent(enrolment_key="lbe_wrong").enrol()
    assert caught.value.code == "ENROLMENT_KEY_INVALID"


def test_another_key_for_the_same_install_is_refused(simulator: Simulator, make_agent: MakeAgent) -> None:
    agent = make_agent()
    simulator.installs[agent.install_id] = b"x" * 32
    with pytest.raises(InstallAlreadyEnrolled):
        agent.enrol()


def test_a_server_without_keys_yet_is_not_pinned(simulator: Simulator, make_agent: MakeAgent) -> None:
    agent = make_agent()
    answer = simulator.token_answer
    simulator.token_answer = lambda install: {**answer(install), "trust": {"package_keys": [], "assignment_keys": []}}  # type: ignore[method-assign]
    with pytest.raises(VerificationFailed) as caught:
        agent.enrol()
    assert caught.value.code == "TRUST_INVALID"
    simulator.token_answer = answer  # type: ignore[method-assign]
    assert agent.enrol() == agent.install_id


def test_keys_of_later_answers_do_not_count(simulator: Simulator, make_agent: MakeAgent) -> None:
    agent = make_agent()
    agent.enrol()
    agent.close()
    stolen, simulator.package_key = simulator.package_key, type(simulator.package_key)()
    simulator.assign(simulator.add_adder(1))
    outcome = make_agent().poll_once(COLLECTION)
    assert outcome.error is not None and outcome.error.code == "SIGNATURE_UNTRUSTED"
    assert stolen.id != simulator.package_key.id


def test_a_refused_token_is_renewed_once(simulator: Simulator, make_agent: MakeAgent) -> None:
    simulator.assign(simulator.add_adder(1))
    agent = make_agent()
    agent.open(COLLECTION)
    simulator.tokens.clear()
    assert agent.poll_once(COLLECTION).result is PollResult.UNCHANGED
    assert simulator.requests["/v1/device/token"] == 1
    simulator.faults.statuses["/v1/device/collections/"] = [401, 401, 401]
    outcome = agent.poll_once(COLLECTION)
    assert outcome.error is not None and outcome.error.code == "INJECTED"
    assert len(simulator.faults.statuses["/v1/device/collections/"]) == 1


def test_a_token_is_renewed_before_it_ends(simulator: Simulator, make_agent: MakeAgent) -> None:
    class Clock:
        wall, running = 1_790_000_000.0, 0.0

        def now(self) -> float:
            return self.wall

        def monotonic(self) -> float:
            return self.running

    clock = Clock()
    simulator.token_life = timedelta(days=3650)
    agent = make_agent(clock=clock)
    agent.enrol()
    agent.poll_once(COLLECTION)
    clock.running = 3600 - 601
    agent.poll_once(COLLECTION)
    assert simulator.requests["/v1/device/token"] == 0
    clock.running = 3600 - 599
    agent.poll_once(COLLECTION)
    assert simulator.requests["/v1/device/token"] == 1


def test_a_server_that_cannot_renew_does_not_stop_the_device(simulator: Simulator, make_agent: MakeAgent) -> None:
    """The token it has is tried meanwhile, and renewing is tried again after a minute, not at each request."""

    class Clock:
        running = 0.0

        def now(self) -> float:
            return 1_790_000_000.0

        def monotonic(self) -> float:
            return self.running

    clock = Clock()
    simulator.token_life = timedelta(days=3650)
    simulator.assign(simulator.add_adder(1))
    agent = make_agent(clock=clock)
    assert agent.poll_once(COLLECTION).result is PollResult.SWITCHED
    simulator.faults.statuses["/v1/device/token"] = [503, 503]
    for moment, tried in [(3600 - 599, 1), (3600 - 540, 1), (3600 - 538, 2), (3600 - 470, 3), (3600 - 460, 3)]:
        clock.running = moment
        assert agent.poll_once(COLLECTION).result is PollResult.UNCHANGED
        assert simulator.requests["/v1/device/token"] == tried
    simulator.faults.statuses["/v1/device/token"] = [403]
    clock.running = 7200
    outcome = agent.poll_once(COLLECTION)
    assert outcome.error is not None and outcome.error.code == "INJECTED", "a refusal is not an outage"


def test_a_wrong_clock_does_not_stop_the_service(simulator: Simulator, make_agent: MakeAgent) -> None:
    """In 1970 and ten years ahead the device still asks; ahead of time it takes no assignment, and recovers when the clock is right."""

    class Clock:
        wall = 0.0

        def now(self) -> float:
            return self.wall

        def monotonic(self) -> float:
            return 0.0

    simulator.assign(simulator.add_adder(1))
    clock = Clock()
    agent = make_agent(clock=clock)
    assert agent.poll_once(COLLECTION).result is PollResult.SWITCHED
    simulator.assign(simulator.add_adder(2))
    clock.wall = 2_200_000_000.0
    outcome = agent.poll_once(COLLECTION)
    assert outcome.error is not None and outcome.error.code == "ASSIGNMENT_EXPIRED"
    clock.wall = 0.0
    assert agent.poll_once(COLLECTION).result is PollResult.SWITCHED


def test_an_install_that_the_server_lost_enrols_again_with_the_same_key(simulator: Simulator, make_agent: MakeAgent) -> None:
    simulator.assign(simulator.add_adder(1))
    agent = make_agent()
    agent.open(COLLECTION)
    simulator.installs.clear()
    simulator.tokens.clear()
    assert agent.poll_once(COLLECTION).result is PollResult.UNCHANGED
    assert list(simulator.installs) == [agent.install_id]


@pytest.mark.parametrize(
    ("text", "after", "spread"),
    [
        ("after=3600; spread=600", 3600.0, 600.0),
        ("after=5", 5.0, 0.0),
        ("spread=5", None, None),
        ("after=x", None, None),
        (None, None, None),
    ],
)
def test_poll_advice_in_a_header(text: str | None, after: float | None, spread: float | None) -> None:
    advice = _parse_poll_header(text)
    assert (advice.after_s, advice.spread_s) == (after, spread) if advice else after is None
