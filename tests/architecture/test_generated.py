"""What is generated and checked in is what its source generates."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_messages_fit_their_proto_files(tmp_path: Path) -> None:
    tools = re.findall(r"--with '([^']+)'", (ROOT / "Makefile").read_text())
    assert tools
    uv = shutil.which("uv") or str(ROOT / "build/tools/bin/uv")
    options = [part for tool in tools for part in ("--with", tool)]
    command = [
        uv,
        "run",
        "--quiet",
        "--isolated",
        "--no-project",
        *options,
        "bash",
        str(ROOT / "proto/generate.sh"),
        str(tmp_path / "made"),
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for made in sorted((tmp_path / "made").iterdir()):
        assert made.read_text() == (ROOT / "proto/src/latebind_proto" / made.name).read_text(), f"{made.name} is stale: run make proto"
