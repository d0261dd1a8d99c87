"""Use case of bundles: sign, once for all devices, what some collections and models give (docs/interop.md). It only reads.

A bundle is an assignment without install and nonce, for devices that cannot ask. Whoever may publish may make one.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kit.clock import Clock, rfc3339
from kit.db import Database
from kit.signing import DerivedSigner
from services.deployer import store
from services.deployer.binding import Refusal
from services.deployer.compatibility import Package
from services.deployer.errors import ContextInvalid, NoCompatiblePackage, NoMatch, VersionNotReady
from services.deployer.service import CollectionService, answer_document

PAYLOAD_TYPE = "application/vnd.latebind.bundle+json"


@dataclass(frozen=True, slots=True)
class WantedCollection:
    """A collection, and the devices that it is wanted for."""

    collection: str
    contexts: Sequence[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class WantedModel:
    """A version of a model, by number or by alias."""

    model_id: str
    version: int | None
    alias: str | None


@dataclass(frozen=True, slots=True)
class SignedBundle:
    """The envelope, and the packages that it names, each once."""

    envelope: dict[str, Any]
    packages: tuple[Package, ...]


class BundleService:
    """Bundles of all accounts; every call names the account of its caller."""

    def __init__(self, database: Database, collections: CollectionService, *, signer: DerivedSigner, clock: Clock) -> None:
        self._database, self._collections, self._signer, self._clock = database, collections, signer, clock

    async def sign(self, account: str, collections: Sequence[WantedCollection], models: Sequence[WantedModel]) -> SignedBundle:
        """Say what each gives now, and sign it. A model is opened under its own id.

        Raises `ContextInvalid` (nothing is named, or something twice), `CollectionNotFound`, `NothingPublished`, `NoMatch`,
        `NoCompatiblePackage`, `VersionNotReady`.
        """
        named = [one.collection for one in collections] + [one.model_id for one in models]
        if not named or len(set(named)) != len(named):
            raise ContextInvalid("a bundle names at least one collection or model, and each once")
        if any((one.version is None) == (one.alias is None) for one in models):
            raise ContextInvalid("a model of a bundle has a version or an alias")
        now = self._clock.now()
        packages: dict[str, Package] = {}
        names = []
        for wanted in collections:
            given, revision = await self._of_collection(account, wanted)
            names.append({"name": wanted.collection, "revision": revision, "packages": list(given)})
            packages |= given
        for model in models:
            given = await self._of_model(account, model)
            names.append({"name": model.model_id, "revision": 0, "packages": list(given)})
            packages |= given
        payload = {
            "type": "latebind-bundle-v1",
            "account": account,
            "issued_at": rfc3339(now),
            "counter": int(now.timestamp() * 1_000_000),
            "names": names,
        }
        body = json.dumps(payload, separators=(",", ":"), ensure_ascii=False).encode()
        return SignedBundle(dict(self._signer.sign(account, PAYLOAD_TYPE, body)), tuple(packages.values()))

    async def _of_collection(self, account: str, wanted: WantedCollection) -> tuple[dict[str, Package], int]:
        """What each of the devices gets, in their order."""
        given: dict[str, Package] = {}
        revision = 0
        for context in wanted.contexts:
            explained = await self._collections.explain(
                account, wanted.collection, context=context, install_id=None, revision=None, draft=False, at=None
            )
            answer = explained.explanation.answer
            if isinstance(answer, Refusal):
                refused = answer_document(answer)["packages"]
                error = NoCompatiblePackage if refused else NoMatch
                raise error(f"the collection {wanted.collection} gives nothing to a device of this context", packages=refused)
            given.setdefault(answer.package.digest, answer.package)
            revision = explained.revision or 0
        return given, revision

    async def _of_model(self, account: str, wanted: WantedModel) -> dict[str, Package]:
        """The packages of a version, in its order of preference."""
        async with self._database.read() as reader:
            version = wanted.version
            if version is None:
                version = (await store.catalogue(reader, account, [wanted.model_id], [])).aliases.get((wanted.model_id, wanted.alias or ""))
            named = [] if version is None else [(wanted.model_id, version)]
            entry = (await store.catalogue(reader, account, [], named)).versions.get((wanted.model_id, version or 0))
        if entry is None or entry.archived or not entry.packages:
            what = f"version {version}" if version is not None else f"alias {wanted.alias!r}"
            raise VersionNotReady(f"{what} of model {wanted.model_id!r} is not there, or not ready")
        return {package.digest: package for package in entry.packages}
