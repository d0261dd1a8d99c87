"""The second fence between accounts: row-level security on every table with an `account` column (PostgreSQL; SQLite has none).

The first fence is the `WHERE account = …` of each statement. This one holds when that is forgotten: a transaction sees and writes only
rows of the account it was begun for (`kit.context.account_scope`), and none when it was begun for nobody.
https://www.postgresql.org/docs/current/ddl-rowsecurity.html
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, text

_VISIBLE = "account = current_setting('latebind.account', true) OR current_setting('latebind.account', true) = '*'"


def fence_accounts(connection: Connection, tables: Sequence[str]) -> None:
    """Put the policy on these tables. Their owner is bound as well; a superuser never is, so the service must not be one."""
    if connection.dialect.name != "postgresql":
        return
    for table in tables:
        connection.execute(text(f'ALTER TABLE "{table}" ENABLE ROW LEVEL SECURITY'))
        connection.execute(text(f'ALTER TABLE "{table}" FORCE ROW LEVEL SECURITY'))
        connection.execute(text(f'CREATE POLICY account_fence ON "{table}" USING ({_VISIBLE}) WITH CHECK ({_VISIBLE})'))
