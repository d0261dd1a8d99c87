"""What the documents promise about the packager's reasons."""

from __future__ import annotations

import re
from pathlib import Path

from services.packager.errors import Reason

ROOT = Path(__file__).parents[2]


def test_every_reason_is_explained() -> None:
    headings = set(re.findall(r"^### `([A-Z_]+)`$", (ROOT / "docs" / "packaging.md").read_text(), re.MULTILINE))
    assert headings == {reason.value for reason in Reason}
