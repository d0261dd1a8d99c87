"""The reader of TensorFlow graphs: an operator that is not allowed is found wherever it hides, before TensorFlow sees the file."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.packager.errors import ModelRejected, Reason
from services.packager.formats import tensorflow as tf

FORBIDDEN = [
    "ReadFile",
    "WriteFile",
    "MatchingFiles",
    "PyFunc",
    "EagerPyFunc",
    "PyFuncStateless",
    "Save",
    "SaveSlices",
    "Restore",
    "RestoreSlice",
    "PrintV2",
    "Print",
    "LookupTableImportV2",
    "InitializeTableFromTextFileV2",
    "HashTableV2",
    "TextLineReaderV2",
    "WholeFileReaderV2",
    "TFRecordReaderV2",
    "TextLineDataset",
    "TFRecordDatasetV2",
    "GeneratorDataset",
    "IteratorGetNext",
    "RpcCall",
    "DebugIdentityV2",
    "RemoteFusedGraphExecute",
    "TRTEngineOp",
    "XlaLaunch",
    "_Recv",
    "CollectiveReduceV2",
    "Unheard",
]


def part(number: int, body: bytes | str) -> bytes:
    raw = body.encode() if isinstance(body, str) else body
    size, length = b"", len(raw)
    while length > 0x7F:
        size, length = size + bytes([length & 0x7F | 0x80]), length >> 7
    return bytes([number << 3 | 2]) + size + bytes([length]) + raw


def node(name: str, operator: str, *inputs: str, attrs: bytes = b"") -> bytes:
    return part(1, name) + part(2, operator) + b"".join(part(3, one) for one in inputs) + attrs


def attr(value: bytes) -> bytes:
    return part(5, part(1, "f") + part(2, value))


def func(name: str, nested: bytes = b"") -> bytes:
    return part(1, name) + (part(2, part(1, "g") + part(2, nested)) if nested else b"")


def function(name: str, *nodes: bytes) -> bytes:
    return part(2, part(1, part(1, part(1, name)) + b"".join(part(3, one) for one in nodes)))


BASE = part(1, node("x", "Placeholder")) + part(1, node("y", "Relu", "x:0"))

PLACES: dict[str, Callable[[str], bytes]] = {
    "main graph": lambda bad: part(1, node("z", bad, "y")),
    "first of two operators": lambda bad: part(1, part(2, bad) + node("z", "Relu", "y")),
    "function": lambda bad: function("__inference_1", node("z", bad)),
    "unused function after a good one": lambda bad: function("a_1", node("z", "Relu")) + function("b_1", node("z", bad)),
    "attribute": lambda bad: part(1, node("z", "PartitionedCall", attrs=attr(part(10, func(bad))))),
    "list of functions": lambda bad: part(1, node("z", "Case", attrs=attr(part(1, part(9, func(bad)))))),
    "attribute of an attribute": lambda bad: part(1, node("z", "If", attrs=attr(part(10, func("Relu", part(10, func(bad))))))),
    "list in an attribute": lambda bad: part(1, node("z", "If", attrs=attr(part(10, func("Relu", part(1, part(9, func(bad)))))))),
    "attribute inside a function": lambda bad: function("a_1", node("z", "While", attrs=attr(part(10, func(bad))))),
    "attribute of a function": lambda bad: part(2, part(1, part(1, part(1, "a_1")) + attr(part(10, func(bad))))),
    "gradient": lambda bad: part(2, part(2, part(1, "Relu") + part(2, bad))),
    "name of a function": lambda bad: function(bad, node("z", "Relu")) + part(1, node("z", bad)),
}


def saved_model(graph: bytes) -> bytes:
    return part(2, part(2, BASE)) + part(2, part(2, graph))


def refused(read: Callable[[bytes], tf.Graph], data: bytes) -> ModelRejected:
    with pytest.raises(ModelRejected) as caught:
        read(data)
    return caught.value


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("bad", FORBIDDEN)
def test_a_forbidden_operator_is_found_at_every_nesting(place: str, bad: str) -> None:
    graph = BASE + PLACES[place](bad)
    for read, data in ((tf.read_graphdef, graph), (tf.read_saved_model, saved_model(graph))):
        error = refused(read, data)
        assert error.reason is Reason.OPERATOR_NOT_ALLOWED
        assert bad in error.detail


def test_allowed_operators_pass_in_all_places() -> None:
    for name, place in PLACES.items():
        if name != "name of a function":
            assert "Tanh" in tf.read_graphdef(BASE + place("Tanh")).operators


def test_checkpoint_operators_belong_to_saved_models_only() -> None:
    graph = BASE + part(1, node("save", "RestoreV2"))
    assert "RestoreV2" in tf.read_saved_model(part(2, part(2, graph))).operators
    assert refused(tf.read_graphdef, graph).reason is Reason.OPERATOR_NOT_ALLOWED


def test_a_graph_without_declared_nodes_is_told_what_could_be_meant() -> None:
    graph = tf.read_graphdef(BASE)
    assert (graph.inputs, graph.outputs) == (("x",), ("y",))
    tf.check_nodes(graph, ["x:0"], ["y"])
    for inputs, outputs in (([], []), (["x"], ["nowhere"])):
        with pytest.raises(ModelRejected, match="Inputs could be: 'x'; outputs: 'y'") as caught:
            tf.check_nodes(graph, inputs, outputs)
        assert caught.value.reason is Reason.GRAPH_NODES_NEEDED


def test_deep_nesting_is_refused() -> None:
    value = part(10, func("Relu"))
    for _ in range(tf.MAX_DEPTH + 1):
        value = part(10, func("Relu", value))
    assert refused(tf.read_graphdef, BASE + part(1, node("z", "If", attrs=attr(value)))).reason is Reason.MODEL_TOO_COMPLEX


@given(st.binary(max_size=64), st.integers(0, len(BASE)))
@settings(max_examples=200)
def test_any_bytes_are_a_graph_or_a_refusal(noise: bytes, at: int) -> None:
    for read in (tf.read_graphdef, tf.read_saved_model):
        try:
            read(BASE[:at] + noise)
        except ModelRejected as error:
            assert error.detail
