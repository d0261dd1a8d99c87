"""Runs one conversion inside the sandbox: finds the function, calls it, turns what happened into an answer. Nothing else."""

from __future__ import annotations

import sys
import traceback
from importlib import import_module
from typing import Any

from services.packager.converters import CONVERTERS, STEPS, Refusal

_SHOWN = 600


def answer(job: dict[str, Any]) -> dict[str, Any]:
    """Return `{"ok": true, "result": …}`, or a refusal with `code` and `detail`. Raises `MemoryError` and `OSError` as they are."""
    name = job["function"]
    row = CONVERTERS[name]
    try:
        module = import_module(f"services.packager.converters.{row.module}")
        return {"ok": True, "result": getattr(module, row.function or name)(job["job"], _step)}
    except Refusal as refusal:
        return {"ok": False, "code": refusal.reason, "detail": refusal.detail}
    except (MemoryError, OSError):
        raise
    except Exception as error:
        traceback.print_exc()
        words = str(error).strip().splitlines() or [""]
        return {"ok": False, "code": "CONVERSION_FAILED", "detail": f"{type(error).__name__}: {' '.join(words)[:_SHOWN]}"}


def _step(name: str) -> None:
    if name not in STEPS:
        raise ValueError(f'"{name}" is not a step of a converter')
    print(f"@{name}", file=sys.stderr, flush=True)  # noqa: T201 - the child's progress channel
