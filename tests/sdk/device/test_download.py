"""Downloads that break off, lie, crawl or meet each other."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from latebind._transport import HttpTransport
from latebind.device.api import DeviceApi
from latebind.device.clock import SystemClock
from latebind.device.download import DownloadLimits, download, sweep_partials
from latebind.device.identity import IdentityFile
from latebind.errors import DownloadFailed, LatebindError, NotFound, VerificationFailed
from tests.sdk.simulator import ACCOUNT, ENROLMENT_KEY, Simulator, sha256

DATA = random.Random(3).randbytes(300_000)
DIGEST = sha256(DATA)
Fetch = Callable[..., int]


@pytest.fixture
def fetch(simulator: Simulator, tmp_path: Path) -> Iterator[Fetch]:
    transport = HttpTransport(timeout_s=5)
    file = IdentityFile(tmp_path / "identity.json", ACCOUNT)
    api = DeviceApi(
        server=simulator.url,
        transport=transport,
        identity=file.load(),
        identity_file=file,
        enrolment_key=ENROLMENT_KEY,
        clock=SystemClock(),
    )
    simulator.blobs[DIGEST] = DATA

    def run(digest: str = DIGEST, size: int = len(DATA), **limits: Any) -> int:
        return download(
            digest,
            size,
            source=api.blob,
            partials=tmp_path / "partials",
            target=tmp_path / "blobs" / digest,
            clock=SystemClock(),
            limits=DownloadLimits(**limits),
        )

    yield run
    transport.close()


def left(tmp_path: Path) -> list[int]:
    return [path.stat().st_size for path in (tmp_path / "partials").iterdir()]


def test_a_file_arrives_whole(fetch: Fetch, tmp_path: Path) -> None:
    assert fetch() == len(DATA)
    assert (tmp_path / "blobs" / DIGEST).read_bytes() == DATA
    assert left(tmp_path) == []


def test_ten_cuts_cost_no_byte_twice(simulator: Simulator, fetch: Fetch, tmp_path: Path) -> None:
    cuts = [random.Random(5).randrange(1, 40_000) for _ in range(10)]
    simulator.faults.cut_blobs_at = list(cuts)
    received = 0
    for _ in cuts:
        with pytest.raises(DownloadFailed):
            fetch()
        assert not (tmp_path / "blobs" / DIGEST).exists()
    before = sum(left(tmp_path))
    received = fetch()
    assert received == len(DATA) - before
    assert (tmp_path / "blobs" / DIGEST).read_bytes() == DATA
    assert simulator.blob_bytes_sent <= len(DATA) * 1.02 + 11 * 16384


def test_a_server_that_ignores_ranges_sends_all_and_nothing_is_doubled(simulator: Simulator, fetch: Fetch, tmp_path: Path) -> None:
    simulator.faults.cut_blobs_at = [100_000]
    with pytest.raises(DownloadFailed):
        fetch()
    simulator.faults.ignore_ranges = True
    assert fetch() == len(DATA)
    assert (tmp_path / "blobs" / DIGEST).read_bytes() == DATA


def test_wrong_bytes_are_never_placed(simulator: Simulator, fetch: Fetch, tmp_path: Path) -> None:
    simulator.faults.change_blob = lambda data: data[:-1] + bytes([data[-1] ^ 1])
    with pytest.raises(VerificationFailed) as caught:
        fetch()
    assert caught.value.code == "DIGEST_MISMATCH"
    assert left(tmp_path) == [] and not (tmp_path / "blobs" / DIGEST).exists()


def test_an_endless_file_is_cut_at_the_signed_length(simulator: Simulator, fetch: Fetch, tmp_path: Path) -> None:
    simulator.faults.change_blob = lambda data: data + bytes(50_000_000)
    with pytest.raises(VerificationFailed) as caught:
        fetch()
    assert caught.value.code == "LENGTH_MISMATCH"
    assert left(tmp_path) == []
    assert simulator.blob_bytes_sent < 20_000_000


def test_a_file_that_is_too_short_is_a_broken_download(simulator: Simulator, fetch: Fetch) -> None:
    simulator.faults.change_blob = lambda data: data[:-1]
    with pytest.raises(DownloadFailed):
        fetch()


def test_a_damaged_partial_starts_over(simulator: Simulator, fetch: Fetch, tmp_path: Path) -> None:
    (tmp_path / "partials").mkdir()
    (tmp_path / "partials" / f"{DIGEST}.0011.part").write_bytes(b"not it" * 100)
    with pytest.raises(DownloadFailed, match="starts over"):
        fetch()
    assert fetch() == len(DATA)
    (tmp_path / "partials" / f"{DIGEST}.0022.part").write_bytes(DATA + b"more")
    assert fetch() == len(DATA)
    assert (tmp_path / "blobs" / DIGEST).read_bytes() == DATA


def test_a_crawling_download_is_given_up(simulator: Simulator, fetch: Fetch, tmp_path: Path) -> None:
    simulator.faults.blob_delay_s = 0.05
    with pytest.raises(DownloadFailed, match="crawls"):
        fetch(minimum_rate=1e9, window_s=0.1)
    assert sum(left(tmp_path)) > 0


def test_a_silent_server_is_given_up(simulator: Simulator, fetch: Fetch) -> None:
    simulator.faults.blob_delay_s = 2.0
    with pytest.raises(DownloadFailed):
        fetch(silence_s=0.1)


def test_downloads_of_one_file_do_not_disturb_each_other(simulator: Simulator, fetch: Fetch, tmp_path: Path) -> None:
    simulator.faults.blob_delay_s = 0.002
    errors: list[BaseException] = []

    def run() -> None:
        try:
            fetch()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert (tmp_path / "blobs" / DIGEST).read_bytes() == DATA
    assert left(tmp_path) == []


def test_a_missing_blob_is_the_servers_error(fetch: Fetch) -> None:
    with pytest.raises(NotFound):
        fetch(sha256(b"unknown"), 5)
    assert fetch(sha256(b""), 0) == 0


def test_sweeping_spares_what_is_held_or_wanted(simulator: Simulator, fetch: Fetch, tmp_path: Path) -> None:
    simulator.faults.cut_blobs_at = [10_000]
    with pytest.raises(LatebindError):
        fetch()
    size = sum(left(tmp_path))
    assert sweep_partials(tmp_path / "partials", keep=frozenset({DIGEST})) == 0
    assert sweep_partials(tmp_path / "partials") == size > 0
    assert left(tmp_path) == []
