"""Packager and deployer each know which ONNX Runtime loads what (services share no code): they must not contradict each other."""

from __future__ import annotations

import pytest

from services.deployer.compatibility import ONNXRUNTIME
from services.packager.formats.onnx import RUNTIMES


@pytest.mark.parametrize(("version", "opset", "ir_version"), RUNTIMES)
def test_a_package_runs_on_the_version_that_its_manifest_names(version: str, opset: int, ir_version: int) -> None:
    most_ir, most_opset = ONNXRUNTIME[int(version.split(".")[1])]
    assert ir_version <= most_ir
    assert opset <= most_opset
