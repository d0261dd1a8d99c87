"""The public surface is a list, and importing it costs nothing."""

from __future__ import annotations

import subprocess
import sys

import latebind


def test_every_public_name_can_be_loaded_and_is_listed() -> None:
    assert latebind.__all__ == sorted(latebind.__all__) == dir(latebind)
    public = (
        "Client DeviceAgent DeviceError Handle Inference LatebindError Manager ModelConfig ModelInfo ServerError Tensor Update __version__"
    )
    assert set(latebind.__all__) == set(public.split())
    for name in latebind.__all__:
        assert getattr(latebind, name) is not None


def test_importing_loads_nothing_heavy() -> None:
    heavy = (
        "{'numpy', 'httpx2', 'reactivex', 'onnxruntime', 'ai_edge_litert', 'cryptography', 'google.protobuf', 'zstandard', 'typer', 'rich'}"
    )
    program = f"import sys, latebind, latebind.errors; latebind.ModelConfig('acme', 'c_1'); print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_an_unknown_name_is_an_attribute_error() -> None:
    assert not hasattr(latebind, "Nothing")
