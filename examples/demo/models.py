"""What is pushed: magika in two versions, basic-pitch in one version with two variants, each declared in a latebind.yaml.

And how an app turns things into inputs and outputs into words, with nothing hard-coded but what the parameters mean.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from examples.real_models import basic_pitch, magika

if TYPE_CHECKING:
    from latebind import Inference, ModelInfo

NOTE_NAMES = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")


def write_versions(folder: Path) -> dict[str, Path]:
    """Write three folders that `latebind push` takes: `magika-1`, `magika-2`, `basic-pitch-1`."""
    kinds = magika()
    paths = {}
    for number, thresholds, notes in (
        (1, {}, "one threshold for all labels"),
        (2, kinds.config["thresholds"], "a threshold for each label that is often mistaken"),
    ):
        target = _fresh(folder / f"magika-{number}")
        shutil.copyfile(kinds.model, target / "model.onnx")
        (target / "labels.txt").write_text("".join(f"{label}\n" for label in kinds.labels))
        params = {
            "labels": _param("file", "labels.txt"),
            "begin_bytes": _param("int", kinds.config["beg_size"]),
            "end_bytes": _param("int", kinds.config["end_size"]),
            "padding": _param("int", kinds.config["padding_token"]),
            "threshold": _param("float", kinds.config["medium_confidence_threshold"]),
            "thresholds": _param("json", thresholds),
        }
        described = {"model": "magika", "description": "Which kind of content a file has", "notes": notes}
        paths[target.name] = _declare(
            target, {**described, "variants": [{"files": ["model.onnx"]}], "files": ["labels.txt"], "params": params}
        )

    notes_model = basic_pitch()
    target = _fresh(folder / "basic-pitch-1")
    shutil.copyfile(notes_model.tflite, target / "model.tflite")
    shutil.copyfile(notes_model.onnx, target / "model.onnx")
    (target / "notes.txt").write_text("".join(f"{NOTE_NAMES[midi % 12]}{midi // 12 - 1}\n" for midi in range(21, 109)))
    params = {
        "notes": _param("file", "notes.txt"),
        "sample_rate": _param("int", 22050),
        "note_output": _param("string", "StatefulPartitionedCall:1"),
        "threshold": _param("float", 0.55),
    }
    described = {"model": "basic-pitch", "description": "Which notes sound", "notes": "as TFLite and as ONNX"}
    variants = [{"name": "tflite-fp32", "files": ["model.tflite"]}, {"name": "onnx-fp32", "files": ["model.onnx"]}]
    paths[target.name] = _declare(target, {**described, "variants": variants, "files": ["notes.txt"], "params": params})
    return paths


def _fresh(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def _param(kind: str, value: Any) -> dict[str, Any]:
    return {"type": kind, "value": value}


def _declare(folder: Path, declaration: dict[str, Any]) -> Path:
    (folder / "latebind.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(declaration)), sort_keys=False))
    return folder


def file_input(content: bytes, info: ModelInfo) -> np.ndarray:
    """The first and the last bytes of a file, as magika's parameters say."""
    begin, end, padding = (info.params[name] for name in ("begin_bytes", "end_bytes", "padding"))
    head = np.full(begin, padding, np.int32)
    tail = np.full(end, padding, np.int32)
    first, last = content[:4096].lstrip()[:begin], content[-4096:].rstrip()[-end:]
    head[: len(first)] = np.frombuffer(first, np.uint8)
    tail[len(tail) - len(last) :] = np.frombuffer(last, np.uint8)
    return np.concatenate([head, tail])[None]


def file_kind(result: Inference) -> str:
    """What magika's answer says, in a word."""
    info = result.info
    labels = info.load_hyper_param_file("labels").decode().split()
    (scores,) = result.values()
    best = int(scores[0].argmax())
    sure = float(scores[0, best]) >= info.params["thresholds"].get(labels[best], info.params["threshold"])
    return labels[best] if sure else "unknown"


def chord(frequencies: tuple[float, ...], info: ModelInfo) -> np.ndarray:
    """Two seconds of sound: tones with some harmonics, as long as the model's input."""
    shape = info.inputs[0].shape or ()
    seconds = np.arange(int(shape[1] or 0)) / info.params["sample_rate"]
    tones = [np.sin(2 * np.pi * frequency * harmonic * seconds) / harmonic for frequency in frequencies for harmonic in (1, 2, 3)]
    sound = np.sum(tones, axis=0)
    return (0.5 * sound / np.abs(sound).max()).astype(np.float32)[None, :, None]


def notes_heard(result: Inference) -> list[str]:
    """The notes that sound for most of the time."""
    info = result.info
    names = info.load_hyper_param_file("notes").decode().split()
    strength = np.median(result[info.params["note_output"]][0], axis=0)
    return [names[at] for at in np.nonzero(strength > info.params["threshold"])[0]]
