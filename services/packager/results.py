"""What work on uploads came to, so that the same work is not done twice (PERF-P3): by account and by everything that it depends on.

It decides nothing about whether a result is good: only what was checked is kept, and it is checked again when it is used. Files that a
package has too (golden ones) are blobs of the account; what only a result has (the graphs of a conversion) lies in a namespace of that
result, so that it can go with it. A result whose files are gone is not known. One account never learns what another one has uploaded.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from kit.blobs import BlobMismatch, BlobNotFound, BlobStore
from services.packager.declaration import File
from services.packager.errors import ModelRejected
from services.packager.files import Files, digest_of

_CODE = Path(__file__).parent
#: What runs on the child's side: with other code the same work may come to something else.
_PARTS = ("*.py", "formats/*.py", "converters/*.py", "isolation/*.py")


class Kept(Protocol):
    """Where results lie: `PackagerService`."""

    async def find_result(self, account: str, key: str) -> bytes | None:
        """Return a value."""
        ...

    async def keep_result(self, account: str, key: str, value: bytes, size: int = 0) -> Sequence[tuple[str, bytes]]:
        """Keep a value with files of `size` bytes. Return (key, value) of those that are too many for the account now."""
        ...

    async def forget_results(self, account: str, keys: Sequence[str]) -> None:
        """Forget values."""
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
        await self._make_room(account, await self._kept.keep_result(account, self._key(facts), json.dumps(document).encode()))

    async def fetch(self, account: str, facts: Mapping[str, Any], folder: Path) -> bytes | None:
        """Return what was kept by `store`, and copy its files into `folder`. None: it must be done, and nothing was copied."""
        key = self._key(facts)
        raw = await self._kept.find_result(account, key)
        if raw is None:
            return None
        document = json.loads(raw)
        own = Files(self._blobs, _namespace(account, key))
        copied: list[Path] = []
        try:
            for name, entry in document["own"].items():
                copied.append(folder / name)
                await own.fetch(File(name, entry["sha256"], entry["size"], "result"), copied[-1])
        except (ModelRejected, BlobNotFound, BlobMismatch):
            for path in copied:
                path.unlink(missing_ok=True)
            return None
        return bytes(document["answer"].encode())

    async def store(self, account: str, facts: Mapping[str, Any], answer: bytes, files: Mapping[str, Path]) -> None:
        """Keep an answer that was checked, and its files, in a namespace of their own."""
        key = self._key(facts)
        entries = {name: await asyncio.to_thread(_entry, path) for name, path in files.items()}
        value = json.dumps({"answer": answer.decode(), "files": {}, "own": entries}).encode()
        # The row first: files without one would stay for ever, and a row without files is not known.
        surplus = await self._kept.keep_result(account, key, value, sum(entry["size"] for entry in entries.values()))
        if key not in {other for other, _ in surplus}:
            own = Files(self._blobs, _namespace(account, key))
            for name, path in files.items():
                await own.keep(path, name, "result")
        await self._make_room(account, surplus)

    async def _make_room(self, account: str, surplus: Sequence[tuple[str, bytes]]) -> None:
        """Remove results: their files first, since nobody would find them without the row."""
        for key, value in surplus:
            for entry in json.loads(value).get("own", {}).values():
                await self._blobs.delete(_namespace(account, key), entry["sha256"])
        await self._kept.forget_results(account, [key for key, _ in surplus])

    def _key(self, facts: Mapping[str, Any]) -> str:
        return hashlib.sha256(json.dumps({"facts": facts, "tools": self._tools}, sort_keys=True).encode()).hexdigest()


def _namespace(account: str, key: str) -> str:
    """Name the place of a result's own files; no account can be called like that."""
    return f"r_{hashlib.sha256(f'{account} {key}'.encode()).hexdigest()[:40]}"


def _entry(path: Path) -> dict[str, Any]:
    return {"sha256": digest_of(path), "size": path.stat().st_size}


def code_digest() -> str:
    """Return a digest of our own code that works on uploads."""
    digest = hashlib.sha256()
    for path in sorted({path for part in _PARTS for path in _CODE.glob(part)}):
        digest.update(f"{path.relative_to(_CODE)}\0".encode() + path.read_bytes())
    return digest.hexdigest()
