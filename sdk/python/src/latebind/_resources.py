"""The nouns of the management API as small groups of calls; `client.py` puts them together.

Answers are the API's JSON objects as they are (`/openapi.json` describes them), lists are iterators over all pages.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from latebind._session import Json, Session, segment
from latebind.errors import Conflict, ResponseInvalid, ServerUnreachable, Unavailable

ENDED = frozenset({"succeeded", "failed", "cancelled"})
_POLL_S = 0.5


class Group:
    """Base of the groups: they share one session."""

    def __init__(self, session: Session) -> None:
        self._session = session


class Accounts(Group):
    """Tenants (`/v1/accounts`). The operator makes and lists them."""

    def create(self, account: str, *, title: str = "") -> Json:
        """Create an account. The answer's `api_key.key` is its first admin key, shown this once."""
        answer: Json = self._session.post("/v1/accounts", {"account": account, "title": title})
        return answer

    def list(self) -> Iterator[Json]:
        """All accounts."""
        return self._session.pages("/v1/accounts")

    def get(self, account: str) -> Json:
        """One account. Raises NotFound."""
        answer: Json = self._session.get(f"/v1/accounts/{segment(account)}")
        return answer

    def signing_keys(self, account: str) -> Iterator[Json]:
        """The public keys that sign the own account's packages and assignments: `role`, `key_id`, `public_key`."""
        return self._session.pages(f"/v1/accounts/{segment(account)}/signing-keys")


class Keys(Group):
    """API keys (`/v1/api-keys`) or enrolment keys (`/v1/enrolment-keys`). `account` is only for operators."""

    def __init__(self, session: Session, path: str) -> None:
        super().__init__(session)
        self._path = path

    def create(self, *, account: str | None = None, **fields: Any) -> Json:
        """Make a key. API keys take `scopes`, enrolment keys `quota`; both `name`, `expires_at`. The answer's `key` is shown this once."""
        named = {**fields, "account": account}
        answer: Json = self._session.post(self._path, {name: value for name, value in named.items() if value is not None})
        return answer

    def list(self, *, account: str | None = None) -> Iterator[Json]:
        """All keys, without their texts."""
        return self._session.pages(self._path, account=account)

    def revoke(self, key_id: str) -> Json:
        """Revoke a key. Repeating it changes nothing."""
        answer: Json = self._session.post(f"{self._path}/{segment(key_id)}:revoke")
        return answer


