"""How the memory of a collection changes."""

from __future__ import annotations

from pathlib import Path

from latebind.device.state import CRASH_ATTEMPTS, DOWNLOAD_ATTEMPTS, CollectionState, PackageRef, Refusal, StateFile, kept_packages
from latebind.device.verify import Assignment

A, B, C = (PackageRef(letter * 64, "m", number, "onnx-fp32", "onnxruntime") for number, letter in enumerate("abc", start=1))


def assignment(ref: PackageRef, counter: int = 5, issued_at: float = 100.0) -> Assignment:
    return Assignment(ref.digest, counter, 3, issued_at, issued_at + 3600)


def refusal(*, attempts: int = 1, final: bool = True, machine: str = "here") -> Refusal:
    return Refusal("LOAD_FAILED", "why", attempts, machine, final)


def test_counters_and_signed_times_never_go_back() -> None:
    state = CollectionState().accepted(assignment(A, 9, 500.0), etag="e", decision_id="d")
    state = state.accepted(assignment(B, 7, 400.0), etag="f", decision_id="d2")
    assert (state.counter, state.newest_signed, state.etag, state.assigned) == (9, 500.0, "f", B.digest)


def test_the_previous_package_is_the_last_that_answered() -> None:
    state = CollectionState().switched(A, tested_on="x").proven(A.digest).switched(B, tested_on="x")
    assert (state.current, state.previous, state.proved) == (B, A, False)
    state = state.switched(C, tested_on="x")
    assert (state.current, state.previous) == (C, A)
    state = state.proven(C.digest)
    assert state.proved and state.kept == {A.digest, C.digest}
    assert state.proven(A.digest) is state


def test_a_return_goes_to_the_previous_package_once() -> None:
    state = CollectionState().switched(A, tested_on="x").proven(A.digest).switched(B, tested_on="x")
    returned = state.returned(B.digest, refusal())
    assert (returned.current, returned.previous, returned.proved) == (A, None, True)
    assert returned.refusal(B.digest, machine="here") is not None
    assert returned.returned(A.digest, refusal()) is returned
    assert state.returned(A.digest, refusal()) is state


def test_what_the_process_dies_in_leaves_a_trace() -> None:
    state = CollectionState().switched(A, tested_on="x")
    for _ in range(CRASH_ATTEMPTS):
        assert not state.is_deadly(A.digest)
        state = state.began(A.digest).survived(A.digest).began(A.digest)
    assert state.is_deadly(A.digest) and not state.is_deadly(B.digest)
    assert state.proven(A.digest).attempts == {}
    assert state.accepted(assignment(B), etag=None, decision_id=None).attempts == {}
    assert CollectionState().survived(A.digest).attempts == {}


def test_refusals_end_with_the_assignment_or_on_another_machine() -> None:
    state = CollectionState().accepted(assignment(A), etag=None, decision_id=None).failed(A.digest, refusal())
    assert state.refusal(A.digest, machine="here") is not None
    assert state.refusal(A.digest, machine="after an update of the system") is None
    assert state.accepted(assignment(A), etag=None, decision_id=None).refusal(A.digest, machine="here") is not None
    assert state.accepted(assignment(B), etag=None, decision_id=None).refused == {}


def test_what_may_be_the_networks_fault_is_tried_a_few_times() -> None:
    state = CollectionState()
    for attempts in range(1, DOWNLOAD_ATTEMPTS):
        assert state.failed(A.digest, refusal(attempts=attempts, final=False)).refusal(A.digest, machine="here") is None
    assert state.failed(A.digest, refusal(attempts=DOWNLOAD_ATTEMPTS, final=False)).refusal(A.digest, machine="here") is not None


def test_the_file_gives_back_what_was_stored(tmp_path: Path) -> None:
    file = StateFile(tmp_path / "c.json", account="acme", collection="c")
    assert file.value == CollectionState()
    state = file.update(
        lambda state: state.switched(A, tested_on="x").proven(A.digest).switched(B, tested_on="x").failed(C.digest, refusal())
    )
    assert StateFile(tmp_path / "c.json", account="acme", collection="c").value == state
    assert kept_packages(tmp_path) == {A.digest, B.digest}
    assert StateFile(tmp_path / "c.json", account="acme", collection="other").value == CollectionState()


def test_a_damaged_file_is_no_state(tmp_path: Path) -> None:
    for content in ("", "{", "[]", '{"state_version": 1, "account": "acme", "collection": "c"}', '{"state_version": 99}'):
        (tmp_path / "c.json").write_text(content)
        assert StateFile(tmp_path / "c.json", account="acme", collection="c").value == CollectionState()
        assert kept_packages(tmp_path) == set()
