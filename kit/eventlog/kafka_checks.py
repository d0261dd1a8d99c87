"""What `latebindd doctor` says about the topics of a Kafka cluster, from what the cluster tells of them. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kit.checks import Finding, fault, note, ok


def examine_topics(
    names: Sequence[str], described: Sequence[Mapping[str, Any]], *, brokers: int, partitions: int, replication: int
) -> Iterator[Finding]:
    """Compare topics with the URL. `described` is the broker's metadata of those that exist."""
    missing = len(names) - len(described)
    if replication > brokers:
        yield fault(
            "replication",
            f"{replication} replicas are asked for, {brokers} brokers are there",
            "lower replication in LATEBIND_EVENTLOG_URL, or add brokers",
        )
    elif replication == 1 and brokers > 1:
        yield note(
            "replication",
            "topics have one replica: a lost disk loses events",
            "set replication=3 in LATEBIND_EVENTLOG_URL before the first start",
        )
    else:
        yield ok("replication", f"{replication} on {brokers} brokers")
    if missing:
        advice = "`latebindd migrate` or the first use makes them; if there were events before, LATEBIND_EVENTLOG_URL has another prefix"
        yield note("topics", f"{missing} of {len(names)} are missing", advice)
    else:
        yield ok("topics", f"{len(described)} are there")
    for topic in described:
        yield from _examine_topic(topic, partitions, replication)


def _examine_topic(topic: Mapping[str, Any], partitions: int, replication: int) -> Iterator[Finding]:
    check = f"topic {topic['topic']}"
    found = topic["partitions"]
    if headless := [one["partition"] for one in found if one["leader"] < 0]:
        yield fault(check, f"partitions {headless} have no leader", "start the brokers that hold them")
    if behind := [one["partition"] for one in found if len(one["isr"]) < len(one["replicas"])]:
        yield fault(check, f"replicas of partitions {behind} are behind or down", "look at the brokers that hold them")
    replicas = min((len(one["replicas"]) for one in found), default=0)
    if replicas < replication:
        yield fault(check, f"has {replicas} replicas, {replication} are asked for", "raise them with kafka-reassign-partitions")
    if len(found) != partitions:
        yield note(
            check,
            f"has {len(found)} partitions, the URL says {partitions}",
            "existing topics keep theirs; change them only while nothing is unread",
        )
