"""Where the real servers of `make servers` are, for tests marked `cluster`. A server that is not there is a failure, never a skip.

Every caller takes a namespace of its own (schema prefix, topic prefix, key prefix, database), so that tests may share the servers.
"""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit
from uuid import uuid4

import pytest

from deploy.cluster import Stores

ENV_FILE = Path(__file__).resolve().parents[1] / "build" / "servers" / "servers.env"


def address(name: str) -> str:
    """Return the value of `LATEBIND_TEST_<name>`: from the environment, else from the file that `make servers` writes."""
    key = f"LATEBIND_TEST_{name}"
    if key in os.environ:
        return os.environ[key]
    if ENV_FILE.exists():
        for line in ENV_FILE.read_text().splitlines():
            found, _, value = line.partition("=")
            if found == key:
                return value
    pytest.fail(f"no {key}: start the real servers with `make servers` (or run `make test-cluster`)")


def namespace() -> str:
    """Return a name that no other test uses: letters and digits, starts with a letter."""
    return f"t{uuid4().hex[:12]}"


def with_query(url: str, **options: str) -> str:
    """Return the URL with these options added to its query."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(query=urlencode([*parse_qsl(parts.query), *options.items()], safe=",.")))


def postgres(server: str = "POSTGRES", **options: str) -> str:
    """Return the URL of a PostgreSQL (`POSTGRES`: the newest, `POSTGRES15`) with schemas of its own; append `#service`."""
    return with_query(address(f"{server}_URL"), schema_prefix=f"{namespace()}_", **options)


def kafka(**options: str) -> str:
    """Return the URL of a Kafka with topics and groups of its own."""
    return with_query(address("KAFKA_URL"), prefix=f"{namespace()}.", **options)


def s3(server: str, **options: str) -> str:
    """Return the URL of an S3 store (`seaweedfs` or `minio`) with a bucket of its own, which the adapter makes."""
    parts = urlsplit(address(f"{server.upper()}_URL"))
    url = urlunsplit(parts._replace(path=f"/{namespace()}"))
    return with_query(url, **options) if options else url


def clickhouse(**options: str) -> str:
    """Return the URL of a ClickHouse with a database of its own, which the adapter makes."""
    parts = urlsplit(address("CLICKHOUSE_URL"))
    url = urlunsplit(parts._replace(path=f"/{namespace()}"))
    return with_query(url, **options) if options else url


def stores() -> Stores:
    """Return the URLs of all four, for `deploy.cluster`, in a namespace of its own."""
    return Stores(postgres(), kafka(), s3("seaweedfs"), clickhouse())
