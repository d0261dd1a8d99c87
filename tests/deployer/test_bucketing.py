"""Percentages and splits: published vectors, and that growing drops nobody."""

from __future__ import annotations

import json
import re
import uuid
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.deployer.bucketing import bucket, pick, point, threshold
from tests.deployer.plain_rules import murmur3_x86_32

VECTORS = json.loads((Path(__file__).parent / "bucketing_vectors.json").read_text())
DOCUMENT = Path(__file__).parents[2] / "docs" / "rules.md"


@pytest.mark.parametrize("vector", VECTORS["points"], ids=lambda vector: f"{vector['salt']}.{vector['install_id']}")
def test_points(vector: dict) -> None:
    assert point(vector["salt"], vector["install_id"]) == vector["hash"]
    assert murmur3_x86_32(f"{vector['salt']}.{vector['install_id']}".encode()) == vector["hash"]
    assert bucket(vector["salt"], vector["install_id"]) == vector["bucket"]


@pytest.mark.parametrize("vector", VECTORS["thresholds"], ids=lambda vector: str(vector["percent"]))
def test_thresholds(vector: dict) -> None:
    assert threshold(vector["percent"]) == vector["first_bucket_left_out"]


@pytest.mark.parametrize("vector", VECTORS["splits"])
def test_splits(vector: dict) -> None:
    running = [sum(vector["weights"][: place + 1]) for place in range(len(vector["weights"]))]
    assert pick(vector["salt"], vector["install_id"], running) == vector["option"]


def test_the_document_publishes_the_same_points() -> None:
    rows = re.findall(r"^\| `(.*?)` \| `(.*?)` \| ([0-9]+) \| ([0-9]+) \|$", DOCUMENT.read_text(), re.MULTILINE)
    assert [(salt, install, int(value), int(place)) for salt, install, value, place in rows] == [
        (vector["salt"], vector["install_id"], vector["hash"], vector["bucket"]) for vector in VECTORS["points"]
    ]


@given(st.text(max_size=40), st.text(max_size=60))
def test_hash_is_murmur3_of_the_utf8_text(salt: str, install_id: str) -> None:
    assert point(salt, install_id) == murmur3_x86_32(f"{salt}.{install_id}".encode("utf-8", "surrogatepass"))


@given(
    st.decimals(0, 100, places=3).map(float),
    st.decimals(0, 100, places=3).map(float),
    st.text(min_size=1, max_size=8),
    st.uuids().map(str),
)
def test_growing_a_percentage_never_drops_a_member(one: float, other: float, salt: str, install_id: str) -> None:
    smaller, larger = sorted((one, other))
    assert threshold(smaller) <= threshold(larger)
    if bucket(salt, install_id) < threshold(smaller):
        assert bucket(salt, install_id) < threshold(larger)


@given(st.integers(0, 100_000))
def test_a_threshold_is_the_decimal_times_a_thousand(thousandths: int) -> None:
    assert threshold(thousandths / 1000) == thousandths


def test_shares_come_out_as_asked() -> None:
    installs = [str(uuid.UUID(int=number, version=4)) for number in range(20_000)]
    share = sum(bucket("r7", one) < threshold(25.0) for one in installs) / len(installs)
    assert abs(share - 0.25) < 0.01
    picked = [pick("ab-1", one, [1, 4]) for one in installs]
    assert abs(picked.count(0) / len(installs) - 0.25) < 0.01
    # Another salt is another draw: members of one rollout spread evenly over the other.
    both = sum(bucket("r7", one) < threshold(25.0) and bucket("r8", one) < threshold(25.0) for one in installs) / len(installs)
    assert abs(both - 0.0625) < 0.01
