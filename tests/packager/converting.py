"""Conversions for tests: each is done once for all tests of a session, by the whole packager, and kept as plain data."""

from __future__ import annotations

import asyncio
import io
import json
import subprocess
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from latebind_proto import events_pb2
from services.packager.environments import Environments
from services.packager.settings import PackagerSettings
from tests.packager.running import Packaging, packaging

TRAINING = Path(__file__).parent / "training"

Declare = Callable[[Packaging], Awaitable[dict[str, Any]]]


@dataclass
class Converted:
    """What a job came to. `files`: variant to path in its package to bytes."""

    job: dict[str, Any]
    report: dict[str, Any] | None = None
    manifests: dict[str, dict[str, Any]] = field(default_factory=dict)
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)

    def row(self, variant: str) -> dict[str, Any]:
        """What the report says of a variant."""
        assert self.report is not None, self.job
        return next(row for row in self.report["variants"] if row["variant"] == variant)


def convert(declare: Declare) -> Converted:
    """Package a version with a packager of its own."""

    async def run() -> Converted:
        with tempfile.TemporaryDirectory() as folder:
            async with packaging(Path(folder), job_seconds=300) as one:
                job_id = await one.commit(await declare(one))
                job = await one.ended(job_id)
                (record, *_) = await one.told(job_id)
                kind = events_pb2.PackageBuilt if record.topic == "package.built" else events_pb2.PackageFailed
                message = kind.FromString(record.value)
                result = Converted(job, json.loads(message.report_json) if message.report_json else None)
                for package in getattr(message, "packages", ()):
                    manifest = json.loads(package.manifest_json)
                    result.manifests[package.variant] = manifest
                    result.files[package.variant] = {entry["path"]: await read(one, entry["sha256"]) for entry in manifest["files"]}
                return result

    return asyncio.run(run())


async def read(one: Packaging, digest: str) -> bytes:
    return b"".join([chunk async for chunk in one.ports.blobs.open("acme", digest)])


async def put_folder(one: Packaging, folder: Path) -> list[dict[str, Any]]:
    """Store the files of a folder under their relative paths."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return [await one.put(path.relative_to(folder).as_posix(), path.read_bytes()) for path in files]


def train(environment: str, script: str, *arguments: Path) -> None:
    """Run a script of `training/` with the interpreter of a converter environment."""
    ready = asyncio.run(Environments(PackagerSettings().environments).ready(environment, lambda line: None))
    command = [str(ready.python), str(TRAINING / script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def npz(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def arrays(data: bytes) -> dict[str, Any]:
    with np.load(io.BytesIO(data), allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def to(*kinds: str, **more: Any) -> list[dict[str, Any]]:
    """Variants to be made of the source."""
    return [{"convert": {"to": kind, **more}} for kind in kinds]