class Models(Group):
    """Models, their versions and aliases (`/v1/models`)."""

    def create(
        self, model_id: str, *, description: str = "", labels: Mapping[str, str] | None = None, contract_level: str = "frozen"
    ) -> Json:
        """Create a model. `contract_level` is `frozen` or `additive` (docs/contract.md). Raises Conflict (MODEL_EXISTS)."""
        body = {"model_id": model_id, "description": description, "labels": dict(labels or {}), "contract_level": contract_level}
        answer: Json = self._session.post("/v1/models", body)
        return answer

    def ensure(self, model_id: str, *, description: str = "", labels: Mapping[str, str] | None = None) -> Json:
        """The model, created if it is not there yet."""
        with contextlib.suppress(Conflict):
            return self.create(model_id, description=description, labels=labels)
        return self.get(model_id)

    def change(self, model_id: str, **fields: Any) -> Json:
        """Change `description`, `labels` or `contract_level`; what is left out or None stays. Raises NotFound."""
        body = {name: value for name, value in fields.items() if value is not None}
        answer: Json = self._session.patch(self._path(model_id), body)
        return answer

    def list(self, *, search: str = "") -> Iterator[Json]:
        """All models, or those with a text in id, description or labels."""
        return self._session.pages("/v1/models", search=search or None)

    def get(self, model_id: str) -> Json:
        """A model with its aliases and its parameter contract. Raises NotFound."""
        answer: Json = self._session.get(self._path(model_id))
        return answer

    def versions(self, model_id: str, *, state: str | None = None) -> Iterator[Json]:
        """The versions of a model, the newest first."""
        return self._session.pages(f"{self._path(model_id)}/versions", state=state)

    def version(self, model_id: str, version: int) -> Json:
        """One version with its packages. Raises NotFound."""
        answer: Json = self._session.get(self._path(model_id, version))
        return answer

    def packages(self, model_id: str, version: int) -> Sequence[Json]:
        """The packages of a version whole: manifest, signature, files."""
        return [*self._session.pages(f"{self._path(model_id, version)}/packages")]

    def download(self, file: Mapping[str, Any], path: Path) -> None:
        """Fetch one file of a package (an entry of its `files`) whole or not at all. Raises ResponseInvalid when it is not what it says."""
        answer = self._session.request("GET", file["url"])
        link = answer.headers.get("location")
        if answer.status != 307 or link is None:
            raise ResponseInvalid(f"the server answered {answer.status} where a link was due")
        self._session.download(link, path, sha256=file["sha256"], size=file["size"])

    def create_version(self, model_id: str, declaration: Mapping[str, Any]) -> Json:
        """Make a draft version of a declaration (docs/topics.md). Raises InvalidRequest."""
        answer: Json = self._session.post(f"{self._path(model_id)}/versions", declaration)
        return answer

    def commit(self, model_id: str, version: int) -> Json:
        """Commit a draft: it is packaged from now on and never changes again; the answer names the `job_id`.

        Raises ParameterContractBroken, TensorContractBroken.
        """
        answer: Json = self._session.post(f"{self._path(model_id, version)}:commit")
        return answer

    def wait_until_packaged(
        self, model_id: str, version: int, *, timeout_s: float = 15.0, sleep: Callable[[float], None] = time.sleep
    ) -> Json:
        """The version once it is `ready` or `failed`. After its job has ended that takes a moment: the news travels to the registry.

        Raises Unavailable when it takes longer than `timeout_s`.
        """
        ends = time.monotonic() + timeout_s
        while (found := self.version(model_id, version))["state"] in {"draft", "packaging"}:
            if time.monotonic() >= ends:
                detail = f"version {version} of {model_id} is still {found['state']} although its job has ended"
                raise Unavailable(detail, status=503, code="VERSION_NOT_READY")
            sleep(0.05)
        return found

    def archive(self, model_id: str, version: int, *, force: bool = False, why: str = "") -> Json:
        """Archive a version: it is not given to devices any more. `force` removes aliases that point at it. Raises Conflict."""
        answer: Json = self._session.post(f"{self._path(model_id, version)}:archive", {"force": force, "why": why})
        return answer

    def compare(self, model_id: str, version: int, to: int) -> Json:
        """What differs between two versions: parameters, tensors, operators, files, sizes."""
        answer: Json = self._session.get(f"{self._path(model_id, version)}:compare", to=to)
        return answer

    def set_alias(self, model_id: str, name: str, version: int, *, why: str = "") -> Json:
        """Point an alias at a ready version. Raises Conflict (VERSION_NOT_READY)."""
        answer: Json = self._session.put(f"{self._path(model_id)}/aliases/{segment(name)}", {"version": version, "why": why})
        return answer

    def delete_alias(self, model_id: str, name: str, *, why: str = "") -> None:
        """Remove an alias; its history stays."""
        self._session.delete(f"{self._path(model_id)}/aliases/{segment(name)}", why=why)

    def aliases(self, model_id: str) -> Iterator[Json]:
        """The aliases of a model."""
        return self._session.pages(f"{self._path(model_id)}/aliases")

    def alias_history(self, model_id: str, name: str) -> Iterator[Json]:
        """Every move of an alias."""
        return self._session.pages(f"{self._path(model_id)}/aliases/{segment(name)}/history")

    @staticmethod
    def _path(model_id: str, version: int | None = None) -> str:
        path = f"/v1/models/{segment(model_id)}"
        return path if version is None else f"{path}/versions/{version}"


