"""What converting and examining came to is found again: per account, while its files are there, within bounds."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from services.packager.domain import surplus_results
from services.packager.results import Results
from services.packager.sandbox import Sandbox
from tests import models as m
from tests.packager.converting import to
from tests.packager.running import Packaging, opened, packaging


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts the children, by what they do."""
    counts: Counter[str] = Counter()
    run, convert = Sandbox.run, Sandbox.convert

    async def counted_run(sandbox: Sandbox, workspace: Any, job: Any, on_step: Any) -> bytes:
        counts[job["task"]] += 1
        return await run(sandbox, workspace, job, on_step)

    async def counted_convert(*arguments: Any, **more: Any) -> dict[str, Any]:
        counts["convert"] += 1
        return await convert(*arguments, **more)

    monkeypatch.setattr(Sandbox, "run", counted_run)
    monkeypatch.setattr(Sandbox, "convert", counted_convert)
    return counts


async def push(one: Packaging, *variants: dict[str, Any], account: str = "acme", version: int = 1, hidden: int = 16) -> dict[str, Any]:
    source = await one.put("model.onnx", m.onnx_mlp(8, hidden, 4), account=account)
    declaration = {"source": {"files": [source]}, "variants": list(variants) or to("onnx-fp32", "onnx-int8")}
    job = await one.ended(await one.commit(declaration, account=account, version=version), account=account)
    assert job["state"] == "succeeded", job
    return job


def said(job: dict[str, Any], words: str) -> int:
    return sum(words in line["text"] for line in job["log"])


def own_files(folder: Path) -> list[Path]:
    """The files that only results have."""
    return sorted(path for path in folder.rglob("r_*/*/*") if path.is_file())


async def test_a_conversion_is_found_again(tmp_path: Path, started: Counter[str]) -> None:
    """By account, input, tool and options; with it, what examining its variants came to."""
    async with packaging(tmp_path) as one:
        first = await push(one)
        assert (started["convert"], started["inspect"], started["replay"]) == (1, 2, 2)
        again = await push(one, version=2)
        assert (started["convert"], started["inspect"], started["replay"]) == (1, 2, 2)
        assert said(again, "converted before, with the same result") == 1
        assert said(again, "examined before, with the same result") == 2
        assert [row["variant"] for row in again["result"]["packages"]] == ["onnx-fp32", "onnx-int8"]
        assert first["result"]["packages"] != again["result"]["packages"]

        other = await push(one, account="other")
        assert (started["convert"], said(other, "before, with the same result")) == (2, 0)
        await push(one, *to("onnx-fp32", "onnx-int8", profile="modern"), version=3)
        assert started["convert"] == 3
        await push(one, version=4, hidden=24)
        assert started["convert"] == 4

        for path in own_files(tmp_path):
            path.unlink()
        assert said(await push(one, version=5), "converted before") == 0
        assert started["convert"] == 5
        assert said(await push(one, version=6), "converted before") == 1


async def test_nothing_is_kept_where_there_is_no_room(tmp_path: Path, started: Counter[str]) -> None:
    async with packaging(tmp_path, account_results_mb=0) as one:
        for version in (1, 2):
            await push(one, version=version)
            assert started["convert"] == version
            assert own_files(tmp_path) == []


async def test_results_with_files_are_bounded_per_account(tmp_path: Path) -> None:
    """What was of no use for the longest time goes, its files first; other accounts keep theirs."""
    async with opened(tmp_path / "data", account_results_mb=1) as one:
        results = Results(one.part.app.state.packager, one.ports.blobs, {})  # type: ignore[attr-defined]
        (tmp_path / "made").write_bytes(bytes(400_000))
        (tmp_path / "large").write_bytes(bytes(2_000_000))

        async def known(account: str, name: str) -> bool:
            folder = tmp_path / f"{account}-{name}"
            folder.mkdir(exist_ok=True)
            answer = await results.fetch(account, {"name": name}, folder)
            files = [path.name for path in folder.iterdir()]
            assert files == ([] if answer is None else ["graph"])
            for path in folder.iterdir():
                path.unlink()
            return answer == name.encode()

        await results.store("other", {"name": "a"}, b"a", {"graph": tmp_path / "made"})
        for name in "abc":
            await results.store("acme", {"name": name}, name.encode(), {"graph": tmp_path / "made"})
            assert await known("acme", name)
        assert [await known("acme", name) for name in "abc"] == [False, True, True]
        assert await known("other", "a")
        assert len(own_files(tmp_path)) == 3
        await results.store("acme", {"name": "d"}, b"d", {"graph": tmp_path / "large"})
        assert [await known("acme", name) for name in "bcd"] == [True, True, False]
        assert len(own_files(tmp_path)) == 3


async def test_a_result_whose_files_never_came_is_not_known(tmp_path: Path) -> None:
    """The row is written first, so a server that dies then leaves nothing that nobody finds."""
    async with opened(tmp_path / "data") as one:
        results = Results(one.part.app.state.packager, one.ports.blobs, {})  # type: ignore[attr-defined]
        folder = tmp_path / "in"
        folder.mkdir()
        files = {}
        for name in ("first", "second"):
            files[name] = tmp_path / name
            files[name].write_text(name)
        await results.store("acme", {}, b"answer", files)
        (second,) = [path for path in own_files(tmp_path) if path.read_bytes() == b"second"]
        second.unlink()
        assert await results.fetch("acme", {}, folder) is None
        assert list(folder.iterdir()) == []
        await results.store("acme", {}, b"answer", files)
        assert await results.fetch("acme", {}, folder) == b"answer"
        assert sorted(path.read_text() for path in folder.iterdir()) == ["first", "second"]


def test_what_was_of_use_last_stays() -> None:
    kept = [("a", 40), ("b", 50), ("c", 20), ("d", 0), ("e", 10)]
    assert surplus_results(kept, 10, 100) == ["c"]
    assert surplus_results(kept, 2, 100) == ["c", "d", "e"]
    assert surplus_results(kept, 10, 0) == ["a", "b", "c", "e"]
