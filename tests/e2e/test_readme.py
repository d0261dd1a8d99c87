"""The README's tour, typed as it stands (only the ports are others, so that the test can run beside a server)."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as bound:
        return int(bound.getsockname()[1])


def test_the_tour_works_as_written(tmp_path: Path) -> None:
    text = (ROOT / "README.md").read_text()
    block = re.search(r"## A tour by hand.*?```sh\n(.*?)```", text, re.DOTALL)
    assert block is not None
    port = free_port()
    commands = block.group(1).replace(":8080", f":{port}").splitlines()
    assert commands[0] == "latebindd &"
    wait = 'for i in $(seq 600); do grep -q "Latebind serves" server.log && break; sleep 0.1; done'
    script = [
        "set -eo pipefail",
        "latebindd 2> server.log & server=$!",
        "trap 'kill $server; wait $server' EXIT",
        wait,
        "set -x",
        *commands[1:],
    ]
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    environment = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(tmp_path / "home"),
        "LATEBIND_PORT": str(port),
        "LATEBIND_INTERNAL_PORT": "0",
        "NO_COLOR": "1",
        "COLUMNS": "160",
    }
    done = subprocess.run(
        ["bash", "-c", "\n".join(script)], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "tiny-yolo-v2 v1 onnx-fp32" in done.stdout
    assert "S=13, B=5, C=20" in done.stdout
    assert "S=19, B=8, C=40" in done.stdout
    assert "TARGETING_MATCH, rule enough-memory" in done.stdout
    assert "Pixel 9" in done.stdout
