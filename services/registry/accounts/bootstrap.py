"""The operator key: made at the first start on an empty database, kept in a file that only the server's user can read."""

from __future__ import annotations

import asyncio
import os
import stat
from pathlib import Path

from kit.ports import Ports
from services.registry.accounts import store
from services.registry.accounts.domain import OperatorKey, Secret, SecretHasher, SecretKind, new_secret, parse_secret


class OperatorKeyFileInvalid(Exception):
    """The operator key file cannot be used: it is not a key, not a regular file, or others may read it."""


async def ensure_operator_key(ports: Ports, path: Path) -> str | None:
    """Make the operator key if the database has none; returns its text for printing once, else None.

    The file (mode 0600) is written before the database learns the key, so a start that is killed in between is repeated with the
    same key. A database that has a key needs no file: whoever keeps the key elsewhere may remove it.

    Raises `OperatorKeyFileInvalid` when there is a file that is no operator key of mode 0600.
    """
    async with ports.database.read() as reader:
        if await store.find_operator_key(reader) is not None:
            return None
    secret = await asyncio.to_thread(_read_or_make, path)
    hasher = SecretHasher(ports.secrets.key("api-keys"))
    async with ports.database.begin() as tx:
        added = await store.add_operator_key(tx, OperatorKey(secret.key_id, hasher.digest(secret)), at=ports.clock.now())
        kept = await store.find_operator_key(tx)
    if kept is None or kept.key_id != secret.key_id:
        # Another process was faster, with a folder of its own: nobody may take this for the key.
        await asyncio.to_thread(path.unlink, missing_ok=True)
    return secret.text if added else None


def _read_or_make(path: Path) -> Secret:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        return _read(path)
    except FileNotFoundError:
        return _make(path)


def _read(path: Path) -> Secret:
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(handle, encoding="ascii") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode) or status.st_mode & 0o077:
            raise OperatorKeyFileInvalid(f"{path.name} must be a regular file of mode 0600")
        secret = parse_secret(file.read(200).strip())
    if secret is None or secret.kind is not SecretKind.OPERATOR:
        raise OperatorKeyFileInvalid(f"{path.name} does not hold an operator key; remove it to have a new one made")
    return secret


def _make(path: Path) -> Secret:
    """Write a new key so that the file is there whole or not at all."""
    secret = new_secret(SecretKind.OPERATOR)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(handle, "w", encoding="ascii") as file:
            file.write(f"{secret.text}\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    return secret
