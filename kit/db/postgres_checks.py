"""What `latebindd doctor` asks a PostgreSQL: version, role, rights, fences, connections, durability, clock."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from kit.checks import Finding, Findings, clocks, fault, note, ok

_OLDEST = 150000
_ROLE = text(
    "SELECT current_user AS name, rolsuper, rolbypassrls, has_database_privilege(current_database(), 'CREATE') AS may_create,"
    " to_regnamespace(:schema) IS NOT NULL AS there"
    " FROM pg_roles WHERE rolname = current_user"
)
_UNFENCED = text(
    "SELECT c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
    " JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'account' AND NOT a.attisdropped"
    " WHERE n.nspname = :schema AND c.relkind IN ('r', 'p') AND NOT (c.relrowsecurity AND c.relforcerowsecurity) ORDER BY 1"
)
#: SQLSTATE of a refused connection -> what to do (PostgreSQL, appendix A).
_REFUSALS = {
    "28P01": "the password is wrong: correct it in LATEBIND_DATABASE_URL",
    "28000": "there is no such role, it may not log in, or pg_hba.conf has no line that lets it in",
    "3D000": "the database does not exist: CREATE DATABASE … OWNER …",
    "53300": "the server has no free connection: raise max_connections, or lower pool in LATEBIND_DATABASE_URL",
}


async def examine(engine: AsyncEngine, schema: str, *, connections: int) -> Findings:
    """Connect with `engine` and look. `connections` is what one process with every service may open."""
    try:
        async with engine.connect() as connection:
            async for finding in _look(connection, schema, connections):
                yield finding
    except (OSError, TimeoutError, DBAPIError) as error:
        # The driver raises its own errors while it connects, so the class of the error tells little.
        yield _refused(error)
    except Exception as error:
        if getattr(error, "sqlstate", None) is None:
            raise
        yield _refused(error)


async def _look(connection: AsyncConnection, schema: str, connections: int) -> Findings:
    server = {name: await _show(connection, name) for name in ("server_version", "server_version_num", "fsync", "full_page_writes")}
    if int(server["server_version_num"]) < _OLDEST:
        yield fault("server", f"PostgreSQL {server['server_version']} is too old", "use PostgreSQL 15 or newer")
    else:
        yield ok("server", f"PostgreSQL {server['server_version']}")
    role = (await connection.execute(_ROLE, {"schema": f'"{schema}"'})).one()
    if role.rolsuper or role.rolbypassrls:
        why = "is a superuser" if role.rolsuper else "has BYPASSRLS"
        yield fault(
            "role",
            f"{role.name} {why}: row-level security does not bind it",
            f"ALTER ROLE {role.name} NOSUPERUSER NOBYPASSRLS, or use another",
        )
    else:
        yield ok("role", f"{role.name} is bound by row-level security")
    if role.there or role.may_create:
        yield ok("rights", f"the schema {schema} is there" if role.there else f"the schema {schema} can be made")
    else:
        yield fault("rights", f"{role.name} may not make the schema {schema}", f"GRANT CREATE ON DATABASE … TO {role.name}")
    unfenced = (await connection.execute(_UNFENCED, {"schema": schema})).scalars().all()
    if unfenced:
        yield fault(
            "fences", f"no row-level security on {', '.join(unfenced)}", "run `latebindd migrate`; nothing else may alter these tables"
        )
    elif role.there:
        yield ok("fences", "every table of accounts has row-level security")
    yield await _connections(connection, connections)
    off = [name for name in ("fsync", "full_page_writes") if server[name] != "on"] + [
        name for name in ("synchronous_commit",) if await _show(connection, name) == "off"
    ]
    if off:
        yield note("durability", f"{' and '.join(off)} off: acknowledged data can be lost in a crash", "switch on where data matters")
    else:
        yield ok("durability", "commits are on disk")
    theirs = (await connection.execute(text("SELECT clock_timestamp()"))).scalar_one()
    yield clocks(theirs, datetime.now(UTC))


async def _connections(connection: AsyncConnection, wanted: int) -> Finding:
    free = int(await _show(connection, "max_connections")) - int(await _show(connection, "superuser_reserved_connections"))
    if free < wanted:
        return note(
            "connections",
            f"one process may open {wanted}, the server takes {free}",
            "raise max_connections, or lower pool in LATEBIND_DATABASE_URL",
        )
    return ok("connections", f"one process may open {wanted} of {free}")


async def _show(connection: AsyncConnection, name: str) -> Any:
    return (await connection.execute(text("SELECT current_setting(:name)"), {"name": name})).scalar_one()


def _refused(error: BaseException) -> Finding:
    state = getattr(getattr(error, "orig", error), "sqlstate", None)
    if state is None:
        return fault("server", "does not answer", "check host and port of LATEBIND_DATABASE_URL, and that PostgreSQL listens there")
    return fault("server", f"refuses the connection (SQLSTATE {state})", _REFUSALS.get(state, "look into the server's log"))
