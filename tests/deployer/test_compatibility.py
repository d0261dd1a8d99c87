"""Can a package run here: the fast form and the long form say the same, and the table is what ONNX Runtime does."""

from __future__ import annotations

import random
from typing import Any

import pytest

from services.deployer.compatibility import ONNXRUNTIME, Package, blocker, checks, known_limits, package_of, release, runs
from services.deployer.facts import facts_of
from tests.deployer import generators


def package(**more: Any) -> Package:
    fields = {"digest": "d", "model_id": "m", "version": 1, "variant": "v", "size": 1, "engine": "onnxruntime", **more}
    if "min_version" in fields:
        fields["minimum"] = release(fields["min_version"])
    return Package(**fields)


def device(*runtimes: dict[str, Any], **more: Any) -> Any:
    return facts_of({"install_id": "i", "runtimes": list(runtimes), "device": more})


def ort(version: Any = None, **more: Any) -> dict[str, Any]:
    return {"engine": "onnxruntime", **({} if version is None else {"version": version}), **more}


@pytest.mark.parametrize(
    ("needs", "facts", "condition", "reported"),
    [
        ({}, device(), "engine", []),
        ({}, facts_of({"install_id": "i"}), "engine", []),
        ({}, device({"engine": "litert"}), "engine", ["litert"]),
        ({"min_version": "1.18"}, device(ort("1.17.9")), "min_version", "1.17.9"),
        ({"min_version": "1.18"}, device(ort("1.18.0-rc.1")), "min_version", "1.18.0-rc.1"),
        ({"min_version": "1.18"}, device(ort("unknown")), "min_version", "unknown"),
        ({"min_version": "1.18"}, device(ort("1.18")), None, None),
        ({"min_version": "1.18"}, device(ort("1.20.1rc2")), None, None),
        ({"min_version": "1.18"}, device(ort()), None, None),
        ({"min_version": "1.18"}, device(ort("1.17"), ort("1.20")), None, None),
        ({"ir_version": 10}, device(ort("1.20", max_ir=9)), "ir_version", 9),
        ({"ir_version": 10}, device(ort("1.17")), "ir_version", 9),
        ({"ir_version": 10}, device(ort("1.18")), None, None),
        ({"ir_version": 10}, device(ort()), None, None),
        ({"ir_version": 99}, device(ort("1.99")), None, None),
        ({"opset": 21}, device(ort("1.17.1")), "opset", 20),
        ({"opset": 21}, device(ort("1.17.1", max_opset=21)), None, None),
        ({"opset": 21}, device(ort("1.20", max_opset=20)), "opset", 20),
        ({"opset": 21, "ir_version": 10}, device(ort("1.16.0")), "ir_version", 9),
        ({"abi": ("arm64-v8a",)}, device(ort(), abi="x86_64"), "abi", "x86_64"),
        ({"abi": ("arm64-v8a", "x86_64")}, device(ort(), abi="x86_64"), None, None),
        ({"abi": ("arm64-v8a",)}, device(ort()), None, None),
        ({"ram_mb": 512}, device(ort(), ram_mb=511.5), "ram_mb", 511.5),
        ({"ram_mb": 512}, device(ort(), ram_mb="lots"), None, None),
        ({"accelerators": frozenset({"npu"})}, device(ort(), accelerators=["gpu"]), "accelerators", ["gpu"]),
        ({"accelerators": frozenset({"npu"})}, device(ort(), accelerators=["gpu", "npu"]), None, None),
        ({"accelerators": frozenset({"npu"})}, device(ort()), None, None),
    ],
)
def test_conditions(needs: dict, facts: Any, condition: str | None, reported: Any) -> None:
    found = blocker(package(**needs), facts)
    assert runs(package(**needs), facts) is (condition is None)
    if condition is None:
        assert found is None
    else:
        assert found is not None
        assert (found.condition, found.reported) == (condition, reported)


def test_short_and_long_form_agree() -> None:
    rng = random.Random(3)
    for _ in range(3_000):
        variant = rng.choice(generators.VARIANTS)
        one = package_of(generators.manifest(rng, "m", 1, variant), digest="d", size=1)
        facts = facts_of(generators.device(rng))
        assert runs(one, facts) is all(check.result is not False for check in checks(one, facts))


def test_true_is_not_one_even_after_one_was_seen() -> None:
    needy = package(ir_version=9)
    assert not runs(needy, device(ort("1.20", max_ir=1)))
    assert runs(needy, device(ort("1.20", max_ir=True)))
    assert not runs(needy, device(ort("1.20", max_ir=1.0)))
    assert runs(needy, device(ort("1.20", max_ir=[])))


def test_a_package_remembers_a_bounded_number_of_runtimes() -> None:
    needy = package(ir_version=9)
    for number in range(2, 1_000):
        runs(needy, device(ort(f"1.{number}", max_ir=number)))
    assert len(needy.loads) <= 256


def test_what_is_known_of_onnxruntime() -> None:
    assert sorted(ONNXRUNTIME) == list(range(max(ONNXRUNTIME) + 1))
    entries = [ONNXRUNTIME[minor] for minor in sorted(ONNXRUNTIME)]
    assert entries == sorted(entries)
    assert known_limits("onnxruntime", "1.20.1") == (10, 21, True)
    assert known_limits("onnxruntime", "1.999") == (*entries[-1], False)
    assert known_limits("onnxruntime", "2.0") == (*entries[-1], False)
    assert known_limits("onnxruntime", "0.5.0") is None
    assert known_limits("litert", "2.1.0") is None


def test_the_installed_onnxruntime_has_the_limits_of_the_table() -> None:
    import onnxruntime

    limits = known_limits("onnxruntime", onnxruntime.__version__)
    assert limits is not None

    def loads(ir: int, opset: int) -> bool:
        try:
            onnxruntime.InferenceSession(_identity(ir, opset), providers=["CPUExecutionProvider"])
        except Exception:
            return False
        return True

    assert loads(limits.max_ir, 17)
    assert loads(8, limits.max_opset)
    if limits.certain:
        assert not loads(limits.max_ir + 1, 17)
        assert not loads(8, limits.max_opset + 1)


def _identity(ir: int, opset: int) -> bytes:
    """The smallest ONNX model, written field by field (onnx.proto)."""

    def varint(value: int) -> bytes:
        out = b""
        while value > 127:
            out += bytes([value & 127 | 128])
            value >>= 7
        return out + bytes([value])

    def number(tag: int, value: int) -> bytes:
        return varint(tag << 3) + varint(value)

    def part(tag: int, content: bytes) -> bytes:
        return varint(tag << 3 | 2) + varint(len(content)) + content

    tensor = part(2, part(1, number(1, 1) + part(2, part(1, number(1, 1)))))
    node = part(1, b"x") + part(2, b"y") + part(4, b"Identity")
    graph = part(1, node) + part(2, b"g") + part(11, part(1, b"x") + tensor) + part(12, part(1, b"y") + tensor)
    return number(1, ir) + part(7, graph) + part(8, part(1, b"") + number(2, opset))
