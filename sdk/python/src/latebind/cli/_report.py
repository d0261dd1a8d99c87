"""Shows what the gates found about the variants of a version: one row each, and a line for each that is not served."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from latebind.cli._output import Output, size_text


def show_report(out: Output, version: Mapping[str, Any]) -> None:
    """Show a version's report; nothing when it has none, or nothing in it was measured."""
    rows = (version.get("report") or {}).get("variants", [])
    if not any(row.get("parity") or row.get("accuracy") or row["problem"] for row in rows):
        return
    headings = ["variant", "state", "worst error", "accuracy", "size", "one run", "memory"]
    out.table(headings, [_row(row) for row in rows], title="gates")
    if any(row.get("speed") for row in rows):
        out.say("one run, memory: estimates, single-threaded on the machine that packaged")
    for row in rows:
        if row["problem"]:
            out.warn(f"{row['variant']} is not served: {row['problem']['code']}: {row['problem']['detail']}")


def _row(row: Mapping[str, Any]) -> list[Any]:
    parity, accuracy = row.get("parity") or {}, row.get("accuracy")
    worst = max((output["worst"] for output in parity.get("outputs", ())), default=None)
    return [
        row["variant"] or "?",
        row["state"],
        None if worst is None else f"{worst:.2g}",
        None if accuracy is None else f"{accuracy['value']:.4f}",
        size_text(row["structure"]["bytes"]) if row.get("structure") else None,
        f"{row['speed']['median_ms']:.2f} ms" if row.get("speed") else None,
        f"{row['memory']['peak_mb']} MiB" if row.get("memory") else None,
    ]
