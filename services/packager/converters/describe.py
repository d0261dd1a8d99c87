"""Says what an environment holds, by really importing its tools: the first thing to ask when a conversion fails."""

from __future__ import annotations

import sys
from importlib.metadata import distributions
from typing import Any

from services.packager.converters import Step


def describe(job: dict[str, Any], step: Step) -> dict[str, Any]:
    """Import `job["modules"]` and return their versions, with those of all distributions and of Python."""
    step("importing")
    imported = {}
    for name in job["modules"]:
        __import__(name)
        imported[name] = str(getattr(sys.modules[name], "__version__", ""))
    installed = {one.metadata["Name"]: one.version for one in distributions()}
    return {"python": ".".join(map(str, sys.version_info[:3])), "imported": imported, "installed": installed}
