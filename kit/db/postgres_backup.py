"""Runs PostgreSQL's own `pg_dump` and `pg_restore` for the schemas of the services.

Rows are fenced by account for the tables' owner as well, so the dump says that it may see all; rows are loaded before the fences are put
up again (policies are in the last section of a dump).
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from sqlalchemy import URL

from kit.db import DatabaseUnavailable


async def dump(address: URL, tls: str, *, snapshot: str, schemas: Sequence[str], file: Path, programs: Path | None) -> None:
    """Write the schemas as they are in an exported snapshot. Raises `ValueError` without a program, `DatabaseUnavailable` when it fails."""
    chosen = [f"--schema={schema}" for schema in schemas]
    what = ["--format=custom", "--no-owner", "--no-privileges", "--enable-row-security", f"--snapshot={snapshot}", f"--file={file}"]
    await _run(_program("pg_dump", programs), [*what, *chosen], address, tls)


async def load(address: URL, tls: str, *, file: Path, programs: Path | None) -> None:
    """Load a dump into a database that has none of its schemas, whole or not at all."""
    await _run(_program("pg_restore", programs), ["--no-owner", "--no-privileges", "--single-transaction", str(file)], address, tls)


def _program(name: str, programs: Path | None) -> str:
    found = shutil.which(name, path=str(programs) if programs else None)
    if found is None:
        raise ValueError(f"{name} is not there: install PostgreSQL's client programs, at least as new as the server, or use --pg-bin")
    return found


async def _run(program: str, arguments: Sequence[str], address: URL, tls: str) -> None:
    environment = {
        **os.environ,
        "PGHOST": str(address.host),
        "PGPORT": str(address.port),
        "PGUSER": address.username or "",
        "PGPASSWORD": str(address.password or ""),
        "PGSSLMODE": tls,
        "PGOPTIONS": "-c latebind.account=* -c statement_timeout=0 -c idle_in_transaction_session_timeout=0",
    }
    process = await asyncio.create_subprocess_exec(
        program, f"--dbname={address.database}", *arguments, env=environment, stderr=asyncio.subprocess.PIPE
    )
    try:
        _, said = await process.communicate()
    except BaseException:
        process.kill()
        await process.wait()
        raise
    if process.returncode:
        raise DatabaseUnavailable(f"{Path(program).name} failed: {said.decode(errors='replace').strip()[-1500:]}")
