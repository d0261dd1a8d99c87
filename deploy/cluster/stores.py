"""Where a cluster keeps its data: the URLs of four servers, in a namespace that several clusters and tests do not share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit


@dataclass(frozen=True)
class Stores:
    """URLs as `LATEBIND_…_URL` takes them. `dataclasses.replace` puts a proxy before one of them."""

    database: str
    eventlog: str
    blobs: str
    olap: str

    @classmethod
    def within(cls, servers: Mapping[str, str], namespace: str) -> Self:
        """Return stores on the servers of `make servers` (`POSTGRES_URL`, …): schemas, topics, bucket and database of this name.

        `namespace` has letters and digits and starts with a letter.
        """
        return cls(
            _with(servers["POSTGRES_URL"], schema_prefix=f"{namespace}_"),
            _with(servers["KAFKA_URL"], prefix=f"{namespace}."),
            _with(servers["SEAWEEDFS_URL"], path=f"/{namespace}"),
            _with(servers["CLICKHOUSE_URL"], path=f"/{namespace}"),
        )

    @property
    def environment(self) -> dict[str, str]:
        """What a process is told."""
        return {
            "LATEBIND_DATABASE_URL": self.database,
            "LATEBIND_EVENTLOG_URL": self.eventlog,
            "LATEBIND_BLOBS_URL": self.blobs,
            "LATEBIND_OLAP_URL": self.olap,
        }


def _with(url: str, *, path: str = "", **options: str) -> str:
    parts = urlsplit(url)
    query = urlencode([*parse_qsl(parts.query), *options.items()], safe=",.")
    return urlunsplit(parts._replace(path=path or parts.path, query=query))
