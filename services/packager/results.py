"""What work on uploads came to, so that the same work is not done twice (PERF-P3): by account and by everything that it depends on.

It decides nothing about whether a result is good: only what was checked is kept, and it is checked again when it is used. Files are
blobs of the account; a result whose files are gone is not known. One account never learns what another one has uploaded.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from kit.blobs import BlobNotFound, BlobStore
from services.packager.declaration import File

_CODE = Path(__file__).parent
#: What runs on the child's side: with other code the same work may come to something else.
_PARTS = ("*.py", "formats/*.py", "converters/*.py", "isolation/*.py")


class Kept(Protocol):
    """Where results lie: `PackagerService`."""

    async def find_result(self, account: str, key: str) -> bytes | None:
        """Return a value."""
        ...

    async def keep_result(self, account: str, key: str, value: bytes) -> None:
        """Keep a value, and as many others as the account may have."""
        ...


@dataclass(frozen=True, slots=True)
class Result:
    """What a child answered, as it came, and the files that it left, which are blobs now."""

    answer: bytes
    files: Mapping[str, File]


class Results:
    """Finds and keeps results. `tools` names everything that does the work, with versions."""

    def __init__(self, kept: Kept, blobs: BlobStore, tools: Mapping[str, str]) -> None:
        self._kept, self._blobs = kept, blobs
        self._tools = {**tools, "code": code_digest()}

    async def find(self, account: str, facts: Mapping[str, Any]) -> Result | None:
        """Return what work with these facts came to: kind of work, digests of inputs, options. None: it must be done."""
        raw = await self._kept.find_result(account, self._key(facts))
        if raw is None:
            return None
        document = json.loads(raw)
        files = {name: File(**entry) for name, entry in document["files"].items()}
        for file in files.values():
            try:
                if (await self._blobs.stat(account, file.sha256)).size != file.size:
                    return None
            except BlobNotFound:
                return None
        return Result(document["answer"].encode(), files)

    async def keep(self, account: str, facts: Mapping[str, Any], result: Result) -> None:
        """Keep a result that was checked; its files are stored already."""
        document = {"answer": result.answer.decode(), "files": {name: asdict(file) for name, file in result.files.items()}}
        await self._kept.keep_result(account, self._key(facts), json.dumps(document).encode())

    def _key(self, facts: Mapping[str, Any]) -> str:
        return hashlib.sha256(json.dumps({"facts": facts, "tools": self._tools}, sort_keys=True).encode()).hexdigest()


def code_digest() -> str:
    """Return a digest of our own code that works on uploads."""
    digest = hashlib.sha256()
    for path in sorted({path for part in _PARTS for path in _CODE.glob(part)}):
        digest.update(f"{path.relative_to(_CODE)}\0".encode() + path.read_bytes())
    return digest.hexdigest()
