"""Converter environments: made whole, once, offline when asked, made again when damaged; and a real conversion call in one."""

from __future__ import annotations

import asyncio
import shutil
import sys
import zipfile
from hashlib import sha256
from pathlib import Path

import pytest

from services.packager import environments as module
from services.packager.environments import EnvironmentFailed, Environments, names
from services.packager.errors import ModelRejected, Reason
from services.packager.sandbox import Limits, Sandbox, open_sandbox


def wheel(folder: Path, name: str, version: str = "1.0") -> str:
    """Write a small wheel and return its line in a lock."""
    path = folder / f"{name}-{version}-py3-none-any.whl"
    facts = f"{name}-{version}.dist-info"
    files = {
        f"{name}.py": f"__version__ = {version!r}\n",
        f"{facts}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{facts}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{facts}/RECORD": "",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for inner, text in files.items():
            archive.writestr(inner, text)
    return f"{name}=={version} --hash=sha256:{sha256(path.read_bytes()).hexdigest()}\n"


@pytest.fixture
def locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Environments:
    """Environments of two small wheels in a folder, without any index."""
    wheels, locks = tmp_path / "wheels", tmp_path / "locks"
    wheels.mkdir()
    locks.mkdir()
    (locks / "small.lock").write_text(wheel(wheels, "first") + wheel(wheels, "second"))
    monkeypatch.setattr(module, "_LOCKS", locks)
    return Environments(tmp_path / "environments", wheels)


def test_there_is_a_lock_for_each_and_no_host_in_any() -> None:
    assert names() == ["onnx", "sk", "tf"]
    for name in names():
        text = (Path(module.__file__).parent / "converters" / f"{name}.lock").read_text()
        assert "://" not in text
        pins = [line for line in text.splitlines() if line and not line.startswith((" ", "#"))]
        assert pins and all("==" in line and line.endswith("\\") for line in pins)


async def test_one_is_made_offline_once_and_says_so(locked: Environments, tmp_path: Path) -> None:
    said: list[str] = []
    made = await locked.ready("small", said.append)
    assert said[0] == "making the converter environment small: up to 2 packages, once on this machine"
    assert said[-1].startswith("the converter environment small is ready after ")
    assert not any(str(tmp_path) in line for line in said)
    assert list(made.folder.glob("lib/python*/site-packages/first.py")) != []
    again = await locked.ready("small", said.append)
    assert (again, len([line for line in said if line.startswith("making")])) == (made, 1)


async def test_two_processes_at_once_make_one(locked: Environments, tmp_path: Path) -> None:
    script = f"""
import asyncio, sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from services.packager import environments as module
module._LOCKS = Path({str(tmp_path / "locks")!r})
ours = module.Environments(Path({str(tmp_path / "environments")!r}), Path({str(tmp_path / "wheels")!r}))
made = asyncio.run(ours.ready("small", print))
print("at", made.folder)
"""
    runs = [await asyncio.create_subprocess_exec(sys.executable, "-c", script, stdout=asyncio.subprocess.PIPE) for _ in range(3)]
    texts = [(await one.communicate())[0].decode() for one in runs]
    assert [one.returncode for one in runs] == [0, 0, 0]
    assert sum(text.count("making the") for text in texts) == 1, texts
    assert len({text.splitlines()[-1] for text in texts}) == 1
    assert len([path for path in (tmp_path / "environments").iterdir() if path.is_dir()]) == 1


@pytest.mark.parametrize("damage", ["a package is gone", "the interpreter is gone", "half of it is gone", "it was not finished"])
async def test_a_damaged_one_is_made_again(locked: Environments, tmp_path: Path, damage: str) -> None:
    made = await locked.ready("small", lambda _text: None)
    if damage == "a package is gone":
        shutil.rmtree(next(made.folder.glob("lib/python*/site-packages/second-1.0.dist-info")))
    elif damage == "the interpreter is gone":
        made.python.unlink()
    elif damage == "half of it is gone":
        shutil.rmtree(made.folder / "lib")
    else:
        (made.folder / "latebind.json").unlink()
        # A maker that was killed: its folder lies beside it.
        (made.folder.with_name(f".{made.folder.name}.12345") / "lib").mkdir(parents=True)
    said: list[str] = []
    assert await locked.ready("small", said.append) == made
    assert said[0].startswith("making")
    assert made.python.exists()
    assert len(list(made.folder.glob("lib/python*/site-packages/*.dist-info"))) == 2
    assert [path.name for path in (tmp_path / "environments").iterdir() if path.is_dir()] == [made.folder.name]


async def test_what_cannot_be_made_leaves_nothing(locked: Environments, tmp_path: Path) -> None:
    (tmp_path / "locks" / "small.lock").write_text("first==1.0 --hash=sha256:" + "0" * 64 + "\n")
    with pytest.raises(EnvironmentFailed, match=r"(?i)hash"):
        await locked.ready("small", lambda _text: None)
    assert [path for path in (tmp_path / "environments").iterdir() if path.is_dir()] == []


async def test_cancelling_leaves_nothing(locked: Environments, tmp_path: Path) -> None:
    begun = asyncio.Event()
    task = asyncio.create_task(locked.ready("small", lambda _text: begun.set()))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [path for path in (tmp_path / "environments").iterdir() if path.is_dir()] == []


async def test_a_job_without_an_environment_is_refused_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "wheels").mkdir()
    nothing = Environments(tmp_path / "environments", tmp_path / "wheels")
    async with open_sandbox(tmp_path / "scratch", Limits(), nothing) as sandbox, sandbox.workspace() as workspace:
        with pytest.raises(ModelRejected) as caught:
            await sandbox.convert(workspace, "describe", {"modules": []}, lambda _step: None, lambda _text: None)
    assert caught.value.reason is Reason.CONVERTER_UNAVAILABLE
    assert "latebindd prefetch onnx" in caught.value.detail
    assert str(tmp_path) not in caught.value.detail


@pytest.mark.parametrize(
    ("function", "modules"),
    [
        ("describe", ["onnx", "onnxruntime", "onnxruntime.quantization", "onnxslim"]),
        ("describe_tf", ["tensorflow", "tf2onnx"]),
        ("describe_sk", ["skl2onnx", "onnxmltools", "xgboost", "lightgbm", "skops.io"]),
    ],
)
async def test_every_environment_imports_its_tools_inside_the_sandbox(sandbox: Sandbox, function: str, modules: list[str]) -> None:
    steps: list[str] = []
    async with sandbox.workspace() as workspace:
        result = await sandbox.convert(workspace, function, {"modules": modules}, steps.append, lambda _text: None)
    assert steps == ["importing"]
    assert list(result["imported"]) == modules
    # What a warm parent imports may leave no thread and no shared memory behind.
    assert sandbox.warm_parents == 1
    assert result["python"] == ".".join(map(str, sys.version_info[:3]))
