"""The second fence between accounts: row-level security on every table with an `account` column (PostgreSQL; SQLite has none).

The first fence is the `WHERE account = …` of each statement. This one holds when that is forgotten: a transaction sees and writes only
rows of the account it was begun for (`kit.context.account_scope`), and none when it was begun for nobody.
https://www.postgresql.org/docs/current/ddl-rowsecurity.html
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, text

from kit.db import Dialect


def fence_accounts(connection: Connection, tables: Sequence[str]) -> None:
    """Put the policy on these tables. Their owner is bound as well; a superuser never is, so the service must not be one."""
    dialect: Dialect = connection.info["dialect"]
    for table in tables:
        for statement in dialect.fence(table):
            connection.execute(text(statement))
