"""What operators of the packager rely on: kills at every step, quotas, turns, results that are remembered, logs without secrets."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from kit.ids import new_id
from services.packager import events
from services.packager.sandbox import Sandbox
from tests import models as m
from tests.packager.hostile import marked
from tests.packager.running import Packaging, opened, packaging, until

ROOT = Path(__file__).parents[2]

#: Where the packager is killed: each step as the job's log names it, and around the transaction that ends the job.
STEPS = [
    "fetching the files", "reading the model", "comparing it", "loading it", "running it on", "keeping the golden",
    "running it again", "signing", "before the end is stored", "after the end is stored",
]  # fmt: skip

KILLED = """
import asyncio, os, signal, sys
from pathlib import Path
sys.path.insert(0, {root!r})
from services.packager import packing, service
from tests.packager.hostile import marked
from tests.packager.running import packaging

def die():
    os.kill(os.getpid(), signal.SIGKILL)

pack, succeed = packing.Packer.pack, service.PackagerService.succeed

async def pack_and_die(self, identity, declaration, report):
    def told(step, progress, text):
        report(step, progress, text)
        if {step!r} in text:
            die()
    return await pack(self, identity, declaration, told)

async def succeed_and_die(self, claim, packages):
    if {step!r} == "before the end is stored":
        die()
    await succeed(self, claim, packages)
    if {step!r} == "after the end is stored":
        die()

packing.Packer.pack = pack_and_die
service.PackagerService.succeed = succeed_and_die

async def main():
    async with packaging(Path({folder!r})):
        await asyncio.sleep(120)
asyncio.run(main())
"""


async def test_a_kill_at_each_step_leads_to_one_end(tmp_path: Path) -> None:
    """Issue 5, acceptance 5: the job is finished after the restart, exactly one package results, nothing is left."""
    async with opened(tmp_path) as one:
        files = [await one.put("model.onnx", m.onnx_mlp(8, 16, 4))]
        job_id = await one.commit({"variants": [{"name": "only", "files": files}]})
    for step in STEPS:
        script = KILLED.format(root=str(ROOT), folder=str(tmp_path), step=step)
        service = await asyncio.create_subprocess_exec(sys.executable, "-c", script, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
        _, errors = await asyncio.wait_for(service.communicate(), 120)
        assert service.returncode == -9, (step, errors.decode()[-2000:])
        # The children name their folder; they end with their service.
        await until(lambda: marked(str(tmp_path)) == [])
    async with packaging(tmp_path) as one:
        job = await one.ended(job_id)
        assert job["state"] == "succeeded", job
        assert len(job["result"]["packages"]) == 1
        assert len(await one.told(job_id)) == 1
        assert len(list((tmp_path / "scratch").iterdir())) == 1


@pytest.fixture
async def idle(tmp_path: Path) -> AsyncIterator[Packaging]:
    """A packager whose runner does not run: jobs stay where they are put."""
    async with opened(tmp_path, queue_length=5, account_queue_length=3, account_jobs_at_once=1) as one:
        yield one


async def queue(one: Packaging, account: str) -> str:
    job_id = new_id("job")
    committed = events.Committed(account, "m", 1, job_id, "2026-11-22T10:00:00Z", b"[]")
    await one.part.app.state.packager.start_job(new_id("e"), committed)  # type: ignore[attr-defined]
    return job_id


async def test_queues_are_bounded_and_say_so(idle: Packaging) -> None:
    mine = [await queue(idle, "acme") for _ in range(4)]
    others = [await queue(idle, f"other{number}") for number in range(3)]

    async def state(account: str, job_id: str) -> tuple[str, str | None]:
        async with idle.client(account) as client:
            job = (await client.get(f"/v1/jobs/{job_id}")).json()
            return job["state"], (job["problem"] or {}).get("code")

    assert [await state("acme", one) for one in mine] == [("queued", None)] * 3 + [("failed", "ACCOUNT_QUEUE_FULL")]
    found = [await state(f"other{number}", one) for number, one in enumerate(others)]
    assert found == [("queued", None), ("queued", None), ("failed", "QUEUE_FULL")]


async def test_an_account_has_so_many_running_and_others_come_first(idle: Packaging) -> None:
    service = idle.part.app.state.packager  # type: ignore[attr-defined]
    mine = [await queue(idle, "acme") for _ in range(3)]
    other = await queue(idle, "other")
    first, second = await service.claim("one"), await service.claim("two")
    assert (first.job.job_id, second.job.job_id) == (mine[0], other)
    assert await service.claim("three") is None
    await service.release(second, 0.0, "given back")
    assert (await service.claim("three")).job.job_id == other
    await service.fail(first, "CHILD_KILLED", "gone")
    assert (await service.claim("four")).job.job_id == mine[1]


class Children:
    """Counts the children that examine models."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.started = 0
        run = Sandbox.run

        async def counted(*arguments: Any) -> bytes:
            self.started += 1
            return await run(*arguments)

        monkeypatch.setattr(Sandbox, "run", counted)


