"""Conversions that are done once: what a converter made of the same input before is found again, per account.

A conversion depends on every file that its child can read, on what it is told, on its environment and limits, and on our code: all of it
is in the key, so nothing has to be declared invalid. One that failed in part is not remembered: a repaired server may do better.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from services.packager.answer import conversion
from services.packager.converters import CONVERTERS
from services.packager.environments import Tell, lock_digest
from services.packager.files import digest_of
from services.packager.isolation.process import OnStep
from services.packager.results import Results
from services.packager.sandbox import Sandbox, Workspace

#: A conversion may take so many times as long as examining a model: large models take long, and imports on a busy machine.
_PATIENCE = 4.0

Steps = list[dict[str, Any]]


class Conversions:
    """The conversions of one account."""

    def __init__(self, sandbox: Sandbox, results: Results, account: str) -> None:
        self.sandbox = sandbox
        self._results, self._account = results, account

    async def convert(
        self,
        workspace: Workspace,
        function: str,
        job: Mapping[str, Any],
        *,
        targets: Mapping[str, str],
        also: tuple[str, ...],
        on_step: OnStep,
        tell: Tell,
    ) -> tuple[dict[str, Steps], dict[str, str]]:
        """Convert, or find what the same conversion made before. Its files lie in `in/` afterwards.

        Args:
            workspace: `in/` holds what the converter reads.
            function: a row of `converters.CONVERTERS`.
            job: what the converter is told.
            targets: each file that it may make, and its place in `in/`.
            also: further files that it leaves, which keep their names.
            on_step: called with each step it enters.
            tell: called with lines for people.

        Returns:
            Per target that was made its lineage steps, and for each other one why it was not.

        Raises:
            ModelRejected: as `Sandbox.convert`, and for a result that is not what it should be.
        """
        facts = {
            "task": "convert",
            "function": function,
            "job": job,
            "also": also,
            "input": await asyncio.to_thread(_digests, workspace.path("")),
            "environment": await asyncio.to_thread(lock_digest, CONVERTERS[function].environment),
            "sandbox": self.sandbox.level,
            "limits": self.sandbox.limits.for_child(),
        }
        known = await self._results.fetch(self._account, facts, workspace.path(""))
        if known is not None:
            tell("converted before, with the same result")
            return conversion(json.loads(known), list(targets))
        seconds = self.sandbox.limits.seconds * _PATIENCE
        result = await self.sandbox.convert(workspace, function, job, on_step, tell, seconds=seconds)
        made, failed = conversion(result, list(targets))
        places = {file: targets[file] for file in made} | {file: file for file in also}
        for file, place in places.items():
            workspace.take(file, place, self.sandbox.limits.disk_bytes)
        if not failed:
            files = {place: workspace.path(place) for place in places.values()}
            await self._results.store(self._account, facts, json.dumps(result).encode(), files)
        return made, failed


def _digests(folder: Path) -> dict[str, str]:
    """Return path to SHA-256 of every file below the folder."""
    return {str(path.relative_to(folder)): digest_of(path) for path in folder.rglob("*") if path.is_file()}
