"""The management API for programs: `latebind.Client` does what people do with `latebind` on the command line.

It blocks, keeps nothing, and raises the classes of `latebind.errors`. For devices there is `latebind.Manager`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from latebind._declaration import Push
from latebind._resources import Accounts, Analytics, Bundles, Catalogue, Collections, Devices, Jobs, Keys, Models
from latebind._session import Json, Session
from latebind._transport import HttpTransport, Transport
from latebind._uploads import Uploads

PushProgress = Callable[[Path, int], None]


@dataclass(frozen=True, slots=True)
class Pushed:
    """What a push made: a version that is being packaged by a job."""

    model_id: str
    version: int
    job_id: str


class Client:
    """A connection to one server with one API key (or operator key).

    `accounts`, `api_keys`, `enrolment_keys`, `models`, `uploads`, `jobs`, `catalogue`, `collections`, `bundles`, `devices` and `analytics`
    hold the calls. A transport that is passed in is not closed here.

        with latebind.Client("https://models.example.com", key) as client:
            for model in client.models.list():
                print(model["model_id"])
    """

    def __init__(self, server: str, api_key: str | None, *, transport: Transport | None = None) -> None:
        self._own_transport = HttpTransport() if transport is None else None
        self.session = Session(server, api_key, transport or self._own_transport or HttpTransport())
        self.server = self.session.server
        self.accounts = Accounts(self.session)
        self.api_keys = Keys(self.session, "/v1/api-keys")
        self.enrolment_keys = Keys(self.session, "/v1/enrolment-keys")
        self.models = Models(self.session)
        self.uploads = Uploads(self.session)
        self.jobs = Jobs(self.session)
        self.catalogue = Catalogue(self.session)
        self.collections = Collections(self.session)
        self.bundles = Bundles(self.session)
        self.devices = Devices(self.session)
        self.analytics = Analytics(self.session)

    def whoami(self) -> Json:
        """Who the key belongs to: `kind` (user, operator), `id`, `account`, `scopes`. Raises Unauthorized."""
        answer: Json = self.session.get("/v1/whoami")
        return answer

    def push(self, push: Push, *, progress: PushProgress = lambda path, done: None) -> Pushed:
        """Upload, declare and commit in one go; the model is created if it is new. `jobs.watch` tells how the packaging goes.

        `progress` takes a file and the bytes of it that are there. Raises ServerError, ServerUnreachable, OSError.
        """
        self.models.ensure(push.model_id, description=push.description, labels=push.labels)
        uploaded: Mapping[Path, tuple[str, int]] = {
            path: self.uploads.send_file(path, progress=lambda done, path=path: progress(path, done))  # type: ignore[misc]
            for path in push.sources
        }
        draft = self.models.create_version(push.model_id, push.declaration(uploaded))
        committed = self.models.commit(push.model_id, draft["version"])
        return Pushed(push.model_id, committed["version"], committed["job_id"])

    def close(self) -> None:
        """Close the connections."""
        if self._own_transport is not None:
            self._own_transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
