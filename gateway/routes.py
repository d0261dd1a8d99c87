"""The routing table: first path segments -> upstream, who may call, and how much is taken.

A path that is not here does not exist. What a caller may do beyond its kind (scopes) is the service's own check.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kit.identity import Kind

PEOPLE = frozenset({Kind.USER, Kind.OPERATOR})
DEVICES = frozenset({Kind.DEVICE})
ANYONE = frozenset(Kind)
#: Longer than the event log takes to say that it cannot, shorter than devices wait.
DEVICE_S = 15.0


@dataclass(frozen=True, slots=True)
class Route:
    """Where requests below `prefix` go. `streams`: bodies may be as large as an upload part; else as large as a JSON body.

    `answer_s`: so many seconds after the end of its body a request must begin to be answered.
    """

    prefix: str
    upstream: str
    who: frozenset[Kind]
    streams: bool = False
    answer_s: float = 60.0


ROUTES = (
    Route("/v1/whoami", "registry", ANYONE),
    Route("/v1/accounts", "registry", PEOPLE),
    Route("/v1/api-keys", "registry", PEOPLE),
    Route("/v1/enrolment-keys", "registry", PEOPLE),
    Route("/v1/catalogue", "registry", PEOPLE),
    Route("/v1/models", "registry", PEOPLE),
    Route("/v1/packages", "registry", PEOPLE),
    Route("/v1/uploads", "registry", PEOPLE, streams=True),
    Route("/v1/jobs", "packager", PEOPLE),
    Route("/v1/collections", "deployer", PEOPLE),
    Route("/v1/bundles", "deployer", PEOPLE),
    Route("/v1/devices", "deployer", PEOPLE),
    Route("/v1/decisions", "deployer", PEOPLE),
    Route("/v1/analytics", "telemetry", PEOPLE),
    Route("/v1/device/challenge", "registry", ANYONE, answer_s=DEVICE_S),
    Route("/v1/device/enroll", "registry", ANYONE, answer_s=DEVICE_S),
    Route("/v1/device/token", "registry", ANYONE, answer_s=DEVICE_S),
    Route("/v1/device/packages", "registry", DEVICES, answer_s=DEVICE_S),
    Route("/v1/device/blobs", "registry", DEVICES, answer_s=DEVICE_S),
    Route("/v1/device/collections", "deployer", DEVICES, answer_s=DEVICE_S),
    Route("/v1/device/events", "deployer", DEVICES, answer_s=DEVICE_S),
    Route("/v1/device/telemetry", "telemetry", DEVICES, answer_s=DEVICE_S),
    Route("/blobs", "links", ANYONE, answer_s=DEVICE_S),
)

TABLE: Mapping[str, Route] = {route.prefix: route for route in ROUTES}


def route_of(path: str) -> Route | None:
    """Return the route of a path, or None. Prefixes end at a segment: `/v1/modelsx` is not below `/v1/models`."""
    parts = path.split("/", 4)
    if len(parts) < 2:
        return None
    if len(parts) > 3 and parts[2] == "device":
        return TABLE.get("/".join(parts[:4]))
    if parts[1] == "blobs":
        return TABLE["/blobs"]
    return TABLE.get("/".join(parts[:3]))


class RouteMissing(Exception):
    """An operation of a service cannot be reached as its access policy says; the gateway does not start."""


_KINDS_OF_ACCESS = {
    "public": frozenset({Kind.NOBODY}),
    "device": DEVICES,
    "read": frozenset({Kind.USER}),
    "publish": frozenset({Kind.USER}),
    "admin": frozenset({Kind.USER}),
    "operator": frozenset({Kind.OPERATOR}),
    "operator_or_admin": PEOPLE,
}


def check_operations(upstream: str, document: Mapping[str, object]) -> None:
    """Compare a service's OpenAPI document with the table.

    Raises `RouteMissing` for an operation that its callers could not reach, or that has no policy.
    """
    paths = document.get("paths")
    assert isinstance(paths, dict)
    for path, operations in paths.items():
        route = route_of(path.replace("{", "").replace("}", ""))
        for method, operation in operations.items():
            access = operation.get("x-latebind-access")
            if access not in _KINDS_OF_ACCESS:
                raise RouteMissing(f"{method.upper()} {path} of {upstream} declares no access policy that the gateway knows: {access!r}")
            if route is None or route.upstream != upstream or not _KINDS_OF_ACCESS[access] <= route.who:
                raise RouteMissing(f"{method.upper()} {path} of {upstream} ({access}) is not in the gateway's table for these callers")
