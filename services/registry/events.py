"""Topic of aliases, and its message; the rooms have their own."""

from __future__ import annotations

from latebind_proto.events_pb2 import AliasMoved

ALIAS_MOVED = "alias.moved"


def model_key(account: str, model_id: str) -> str:
    """Return the key by which a model's events keep their order (docs/topics.md)."""
    return f"{account}/{model_id}"


def alias_moved(account: str, model_id: str, alias: str, version: int | None) -> bytes:
    """Return the message of a move; None: the alias was removed."""
    return AliasMoved(account=account, model_id=model_id, alias=alias, version=version or 0).SerializeToString()
