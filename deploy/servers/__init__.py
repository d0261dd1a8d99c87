"""Real PostgreSQL, Kafka, S3 and ClickHouse as plain processes on one machine: for development, tests and `make cluster`.

`python -m deploy.servers up|stop|status|install`. No containers, no root needed beyond packages that apt has to install.
It is not how to run them in production: durability against power loss is traded for speed (`fsync=off`), and nothing has a password
that is a secret.
"""

from deploy.servers.kinds import KINDS
from deploy.servers.server import Server, ServerFailed

__all__ = ["KINDS", "Server", "ServerFailed"]
