"""What the packager quantises is what ONNX Runtime's own tool quantises from the same samples, though it asks for fewer ranges."""

from __future__ import annotations

from pathlib import Path

from tests.packager.converting import train


def test_the_graph_is_the_runtimes(tmp_path: Path) -> None:
    train("onnx", "same_as_runtime.py", tmp_path)
