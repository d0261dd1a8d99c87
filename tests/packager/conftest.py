"""Children for tests: a sandbox in a temporary folder, and one call that examines a model as the service does."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import uvloop

from services.packager.answer import Answer, inspection
from services.packager.environments import Environments
from services.packager.sandbox import Limits, Sandbox, open_sandbox
from services.packager.settings import PackagerSettings


def pytest_asyncio_loop_factories(config: pytest.Config, item: pytest.Item) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The loop that the server runs on: it starts processes in its own way."""
    return {"uvloop": uvloop.new_event_loop}


def environments() -> Environments:
    """Those of the machine: made once, by the first test that needs them."""
    return Environments(PackagerSettings().environments)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Classical models of every kind, trained once by the interpreter of the environment `sk`."""
    folder = tmp_path_factory.mktemp("sk")
    python = asyncio.run(environments().ready("sk", lambda line: None)).python
    script = Path(__file__).with_name("sk_models.py")
    subprocess.run([python, script, folder], check=True, timeout=300, env={"HOME": str(folder), "PATH": os.environ["PATH"]})
    return folder


@pytest.fixture
async def sandbox(tmp_path: Path) -> AsyncIterator[Sandbox]:
    async with open_sandbox(tmp_path / "scratch", Limits(seconds=60), environments()) as opened:
        yield opened


class Examiner:
    """Examines models in real children. `steps` holds the steps of the last one, `golden` its golden files."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox = sandbox
        self.steps: list[str] = []
        self.golden: tuple[bytes, bytes] = (b"", b"")

    async def __call__(
        self, graph: bytes, *, data: Mapping[str, bytes] | None = None, golden_input: bytes | None = None, **job: Any
    ) -> Answer:
        self.steps = []
        async with self.sandbox.workspace() as workspace:
            workspace.path("0").write_bytes(graph)
            places = {}
            for index, (name, body) in enumerate((data or {}).items(), 1):
                workspace.path(str(index)).write_bytes(body)
                places[name] = f"in/{index}"
            if golden_input is not None:
                workspace.path("golden.npz").write_bytes(golden_input)
            whole = {
                "task": "inspect", "graph": "in/0", "data": places, "inputs": None, "outputs": None, "seconds": 30,
                "golden_input": None if golden_input is None else "in/golden.npz", **job,
            }  # fmt: skip
            answer = inspection(await self.sandbox.run(workspace, whole, self.steps.append))
            self.golden = tuple(workspace.take(name, name, 2**28).read_bytes() for name in ("input.npz", "output.npz"))  # type: ignore[assignment]
            return answer


@pytest.fixture
def examine(sandbox: Sandbox) -> Examiner:
    return Examiner(sandbox)