async def test_unchanged_input_is_not_examined_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PERF-P3: by account, files, declaration; and only while the golden files are there."""
    children = Children(monkeypatch)
    async with packaging(tmp_path) as one:

        async def push(account: str = "acme", version: int = 1, **more: Any) -> dict[str, Any]:
            files = [await one.put("model.onnx", m.onnx_mlp(8, 16, 4), account=account)]
            job_id = await one.commit({"variants": [{"name": "v", "files": files}], **more}, account=account, version=version)
            job = await one.ended(job_id, account=account)
            assert job["state"] == "succeeded", job
            return job

        first = await push()
        assert children.started == 2
        second = await push(version=2)
        assert children.started == 2
        assert "v: examined before, with the same result" in [line["text"] for line in second["log"]]
        # A package of its own all the same: another version, another manifest.
        assert first["result"]["packages"][0]["digest"] != second["result"]["packages"][0]["digest"]
        await push("other")
        assert children.started == 4
        await push(version=3, inputs=[{"name": "features", "dtype": "float32", "shape": [1, 8], "range": [0, 2]}])
        assert children.started == 6
        manifest = [blob async for blob in blobs_named_golden(one)]
        await one.ports.blobs.delete("acme", manifest[0])
        await push(version=4)
        assert children.started == 8


async def blobs_named_golden(one: Packaging) -> AsyncIterator[str]:
    """Digests of the golden files of the first version."""
    async with one.ports.database.read() as reader:
        from services.packager.store import list_jobs, list_packages

        jobs = await list_jobs(reader, "acme", before=None, limit=10, model_id=None, state=None)
        import json

        (package,) = await list_packages(reader, "acme", jobs[-1].job_id)
        for file in json.loads(package.manifest)["files"]:
            if file["role"] == "golden":
                yield file["sha256"]


async def test_results_are_bounded_per_account(idle: Packaging, monkeypatch: pytest.MonkeyPatch) -> None:
    service = idle.part.app.state.packager  # type: ignore[attr-defined]
    monkeypatch.setattr("services.packager.service.MAX_RESULTS", 3)
    for number in range(5):
        surplus = await service.keep_result("acme", f"{number:064}", b"value")
        await service.forget_results("acme", [key for key, _ in surplus])
        assert await service.find_result("acme", f"{0:064}") == b"value"
    assert [await service.find_result("acme", f"{number:064}") is not None for number in range(5)] == [True, False, False, True, True]
    assert await service.find_result("other", f"{0:064}") is None


async def test_neither_log_nor_problem_holds_a_secret_or_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Canaries: in the environment, and every folder of the server that a message could name."""
    monkeypatch.setenv("LATEBIND_TEST_CANARY", "canary-77f1")
    folder = tmp_path / "canary-folder"
    models = {
        "good": m.onnx_mlp(8, 16, 4),
        "too new": m.onnx_add(opset=500),
        "unknown operator": bytes(m.OnnxModel([m.onnx_node("Nope", [], ["y"])], outputs=[m.onnx_value("y", "float32", [1])])),
        "external": m.onnx_with_external_data("nowhere"),
        "shapes that do not fit": bytes(
            m.OnnxModel(
                [m.onnx_node("MatMul", ["x", "x"], ["y"])],
                [m.onnx_value("x", "float32", [2, 3])],
                [m.onnx_value("y", "float32", None)],
            )
        ),
        "rubbish": b"TFL3" * 100,
        "pickle": b"\x80\x04\x95\x10\x00\x00\x00",
    }
    forbidden = ["canary", str(tmp_path), str(ROOT), sys.prefix, sys.base_prefix, str(Path.home()) + "/", str(os.getpid()), "/job/"]
    async with packaging(folder) as one:
        for name, model in models.items():
            job = await one.ended(await one.commit({"variants": [{"files": [await one.put("model.bin", model)]}]}, model_id="m"))
            said = [line["text"] for line in job["log"]] + [str(job["problem"])]
            assert (job["state"] == "succeeded") == (name == "good"), said
            for text in said:
                assert not [word for word in forbidden if word in text], (name, text)
                assert len(text) < 2_500


async def test_queued_jobs_are_counted(tmp_path: Path) -> None:
    async with packaging(tmp_path) as one:
        job_id = await one.commit({"variants": [{"files": [await one.put("model.onnx", m.onnx_add())]}]})
        await one.ended(job_id)
        await until(lambda: b"latebind_packager_queued_jobs 0.0" in one.ports.metrics.render())  # type: ignore[attr-defined]