class Jobs(Group):
    """Packaging jobs (`/v1/jobs`)."""

    def list(self, *, model_id: str | None = None, state: str | None = None) -> Iterator[Json]:
        """Jobs, the newest first; of one model or in one state."""
        return self._session.pages("/v1/jobs", model_id=model_id, state=state)

    def get(self, job_id: str) -> Json:
        """One job with its log. Raises NotFound."""
        answer: Json = self._session.get(f"/v1/jobs/{segment(job_id)}")
        return answer

    def cancel(self, job_id: str) -> Json:
        """End a job that waits or runs. Raises Conflict (JOB_FINISHED)."""
        answer: Json = self._session.post(f"/v1/jobs/{segment(job_id)}:cancel")
        return answer

    def watch(
        self, job_id: str, on_line: Callable[[Json], None] = lambda line: None, *, sleep: Callable[[float], None] = time.sleep
    ) -> Json:
        """Wait for a job; the job once it has ended. `on_line` takes each line of its log: `position`, `step`, `progress`, `text`.

        Over server-sent events; where those break for good, by asking again and again. Raises NotFound, ServerUnreachable.
        """
        seen = 0
        with contextlib.suppress(ServerUnreachable):
            for event in self._session.events(f"/v1/jobs/{segment(job_id)}/events"):
                if event.name == "done":
                    job: Json = event.data
                    return job
                seen = event.data["position"]
                on_line(event.data)
        while True:
            job = self.get(job_id)
            for line in job["log"]:
                if line["position"] > seen:
                    seen = line["position"]
                    on_line(line)
            if job["state"] in ENDED:
                return job
            sleep(_POLL_S)


class Catalogue(Group):
    """Pre-packaged models that the operator offers (`/v1/catalogue`)."""

    def list(self, *, search: str = "") -> Iterator[Json]:
        """What can be taken over, or what has a text in its name, title or description."""
        return self._session.pages("/v1/catalogue", search=search or None)

    def take(self, entry_id: str, *, model_id: str | None = None) -> Json:
        """Take a model over: a version of this account that is packaged and signed anew; the answer names the `job_id`."""
        body = {} if model_id is None else {"model_id": model_id}
        answer: Json = self._session.post(f"/v1/catalogue/{segment(entry_id)}:take", body)
        return answer

    def add_source(self, location: str, public_keys: Sequence[Mapping[str, str]]) -> Json:
        """Offer what lies at a place (operator): a folder or URL, and the keys (`key_id`, `public_key`) that are believed there."""
        keys = [{"key_id": key["key_id"], "public_key": key["public_key"]} for key in public_keys]
        answer: Json = self._session.post("/v1/catalogue/sources", {"location": location, "public_keys": keys})
        return answer

    def sources(self) -> Iterator[Json]:
        """The places (operator)."""
        return self._session.pages("/v1/catalogue/sources")

    def remove_source(self, source_id: str) -> None:
        """Forget a place (operator). What accounts took over stays."""
        self._session.delete(f"/v1/catalogue/sources/{segment(source_id)}")


