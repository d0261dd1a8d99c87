"""Use cases of the catalogue: the operator's sources, everybody's list, and taking a model over."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import aclosing

from kit.blobs import BlobMismatch, BlobNotFound, BlobStore
from kit.clock import Clock
from kit.db import Database
from kit.errors import Problem
from kit.ids import random_code
from kit.logs import get_logger
from kit.signing import EnvelopeInvalid, key_id_of, verify_envelope
from services.registry.catalogue import store
from services.registry.catalogue.domain import (
    Entry,
    ForeignPackage,
    ListedPackage,
    Source,
    declaration_of,
    files_to_take,
    read_index,
    read_package,
)
from services.registry.catalogue.errors import (
    CatalogueEntryNotFound,
    CatalogueLocationInvalid,
    CataloguePackageInvalid,
    CatalogueSourceExists,
    CatalogueSourceNotFound,
)
from services.registry.catalogue.fetch import Place, check_location, open_place, read_whole
from services.registry.domain import Slice
from services.registry.service import ModelService
from services.registry.versions.domain import Version
from services.registry.versions.service import VersionService

log = get_logger(__name__)

INDEX = "catalogue.json"
MAX_INDEX_BYTES = 8 << 20
MAX_MANIFEST_BYTES = 4 << 20
MAX_ENVELOPE_BYTES = 6 << 20
_PAYLOAD_TYPE = "application/vnd.in-toto+json"
_TAKES_AT_ONCE = 4


class CatalogueService:
    """Sources, entries, and taking over."""

    def __init__(
        self,
        database: Database,
        blobs: BlobStore,
        clock: Clock,
        model_service: ModelService,
        version_service: VersionService,
        *,
        max_file_bytes: int,
    ) -> None:
        self._database = database
        self._blobs = blobs
        self._clock = clock
        self._models = model_service
        self._versions = version_service
        self._max_file_bytes = max_file_bytes
        self._takes = asyncio.Semaphore(_TAKES_AT_ONCE)

    async def add_source(self, location: str, public_keys: Mapping[str, bytes], *, by: str) -> Source:
        """Name a source; its index is fetched at once.

        Raises `CatalogueLocationInvalid`, `CatalogueUnreachable`, `CatalogueInvalid`, `CatalogueSourceExists`.
        """
        location = check_location(location)
        for key_id, key in public_keys.items():
            if len(key) != 32 or key_id_of(key) != key_id:
                raise CatalogueLocationInvalid("a key_id is the hex SHA-256 of its raw 32-byte Ed25519 public key")
        source_id = random_code("cs")
        title, entries = await self._fetch_index(source_id, location)
        now = self._clock.now()
        source = Source(source_id, location, dict(public_keys), title, now, by, now, None)
        async with self._database.begin() as tx:
            if not await store.add_source(tx, source):
                raise CatalogueSourceExists("this location is a source already; delete it first to change its keys")
            await store.replace_entries(tx, source_id, title, entries, at=now)
        return source

    async def list_sources(self, *, after: str, size: int) -> Slice[Source]:
        """Return a page of sources."""
        async with self._database.read() as reader:
            return Slice.cut(await store.list_sources(reader, after=after, limit=size + 1), size)

    async def delete_source(self, source_id: str) -> None:
        """Forget a source. What was taken over from it stays. Raises `CatalogueSourceNotFound`."""
        async with self._database.begin() as tx:
            if not await store.delete_source(tx, source_id):
                raise CatalogueSourceNotFound("there is no such source")

    async def refresh(self) -> None:
        """Fetch every index again. A source that fails keeps its entries, and says what is wrong."""
        async with self._database.read() as reader:
            sources = await store.list_sources(reader)
        for source in sources:
            try:
                title, entries = await self._fetch_index(source.source_id, source.location)
            except Problem as problem:
                log.warning("a catalogue source cannot be fetched", source=source.source_id, detail=problem.detail)
                async with self._database.begin() as tx:
                    await store.note_problem(tx, source.source_id, problem.detail)
                continue
            async with self._database.begin() as tx:
                if await store.find_source(tx, source.source_id) is not None:
                    await store.replace_entries(tx, source.source_id, title, entries, at=self._clock.now())

    async def list_entries(self, *, search: str, after: tuple[str, str] | None, size: int) -> Slice[Entry]:
        """Return a page of entries, as they were fetched last."""
        async with self._database.read() as reader:
            return Slice.cut(await store.list_entries(reader, search=search, after=after, limit=size + 1), size)

    async def find(self, entry_id: str) -> tuple[Source, Entry]:
        """Return an entry and its source. Raises `CatalogueEntryNotFound`."""
        source_id, _, name = entry_id.partition(".")
        async with self._database.read() as reader:
            source = await store.find_source(reader, source_id)
            entry = await store.find_entry(reader, source_id, name)
        if source is None or entry is None:
            raise CatalogueEntryNotFound("the catalogue has no such entry")
        return source, entry

    async def take(self, account: str, entry_id: str, *, model_id: str | None, by: str) -> Version:
        """Copy an entry's files into the account, and commit them as a version of `model_id` (default: the origin's id).

        A model of that id is continued, if the parameter contract allows it. All or nothing, but for copied blobs, which the next try
        finds. Raises `CatalogueEntryNotFound`, `CatalogueUnreachable`, `CataloguePackageInvalid`, `ContractBroken`.
        """
        source, entry = await self.find(entry_id)
        async with self._takes, open_place(source.location) as place:
            packages = [await self._verified(place, source, listed) for listed in entry.packages]
            declaration = declaration_of(packages, entry=entry, source_title=source.title)
            await self._copy(account, place, packages)
        await self._versions.check(account, declaration)
        async with self._database.begin() as tx:
            wanted = model_id or packages[0].manifest["model_id"]
            model = await self._models.ensure_in(
                tx, account, wanted, description=entry.description or entry.title, labels=entry.labels, by=by
            )
            draft = await self._versions.create_in(tx, model, declaration, by=by)
            return await self._versions.commit_in(tx, model, draft, by=by)

    async def _fetch_index(self, source_id: str, location: str) -> tuple[str, list[Entry]]:
        async with open_place(location) as place:
            return read_index(await read_whole(place, INDEX, max_bytes=MAX_INDEX_BYTES), source_id)

    async def _verified(self, place: Place, source: Source, listed: ListedPackage) -> ForeignPackage:
        """Fetch manifest and signature; believe them only when a key of the source signed them."""
        manifest = await read_whole(place, f"{listed.path}/manifest.json", max_bytes=MAX_MANIFEST_BYTES)
        if hashlib.sha256(manifest).hexdigest() != listed.digest:
            raise CataloguePackageInvalid(f"{listed.path}/manifest.json has another SHA-256 than the catalogue lists")
        envelope = await read_whole(place, f"{listed.path}/signature.json", max_bytes=MAX_ENVELOPE_BYTES)
        try:
            statement = verify_envelope(json.loads(envelope), _PAYLOAD_TYPE, source.public_keys)
        except (EnvelopeInvalid, ValueError, RecursionError) as error:
            raise CataloguePackageInvalid(f"{listed.path}/signature.json: {str(error)[:200]}") from error
        return read_package(listed, manifest, statement)

    async def _copy(self, account: str, place: Place, packages: Sequence[ForeignPackage]) -> None:
        """Copy what the account does not have yet, checking each file's digest and size on the way."""
        for sha256, (path, size) in files_to_take(packages).items():
            if size > self._max_file_bytes:
                raise CataloguePackageInvalid(f"{path} has {size} bytes; at most {self._max_file_bytes} are taken")
            try:
                if (await self._blobs.stat(account, sha256)).size == size:
                    continue
            except BlobNotFound:
                pass
            try:
                async with aclosing(place.stream(path)) as chunks:
                    await self._blobs.put(account, chunks, sha256=sha256, size=size)
            except BlobMismatch as error:
                raise CataloguePackageInvalid(f"{path} is not the file that was signed ({error.detail})") from error
