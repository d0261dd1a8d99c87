"""Rules of the two collections, before and after the edit."""

from __future__ import annotations

from typing import Any

Document = dict[str, Any]


def _attr(name: str, operator: str, value: Any) -> Document:
    return {"attr": name, "op": operator, "value": value}


FLAGSHIP_SOCS = ["tensor-g4", "sm8750", "sm8650"]

# Which kind of file is this? The newest version on the newest phones only; everybody else what is called stable.
FILES: Document = {
    "rules": [
        {
            "id": "flagships",
            "when": {"all": [_attr("device.soc", "in", FLAGSHIP_SOCS), _attr("os.api_level", "gte", 34)]},
            "serve": {"model": "magika", "version": 2},
        }
    ],
    "default": {"model": "magika", "alias": "stable"},
}

# Which notes sound? The first variant that can run on modern phones, ONNX on boards (they have no API level), nothing below API 29.
NOTES: Document = {
    "rules": [
        {"id": "phones", "when": _attr("os.api_level", "gte", 29), "serve": {"model": "basic-pitch", "version": 1}},
        {"id": "boards", "when": _attr("os.name", "eq", "linux"), "serve": {"model": "basic-pitch", "version": 1, "variant": "onnx-fp32"}},
    ],
    "default": None,
}

# The edit: version 2 for half of the phones from API 33 on, and ONNX instead of TFLite on the Tensor chips.
FILES_AFTER: Document = {
    "rules": [
        FILES["rules"][0],
        {
            "id": "wider",
            "when": _attr("os.api_level", "gte", 33),
            "rollout": {"percent": 50.0, "salt": "demo-1"},
            "serve": {"model": "magika", "version": 2},
        },
        {"id": "boards", "when": _attr("os.name", "eq", "linux"), "serve": {"model": "magika", "version": 2}},
    ],
    "default": FILES["default"],
}
NOTES_AFTER: Document = {
    "rules": [
        {
            "id": "tensor",
            "when": _attr("device.soc", "prefix", "tensor-"),
            "serve": {"model": "basic-pitch", "version": 1, "variant": "onnx-fp32"},
        },
        *NOTES["rules"],
    ],
    "default": None,
}
