"""The ONNX reader: what it finds, and what it refuses, without running anything."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.packager.domain import Tensor
from services.packager.errors import ModelRejected, Reason
from services.packager.formats import onnx
from services.packager.formats.onnx_walk import MAX_DEPTH
from tests import models as m


def refused(data: bytes) -> ModelRejected:
    with pytest.raises(ModelRejected) as caught:
        onnx.read(data, "1.32.0")
    return caught.value


def test_it_finds_versions_tensors_and_operators() -> None:
    found = onnx.read(m.onnx_mlp(8, 16, 4), "1.32.0")
    assert found.engine.name == "onnxruntime"
    assert (found.engine.ir_version, found.engine.opset) == (8, {"": 15})
    assert found.engine.operators == ("Gemm", "Relu", "Softmax")
    assert found.inputs == (Tensor("features", "float32", ("batch", 8)),)
    assert found.outputs == (Tensor("scores", "float32", ("batch", 4)),)
    assert found.precision == "fp32"


@pytest.mark.parametrize(
    ("opset", "ir_version", "version"),
    [(11, 6, "1.2"), (15, 8, "1.10"), (17, 8, "1.12"), (15, 9, "1.16"), (21, 10, "1.18"), (28, 14, "9.9")],
)
def test_the_engine_version_covers_opset_and_ir(opset: int, ir_version: int, version: str) -> None:
    assert onnx.read(m.onnx_add(opset=opset, ir_version=ir_version), "9.9").engine.min_version == version


def test_dimensions_may_be_numbers_symbols_or_unknown() -> None:
    found = onnx.read(m.onnx_add(["batch", None, 3, -1, "unk__7"]), "1")
    assert found.inputs[0].shape == ("batch", None, 3, None, None)


def test_a_missing_shape_is_an_unknown_rank_and_an_empty_one_a_scalar() -> None:
    model = m.OnnxModel([m.onnx_node("Neg", ["x"], ["y"])], [m.onnx_value("x", "float32", None)], [m.onnx_value("y", "float32", [])])
    found = onnx.read(bytes(model), "1")
    assert (found.inputs[0].shape, found.outputs[0].shape) == (None, ())


def test_initializers_are_not_inputs() -> None:
    model = m.OnnxModel(
        [m.onnx_node("Add", ["x", "c"], ["y"])],
        [m.onnx_value("x", "int64", [1]), m.onnx_value("c", "int64", [1])],
        [m.onnx_value("y", "int64", [1])],
        [m.onnx_tensor("c", np.array([3], np.int64))],
        ir_version=3,
    )
    assert [tensor.name for tensor in onnx.read(bytes(model), "1").inputs] == ["x"]


def test_operators_of_nested_graphs_and_functions_count() -> None:
    inner = m.onnx_graph([m.onnx_node("Sqrt", ["x"], ["s"])], outputs=[m.onnx_value("s", "float32", [1])])
    model = m.OnnxModel(
        [
            m.onnx_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner),
            m.onnx_node("twice", ["y"], ["z"], domain="my.functions"),
            m.onnx_node("FusedMatMul", ["z", "z"], ["w"], domain="com.microsoft"),
        ],
        [m.onnx_value("c", "bool", []), m.onnx_value("x", "float32", [1])],
        [m.onnx_value("w", "float32", [1])],
        opsets={"": 15, "my.functions": 1, "com.microsoft": 1},
        functions=[m.onnx_function("twice", "my.functions", ["a"], ["b"], [m.onnx_node("Add", ["a", "a"], ["b"])], 15)],
    )
    found = onnx.read(bytes(model), "1")
    assert found.engine.operators == ("Add", "If", "Sqrt", "com.microsoft:FusedMatMul")
    assert found.engine.opset == {"": 15, "com.microsoft": 1}


@pytest.mark.parametrize(("domain", "name"), [("ai.onnx.contrib", "PyOp"), ("com.acme", "Fast"), ("com.microsoft", "EPContext")])
def test_foreign_operators_are_refused_wherever_they_hide(domain: str, name: str) -> None:
    evil = m.onnx_node(name, ["x"], ["y"], domain=domain)
    inner = m.onnx_graph([evil], outputs=[m.onnx_value("y", "float32", [1])])
    places = [
        m.OnnxModel([evil]),
        m.OnnxModel([m.onnx_node("If", ["x"], ["y"], then_branch=inner)]),
        m.OnnxModel([m.onnx_node("Neg", ["x"], ["y"])], functions=[m.onnx_function("f", "d", ["x"], ["y"], [evil], 15)]),
    ]
    for model in places:
        model.outputs = [m.onnx_value("y", "float32", [1])]
        error = refused(bytes(model))
        assert error.reason is Reason.OPERATOR_NOT_ALLOWED
        assert f"{domain}:{name}" in error.detail


@pytest.mark.parametrize(
    ("nodes", "weights", "precision"),
    [
        (["DequantizeLinear"], [("w", np.zeros(4, np.int8))], "int8"),
        (["MatMulNBits"], [], "int4"),
        (["Add"], [("w", np.zeros(4, np.float16)), ("v", np.zeros(1, np.float32))], "fp16"),
        (["Add"], [("w", np.zeros(4, np.float64))], "fp64"),
        (["Add"], [], "fp32"),
    ],
)
def test_precision_is_by_operators_then_by_weights(nodes: list[str], weights: list[tuple[str, np.ndarray]], precision: str) -> None:
    model = m.OnnxModel(
        [m.onnx_node(kind, ["x"], ["y"], domain="com.microsoft" if kind == "MatMulNBits" else "") for kind in nodes],
        outputs=[m.onnx_value("y", "float32", [1])],
        weights=[m.onnx_tensor(name, array) for name, array in weights],
    )
    assert onnx.read(bytes(model), "1").precision == precision


def test_graphs_may_nest_only_so_deep() -> None:
    def nested(depth: int) -> bytes:
        graph = m.onnx_graph([m.onnx_node("Neg", ["x"], ["y"])])
        for _ in range(depth):
            graph = m.onnx_graph([m.onnx_node("If", ["x"], ["y"], then_branch=graph)])
        return m.number(1, 8) + m.blob(7, graph)

    onnx.read(nested(MAX_DEPTH), "1")
    assert refused(nested(MAX_DEPTH + 1)).reason is Reason.MODEL_TOO_COMPLEX
    assert refused(nested(10_000)).reason is Reason.MODEL_TOO_COMPLEX


def test_types_nested_ten_thousand_deep_are_refused() -> None:
    kind = b""
    for _ in range(10_000):
        kind = m.blob(4, m.blob(1, kind))
    model = m.OnnxModel([m.onnx_node("Neg", ["x"], ["y"])], [m.blob(1, "x") + m.blob(2, kind)])
    assert refused(bytes(model)).reason is Reason.TENSOR_NOT_SUPPORTED


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (m.onnx_value("x", "float32", [2**40]), Reason.TENSOR_TOO_LARGE),
        (m.onnx_value("x", "float32", [2**20, 2**20]), Reason.TENSOR_TOO_LARGE),
        (m.onnx_value("x", "bfloat16", [1]), Reason.TENSOR_NOT_SUPPORTED),
        (m.onnx_value("x", "complex64", [1]), Reason.TENSOR_NOT_SUPPORTED),
        (m.onnx_value("", "float32", [1]), Reason.TENSOR_NOT_SUPPORTED),
        (m.onnx_value("a\0b", "float32", [1]), Reason.TENSOR_NOT_SUPPORTED),
        (m.onnx_value("x" * 5000, "float32", [1]), Reason.TENSOR_NOT_SUPPORTED),
        (m.onnx_value("x", "float32", [1] * 17), Reason.TENSOR_NOT_SUPPORTED),
        (m.blob(1, "x"), Reason.MODEL_MALFORMED),
        (m.blob(1, "x") + m.blob(2, b"") + m.blob(2, b""), Reason.MODEL_MALFORMED),
    ],
)
def test_inputs_that_no_app_could_pass(value: bytes, reason: Reason) -> None:
    assert refused(bytes(m.OnnxModel([m.onnx_node("Neg", ["x"], ["y"])], [value]))).reason is reason


@pytest.mark.parametrize("dims", [[2**31], [2**20] * 4, [-1], [5], []])
def test_a_constant_has_the_bytes_that_its_shape_says(dims: list[int]) -> None:
    tensor = b"".join(m.number(1, dim) for dim in dims) + m.number(2, 1) + m.blob(8, "w") + m.blob(9, b"\0" * 8)
    assert refused(bytes(m.OnnxModel([m.onnx_node("Neg", ["w"], ["y"])], weights=[tensor]))).reason is Reason.MODEL_MALFORMED


# B10: forms of a path that must not be followed.
OUTSIDE = [
    "", ".", "..", "../w", "../../etc/passwd", "/etc/passwd", "//etc/passwd", "/proc/self/environ", "a/b", "a/../../b", "./w", "w/",
    "..\\w", "a\\b", "\\\\server\\share", "C:\\w", "C:w", "file:///etc/passwd", "http://x/w", "~/w", "~root/w", "$HOME/w", "%2e%2e%2fw",
    "..%2fw", "..;/w", "w\0.bin", "\0", "w\n", " w", "w ", ".hidden", "..w", "w.", "*", "w?", "*/_ORT_MEM_ADDR_/*", "ｗ", "‥/w", "w" * 129,
    "con:", "w|x", "|ls", "&", "w;x",
]  # fmt: skip


@pytest.mark.parametrize("location", OUTSIDE)
def test_external_data_outside_the_upload_is_refused(location: str) -> None:
    assert len(OUTSIDE) >= 40
    assert refused(m.onnx_with_external_data(location)).reason is Reason.EXTERNAL_DATA_OUTSIDE


def test_every_location_counts_and_constants_in_nodes_too() -> None:
    twice = m.onnx_external("w", "float32", [1], {"location": "w"}) + m.blob(13, m.blob(1, "location") + m.blob(2, "/etc/passwd"))
    assert refused(bytes(m.OnnxModel([m.onnx_node("Neg", ["w"], ["y"])], weights=[twice]))).reason is Reason.EXTERNAL_DATA_OUTSIDE
    hidden = m.onnx_external("", "float32", [1], {"location": "../w"})
    node = m.blob(4, "Constant") + m.blob(5, m.blob(1, "value") + m.blob(5, hidden))
    assert refused(bytes(m.OnnxModel([node]))).reason is Reason.EXTERNAL_DATA_OUTSIDE
    sparse = m.onnx_graph([m.onnx_node("Neg", ["x"], ["y"])]) + m.blob(15, m.blob(1, hidden))
    assert refused(m.number(1, 8) + m.blob(7, sparse)).reason is Reason.EXTERNAL_DATA_OUTSIDE


def test_external_data_is_found_with_the_bytes_that_it_needs() -> None:
    assert onnx.read(m.onnx_with_external_data("model.data", size=4, offset=64), "1").external == {"model.data": 80}


def test_a_file_cut_anywhere_is_refused() -> None:
    whole = m.onnx_mlp(4, 4, 2)
    graph_ends = len(whole) - len(m.blob(8, m.number(2, 15)))
    for end in range(len(whole)):
        if end == graph_ends:
            continue  # a valid file without opset_import; the runtime refuses it
        assert refused(whole[:end]).reason in {Reason.MODEL_TRUNCATED, Reason.MODEL_NOT_RECOGNISED}
    assert refused(whole[: graph_ends - 10]).reason is Reason.MODEL_TRUNCATED


@pytest.mark.parametrize(
    "data",
    [b"", b"PK\x03\x04" + bytes(100), b"\x80\x02ccollections\n", b"\x89HDF\r\n\x1a\n", b"GIF89a", b"{}", bytes(1000), b"\xff" * 1000],
)
def test_other_files_are_not_recognised(data: bytes) -> None:
    assert refused(data).reason is Reason.MODEL_NOT_RECOGNISED


def test_two_graphs_or_wrong_wire_types_are_refused() -> None:
    assert refused(m.onnx_add() + m.onnx_add()).reason is Reason.MODEL_MALFORMED
    assert refused(m.number(1, 8) + m.number(7, 3)).reason is Reason.MODEL_NOT_RECOGNISED
    assert refused(m.onnx_add() + b"\x0b").reason is Reason.MODEL_MALFORMED


@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=400))
def test_random_bytes_end_in_a_reason(data: bytes) -> None:
    refused(data)


@settings(max_examples=300, deadline=None)
@given(flips=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 7)), min_size=1, max_size=6))
def test_flipped_bits_end_in_a_description_or_a_reason(flips: list[tuple[int, int]]) -> None:
    data = bytearray(m.onnx_mlp(4, 4, 2))
    for place, bit in flips:
        data[place % len(data)] ^= 1 << bit
    try:
        onnx.read(bytes(data), "1")
    except ModelRejected as rejected:
        assert rejected.detail
