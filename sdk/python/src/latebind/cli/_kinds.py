"""Kinds of devices that a simulated fleet is made of: the built-in ones (`kinds.json` beside this file), or those of a file like it.

A kind is what a device says of itself, how many there are of it, and how fast it is. It holds no behaviour.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

from latebind.cli._errors import CommandError

BUILT_IN = Path(__file__).with_name("kinds.json")

_OPTIONAL = frozenset({"weight", "slowness", "groups"})
_NEEDED = frozenset({"name", "context", "runtimes"})


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of device. `context` is PRODUCT section 5 without what the SDK adds; `weight` its share of the fleet.

    `runtimes` are the engines it reports. `slowness` multiplies the latencies that are made up for devices that run nothing.
    """

    name: str
    context: Mapping[str, Any]
    runtimes: tuple[Mapping[str, Any], ...]
    weight: int = 1
    slowness: float = 1.0
    groups: tuple[str, ...] = ()


def read_kinds(path: Path = BUILT_IN) -> tuple[Kind, ...]:
    """Kinds from a JSON file: a list of objects with `name`, `context`, `runtimes`, and maybe `weight`, `slowness`, `groups`.

    Raises CommandError.
    """
    try:
        kinds = tuple(_read_kind(entry) for entry in json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        hint = "latebind simulate-fleet --show-kinds prints the built-in ones: change a copy of them"
        raise CommandError(f"{path} holds no kinds of devices: {error}", hint=hint) from error
    if not kinds or len({kind.name for kind in kinds}) != len(kinds):
        raise CommandError(f"{path} needs at least one kind, and each name once")
    return kinds


def _read_kind(entry: Mapping[str, Any]) -> Kind:
    if not _NEEDED <= set(entry) <= _NEEDED | _OPTIONAL:
        raise ValueError(f"a kind needs {sorted(_NEEDED)} and may have {sorted(_OPTIONAL)}, not {sorted(entry)}")
    weight, slowness = int(entry.get("weight", 1)), float(entry.get("slowness", 1.0))
    if weight < 1 or slowness <= 0:
        raise ValueError(f"{entry['name']}: weight and slowness must be above 0")
    runtimes = tuple({"engine": runtime["engine"], **runtime} for runtime in entry["runtimes"])
    return Kind(str(entry["name"]), dict(entry["context"]), runtimes, weight, slowness, tuple(entry.get("groups", ())))


def spread(kinds: Sequence[Kind], devices: int) -> list[Kind]:
    """The kind of each of `devices` devices, by weight. Every kind is there once before any is there twice."""
    chosen = list(kinds[:devices])
    rounds = cycle([kind for level in range(max(kind.weight for kind in kinds)) for kind in kinds if kind.weight > level])
    while len(chosen) < devices:
        chosen.append(next(rounds))
    return chosen
