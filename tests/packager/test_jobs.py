"""From a committed version to signed packages, over the real log, database, blobs and children; and the job routes."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kit.eventlog import Message
from kit.identity import Scope
from kit.ids import new_id
from kit.signing import verify_envelope
from latebind_proto import events_pb2
from tests import models as m
from tests.packager.running import Packaging, opened, packaging, sha256, until

ROOT = Path(__file__).parents[2]


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Packaging]:
    async with packaging(tmp_path) as one:
        yield one


async def detector(one: Packaging, cells: int = 3) -> dict[str, Any]:
    return {
        "variants": [{"name": "onnx-fp32", "files": [await one.put("model.onnx", m.onnx_grid_detector(cells, 2, 4), role="graph")]}],
        "files": [await one.put("coco.labels", b"cat\ndog\n"), await one.put("anchors.txt", b"1,2\n")],
        "params": {"S": {"type": "int", "value": cells}, "labels": {"type": "file", "value": "coco.labels"}},
        "inputs": [{"name": "image", "dtype": "float32", "shape": [1, 8 * cells, 8 * cells, 3]}],
        "requires": {"ram_mb": 512},
        "golden": {"rtol": 0.05},
    }


async def read(one: Packaging, digest: str) -> bytes:
    return b"".join([chunk async for chunk in one.ports.blobs.open("acme", digest)])


async def test_a_version_becomes_a_signed_package(running: Packaging) -> None:
    declaration = await detector(running)
    job_id = await running.commit(declaration, model_id="yolo", version=7)
    job = await running.ended(job_id)
    assert (job["state"], job["progress"], job["problem"]) == ("succeeded", 1.0, None)
    assert [one["text"] for one in job["log"]][:2] == ["queued", "onnx-fp32: fetching the files"]

    (record,) = await running.told(job_id)
    assert (record.topic, record.key, record.headers["account"]) == ("package.built", "acme/yolo", "acme")
    (package,) = events_pb2.PackageBuilt.FromString(record.value).packages
    assert job["result"]["packages"] == [{"variant": "onnx-fp32", "digest": package.digest, "size": package.size}]
    assert sha256(package.manifest_json) == package.digest

    manifest = json.loads(package.manifest_json)
    assert list(manifest) == [
        "manifest_version", "account", "model_id", "version", "variant", "created_at", "engine", "inputs", "outputs", "params", "files",
        "requires", "golden", "lineage",
    ]  # fmt: skip
    assert (manifest["account"], manifest["model_id"], manifest["version"], manifest["variant"]) == ("acme", "yolo", 7, "onnx-fp32")
    assert manifest["created_at"] == "2026-11-22T10:00:00Z"
    assert manifest["engine"] == {
        "name": "onnxruntime", "min_version": "1.10", "ir_version": 8, "opset": {"": 15}, "operators": ["Conv", "Transpose"],
    }  # fmt: skip
    assert manifest["inputs"] == [{"name": "image", "dtype": "float32", "shape": [1, 24, 24, 3]}]
    assert manifest["outputs"] == [{"name": "grid", "dtype": "float32", "shape": [1, 3, 3, 18]}]
    assert manifest["params"] == declaration["params"]
    assert manifest["requires"] == {"ram_mb": 512}
    assert manifest["golden"]["rtol"] == 0.05
    assert [(one["path"], one["role"]) for one in manifest["files"]] == [
        ("model.onnx", "graph"), ("golden/input.npz", "golden"), ("golden/output.npz", "golden"),
        ("coco.labels", "auxiliary"), ("anchors.txt", "auxiliary"),
    ]  # fmt: skip
    assert package.size == sum(one["size"] for one in manifest["files"])
    for one in manifest["files"]:
        assert sha256(await read(running, one["sha256"])) == one["sha256"]
    with np.load(io.BytesIO(await read(running, manifest["files"][2]["sha256"])), allow_pickle=False) as golden:
        assert golden["grid"].shape == (1, 3, 3, 18)

    await running.ports.eventlog.append(
        "account.created",
        [Message("acme", events_pb2.AccountCreated(account="acme").SerializeToString(), {"event-id": new_id("e"), "account": "acme"})],
    )
    await until(lambda: any(one.topic == "signing-key.announced" for one in running.heard))
    key = events_pb2.SigningKeyAnnounced.FromString(next(one for one in running.heard if one.topic == "signing-key.announced").value)
    assert (key.account, key.role, sha256(key.public_key)) == ("acme", "package", key.key_id)
    statement = json.loads(verify_envelope(json.loads(package.envelope_json), "application/vnd.in-toto+json", {key.key_id: key.public_key}))
    assert statement["subject"][0] == {"name": "manifest.json", "digest": {"sha256": package.digest}}
    assert [(one["name"], one["digest"]["sha256"]) for one in statement["subject"][1:]] == [
        (one["path"], one["sha256"]) for one in manifest["files"]
    ]
    assert statement["predicate"]["job_id"] == job_id
    assert statement["predicateType"] == "https://latebind.dev/package/v1"


async def test_variants_keep_their_order_and_are_named_by_content(running: Packaging) -> None:
    declaration = {
        "variants": [
            {"files": [await running.put("add.tflite", m.tflite_add(4))]},
            {
                "files": [
                    await running.put("add.onnx", m.onnx_with_external_data("w.bin")),
                    await running.put("w.bin", m.external_weights()),
                ]
            },
        ]
    }
    job_id = await running.commit(declaration)
    job = await running.ended(job_id)
    assert job["state"] == "succeeded", job["problem"]
    assert [one["variant"] for one in job["result"]["packages"]] == ["tflite-fp32", "onnx-fp32"]
    (record,) = await running.told(job_id)
    second = json.loads(events_pb2.PackageBuilt.FromString(record.value).packages[1].manifest_json)
    assert [(one["path"], one["role"]) for one in second["files"]][:2] == [("add.onnx", "graph"), ("w.bin", "graph-data")]
    assert second["lineage"]["source_sha256"] == [one["sha256"] for one in second["files"][:2]]


async def test_the_same_commit_twice_is_one_job_and_the_same_files_make_the_same_manifest(running: Packaging) -> None:
    declaration = await detector(running)
    event_id = new_id("e")
    job_id = await running.commit(declaration, event_id=event_id)
    await running.commit(declaration, event_id=event_id, job_id=job_id)
    await running.commit(declaration, job_id=job_id)
    first = await running.ended(job_id)
    assert len(await running.told(job_id)) == 1
    other = await running.ended(await running.commit(declaration))
    assert other["result"] == first["result"]


BROKEN = {
    "DECLARATION_INVALID": b"[]",
    "MODEL_NOT_RECOGNISED": b"not a model",
    "MODEL_TRUNCATED": m.onnx_mlp()[:200],
    "OPERATOR_NOT_ALLOWED": m.tflite_add(code=32, custom="Evil"),
    "EXTERNAL_DATA_OUTSIDE": m.onnx_with_external_data("../secret"),
    "MODEL_LOAD_FAILED": bytes(m.OnnxModel([m.onnx_node("Nope", ["x"], ["y"])], [m.onnx_value("x", "float32", [1])])),
}


@pytest.mark.parametrize("code", BROKEN)
async def test_what_cannot_be_packaged_is_a_failed_job_with_a_reason(running: Packaging, code: str) -> None:
    declaration: Any = b"[]"
    if code != "DECLARATION_INVALID":
        declaration = {"variants": [{"files": [await running.put("model.bin", BROKEN[code])]}]}
    job_id = await running.commit(declaration)
    job = await running.ended(job_id)
    assert (job["state"], job["problem"]["code"], job["result"]) == ("failed", code, None)
    assert len(job["problem"]["detail"]) > 20
    (record,) = await running.told(job_id)
    failed = events_pb2.PackageFailed.FromString(record.value)
    assert (record.topic, failed.code, failed.detail) == ("package.failed", code, job["problem"]["detail"])


async def test_files_that_were_not_uploaded_are_named(running: Packaging) -> None:
    graph = await running.put("model.onnx", m.onnx_add())
    absent = {"path": "absent.txt", "sha256": "0" * 64, "size": 3}
    cases: list[tuple[dict[str, Any], str]] = [
        ({"variants": [{"files": [graph]}], "files": [absent]}, "FILE_MISSING"),
        ({"variants": [{"files": [{**absent, "role": "graph"}]}]}, "FILE_MISSING"),
        ({"variants": [{"files": [{**graph, "size": 1}]}]}, "FILE_MISMATCH"),
    ]
    for declaration, code in cases:
        assert (await running.ended(await running.commit(declaration)))["problem"]["code"] == code


async def test_variants_that_disagree_are_refused(running: Packaging) -> None:
    declaration = {
        "variants": [
            {"name": "a", "files": [await running.put("a.onnx", m.onnx_add([1, 4]))]},
            {"name": "b", "files": [await running.put("b.onnx", m.onnx_add([1, 5]))]},
        ]
    }
    job = await running.ended(await running.commit(declaration))
    assert job["problem"]["code"] == "VARIANTS_DISAGREE"
    assert "[1, 4]" in job["problem"]["detail"] and "[1, 5]" in job["problem"]["detail"]


async def test_auxiliary_files_are_never_looked_at(running: Packaging) -> None:
    declaration = await detector(running)
    declaration["files"] += [await running.put("evil.pkl", b"\x80\x04cos\nsystem\n(S'x'\ntR."), await running.put("empty", b"")]
    assert (await running.ended(await running.commit(declaration)))["state"] == "succeeded"


async def test_jobs_of_other_accounts_do_not_exist(running: Packaging) -> None:
    declaration = {"variants": [{"files": [await running.put("model.onnx", m.onnx_add())]}]}
    job_id = await running.commit(declaration)
    await running.ended(job_id)
    old = "job_01j00000000000000000000000"
    async with running.client("other") as client:
        answers = {}
        for one in (job_id, old):
            for method, path in (("GET", one), ("GET", f"{one}/events"), ("POST", f"{one}:cancel")):
                answer = await client.request(method, f"/v1/jobs/{path}")
                assert answer.status_code == 404
                body = answer.json()
                assert body["code"] == "JOB_NOT_FOUND"
                answers.setdefault((method, path.removeprefix(one)), set()).add(body["detail"].replace(one, ""))
        assert all(len(texts) == 1 for texts in answers.values())
        assert (await client.get("/v1/jobs")).json() == {"items": [], "next_page_token": None}


async def test_a_job_that_is_still_on_its_way_is_waited_for(running: Packaging) -> None:
    job_id = new_id("job")
    async with running.client() as client:
        asking = asyncio.create_task(client.get(f"/v1/jobs/{job_id}"))
        await asyncio.sleep(0.2)
        assert not asking.done()
        await running.commit(b"[]", job_id=job_id)
        assert (await asking).status_code == 200
        clock = asyncio.get_running_loop()
        before = clock.time()
        assert (await client.get("/v1/jobs/job_01j00000000000000000000000")).status_code == 404
        assert clock.time() - before < 1.5
        assert (await client.get("/v1/jobs/nonsense")).status_code == 404


async def test_pages_and_filters(running: Packaging) -> None:
    ids = [await running.commit(b"[]", model_id=f"m{number % 2}") for number in range(5)]
    for job_id in ids:
        await running.ended(job_id)
    async with running.client("acme", Scope.READ) as client:
        first = (await client.get("/v1/jobs?page_size=3")).json()
        second = (await client.get(f"/v1/jobs?page_size=3&page_token={first['next_page_token']}")).json()
        assert [one["job_id"] for one in first["items"] + second["items"]] == sorted(ids, reverse=True)
        assert second["next_page_token"] is None
        assert len((await client.get("/v1/jobs?model_id=m1")).json()["items"]) == 2
        assert (await client.get("/v1/jobs?state=succeeded")).json()["items"] == []
        assert (await client.get("/v1/jobs?state=sleeping")).status_code == 422
        assert (await client.post(f"/v1/jobs/{ids[0]}:cancel")).status_code == 403


def parse_events(text: str) -> list[tuple[str, str | None, Any]]:
    found = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if ": " in line and not line.startswith(":"))
        if "data" in fields:
            found.append((fields["event"], fields.get("id"), json.loads(fields["data"])))
    return found


async def test_a_job_is_watched_and_resumed(running: Packaging) -> None:
    job_id = await running.commit({"variants": [{"files": [await running.put("model.onnx", m.onnx_add())]}]})
    async with running.client() as client:
        answer = await client.get(f"/v1/jobs/{job_id}/events")
        assert answer.headers["content-type"].startswith("text/event-stream")
        news = parse_events(answer.text)
        assert news[-1][0] == "done" and news[-1][2]["state"] == "succeeded"
        lines = [data for kind, _, data in news if kind == "progress"]
        assert [line["position"] for line in lines] == list(range(1, len(lines) + 1))
        progress = [line["progress"] for line in lines]
        assert progress == sorted(progress) and progress[-1] == 1.0
        again = parse_events((await client.get(f"/v1/jobs/{job_id}/events", headers={"last-event-id": "3"})).text)
        assert [identity for _, identity, _ in again[:-1]] == [str(line["position"]) for line in lines[3:]]


def slow_model() -> bytes:
    """A model that computes for minutes: a loop of matrix products."""
    body = m.onnx_graph(
        [
            m.onnx_node("MatMul", ["a", "a"], ["b"]),
            m.onnx_node("Clip", ["b", "low", "high"], ["c"]),
            m.onnx_node("Identity", ["go"], ["on"]),
        ],
        [m.onnx_value("i", "int64", []), m.onnx_value("go", "bool", []), m.onnx_value("a", "float32", [600, 600])],
        [m.onnx_value("on", "bool", []), m.onnx_value("c", "float32", [600, 600])],
        name="body",
    )
    model = m.OnnxModel(
        [m.onnx_node("Loop", ["times", "yes", "x"], ["y"], body=body)],
        [m.onnx_value("x", "float32", [600, 600])],
        [m.onnx_value("y", "float32", [600, 600])],
        [
            m.onnx_tensor("times", np.array(10**7, np.int64)),
            m.onnx_tensor("yes", np.array(True)),
            m.onnx_tensor("low", np.array(0, np.float32)),
            m.onnx_tensor("high", np.array(1, np.float32)),
        ],
    )
    return bytes(model)


def children_of(pid: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if int((entry / "stat").read_text().rpartition(")")[2].split()[1]) == pid:
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


async def step_is(one: Packaging, job_id: str, words: str) -> None:
    async with one.client() as client, asyncio.timeout(30):
        while words not in (await client.get(f"/v1/jobs/{job_id}")).json()["step"]:
            await asyncio.sleep(0.05)


def below(pid: int) -> list[int]:
    """The processes that a process started, and those that they started."""
    return [one for child in children_of(pid) for one in (child, *below(child))]


async def test_a_running_job_is_cancelled_and_its_child_killed(running: Packaging) -> None:
    job_id = await running.commit({"variants": [{"files": [await running.put("slow.onnx", slow_model())]}]})
    await step_is(running, job_id, "running it")
    working = below(os.getpid())
    async with running.client() as client:
        answer = await client.post(f"/v1/jobs/{job_id}:cancel")
        assert (answer.status_code, answer.json()["state"], answer.json()["problem"]["code"]) == (200, "cancelled", "JOB_CANCELLED")
        assert (await client.post(f"/v1/jobs/{job_id}:cancel")).json()["state"] == "cancelled"
    # The child and its guard are gone; the warm parent stays for the next job.
    await until(lambda: len(below(os.getpid())) == len(working) - 2)
    (record,) = await running.told(job_id)
    assert events_pb2.PackageFailed.FromString(record.value).code == "JOB_CANCELLED"
    done = await running.commit({"variants": [{"files": [await running.put("model.onnx", m.onnx_add())]}]})
    assert (await running.ended(done))["state"] == "succeeded"
    async with running.client() as client:
        answer = await client.post(f"/v1/jobs/{done}:cancel")
        assert (answer.status_code, answer.json()["code"]) == (409, "JOB_FINISHED")


async def test_a_slow_model_ends_at_its_deadline(tmp_path: Path) -> None:
    async with packaging(tmp_path, job_seconds=1.5) as one:
        job_id = await one.commit({"variants": [{"files": [await one.put("slow.onnx", slow_model())]}]})
        assert (await one.ended(job_id))["problem"]["code"] == "CHILD_TIMEOUT"


async def test_a_stop_in_the_middle_gives_the_job_back(tmp_path: Path) -> None:
    async with packaging(tmp_path) as one:
        job_id = await one.commit({"variants": [{"files": [await one.put("slow.onnx", slow_model())]}]})
        await step_is(one, job_id, "running it")
    assert children_of(os.getpid()) == []
    assert list((tmp_path / "scratch").iterdir()) == []
    async with opened(tmp_path) as one, one.client() as client:
        job = (await client.get(f"/v1/jobs/{job_id}")).json()
        assert job["state"] == "queued"
        assert "the server stops" in job["log"][-1]["text"]


async def test_two_runners_never_share_a_job(tmp_path: Path) -> None:
    async with opened(tmp_path) as one:
        service = one.part.app.state.packager  # type: ignore[attr-defined]
        from services.packager import events

        for number in range(6):
            await service.start_job(new_id("e"), events.Committed(f"a{number}", "m", 1, f"job_{number}", "2026-11-22T10:00:00Z", b"[]"))
        claims = await asyncio.gather(*(service.claim(f"holder-{number % 2}") for number in range(8)))
        taken = [claim.job.job_id for claim in claims if claim is not None]
        assert len(taken) == len(set(taken)) == 6


async def test_an_unreadable_event_does_not_stop_the_next_one(running: Packaging) -> None:
    await running.ports.eventlog.append(
        "version.committed", [Message("acme/m", b"\xff\xff\xff", {"event-id": new_id("e"), "account": "acme"})]
    )
    job_id = await running.commit(b"[]")
    assert (await running.ended(job_id))["state"] == "failed"


def test_keys_are_kept_for_their_owner_only(tmp_path: Path) -> None:
    async def start() -> str:
        async with opened(tmp_path) as one:
            service = one.part.app.state.packager  # type: ignore[attr-defined]
            return base64.b64encode(service._signer.public_key("acme")).decode()

    assert asyncio.run(start()) == asyncio.run(start())
    assert (tmp_path / "secrets" / "package.key").stat().st_mode & 0o777 == 0o600