class Collections(Group):
    """What apps name, and the rules behind it (`/v1/collections`)."""

    def create(self, name: str, *, description: str = "") -> Json:
        """Create a collection; its `id` goes into the app."""
        answer: Json = self._session.post("/v1/collections", {"name": name, "description": description})
        return answer

    def list(self) -> Iterator[Json]:
        """All collections."""
        return self._session.pages("/v1/collections")

    def get(self, collection: str) -> Json:
        """One collection. Raises NotFound."""
        answer: Json = self._session.get(self._path(collection))
        return answer

    def draft(self, collection: str) -> tuple[Json, str]:
        """The rules being edited, and their ETag."""
        answer = self._session.request("GET", f"{self._path(collection)}/draft")
        return answer.json(), answer.headers.get("etag", "")

    def put_draft(self, collection: str, document: Mapping[str, Any], *, if_match: str | None = None) -> Json:
        """Replace the rules being edited; `if_match` is the ETag they had. Raises InvalidRequest, PreconditionFailed."""
        answer: Json = self._session.put(f"{self._path(collection)}/draft", document, if_match=if_match)
        return answer

    def lint(self, collection: str, rules: Mapping[str, Any] | None = None) -> Sequence[Json]:
        """What is odd about the draft, or about other rules: `code`, `severity`, `rule_id`, `other_rule_id`, `detail`."""
        body = {} if rules is None else {"rules": rules}
        findings: Sequence[Json] = self._session.post(f"{self._path(collection)}:lint", body)["findings"]
        return findings

    def simulate(self, collection: str, rules: Mapping[str, Any] | None = None) -> Json:
        """What the draft (or other rules) would change for every device seen so far."""
        answer: Json = self._session.post(f"{self._path(collection)}:simulate", {} if rules is None else {"rules": rules})
        return answer

    def publish(self, collection: str, *, note: str = "", validate_only: bool = False) -> Json:
        """Publish the draft, or only check it: `revision` (None when only checked) and `findings`. Raises InvalidRequest, Conflict."""
        answer: Json = self._session.post(f"{self._path(collection)}:publish", {"note": note, "validate_only": validate_only})
        return answer

    def revert(self, collection: str, revision: int, *, note: str = "") -> Json:
        """Publish an earlier revision's rules again, as a new revision."""
        answer: Json = self._session.post(f"{self._path(collection)}:revert", {"revision": revision, "note": note})
        return answer

    def revisions(self, collection: str) -> Iterator[Json]:
        """All revisions, the newest first."""
        return self._session.pages(f"{self._path(collection)}/revisions")

    def revision(self, collection: str, revision: int) -> Json:
        """One revision with its `document`. Raises NotFound."""
        answer: Json = self._session.get(f"{self._path(collection)}/revisions/{revision}")
        return answer

    def explain(self, collection: str, **question: Any) -> Json:
        """What a device gets and, rule by rule, why.

        `context` of a device, or `install_id` of one that asked before; for the published rules, for `revision`, or for the `draft`; `at`.
        """
        asked = {name: value for name, value in question.items() if value is not None}
        answer: Json = self._session.post(f"{self._path(collection)}:explain", asked)
        return answer

    @staticmethod
    def _path(collection: str) -> str:
        return f"/v1/collections/{segment(collection)}"


class Bundles(Group):
    """Who gets which packages without asking, signed (`/v1/bundles`, docs/interop.md)."""

    def sign(self, *, collections: Sequence[Mapping[str, Any]] = (), models: Sequence[Mapping[str, Any]] = ()) -> Json:
        """A signed statement for a bundle: `envelope`, and the `packages` that it names.

        `collections` are `{"collection", "contexts"}`, what each gives devices of these contexts; `models` `{"model_id", "version"}` or
        `{"model_id", "alias"}`. Raises NotFound, Conflict (NO_COMPATIBLE_PACKAGE, VERSION_NOT_READY).
        """
        answer: Json = self._session.post("/v1/bundles", {"collections": list(collections), "models": list(models)})
        return answer


class Devices(Group):
    """Devices that have asked (`/v1/devices`), and the answers they got (`/v1/decisions`)."""

    def list(self, *, collection: str | None = None) -> Iterator[Json]:
        """Devices by install id: all, or those that asked for a collection."""
        return self._session.pages("/v1/devices", collection=collection)

    def get(self, install_id: str) -> Json:
        """One device: context, wanted and running packages, newest decisions and events. Raises NotFound."""
        answer: Json = self._session.get(f"/v1/devices/{segment(install_id)}")
        return answer

    def decision(self, decision_id: str) -> Json:
        """One answer of resolve, with the context it was made for. Raises NotFound."""
        answer: Json = self._session.get(f"/v1/decisions/{segment(decision_id)}")
        return answer


class Analytics(Group):
    """Figures from the field (`/v1/analytics`). Parameters go through as they are; `docs` of the API lists them."""

    def query(self, what: str, *, group_by: Sequence[str] = (), **filters: Any) -> Json:
        """One of `active-installs`, `inferences`, `latency`, `adoption`, `failures`, `compare`."""
        answer: Json = self._session.get(f"/v1/analytics/{segment(what)}", group_by=list(group_by) or None, **filters)
        return answer
