"""What an operator may say about Kafka, in the query of its URL."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class KafkaOptions:
    """What stands in the query of the URL. Sizes in bytes, times in seconds."""

    #: Put before the names of topics and groups, so that several installations share a cluster.
    prefix: str = ""
    #: Partitions and replicas of a topic that does not exist yet.
    partitions: int = 8
    replication: int = 1
    #: How long `append` waits for the acknowledgement of all in-sync replicas.
    append_s: float = 10.0
    #: So much may wait to be acknowledged; beyond it `append` waits `full_wait_s` and then raises `LogFull`.
    max_waiting_bytes: int = 64 << 20
    full_wait_s: float = 2.0
    #: A reader that was killed is replaced after this time.
    session_s: float = 10.0
    #: A topic that is made keeps its records so long.
    retention_s: int = 7 * 86400
    linger_ms: int = 2
