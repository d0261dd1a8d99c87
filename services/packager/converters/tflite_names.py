"""Renames the inputs and outputs of a TFLite file. The device finds them by their tensors' names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tensorflow.lite.tools import flatbuffer_utils


def rename_tflite(
    data: bytes, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]], names: Mapping[str, str] | None = None
) -> bytes:
    """Give the ends their declared names: by their old names in `names`, else by their order.

    Raises `ValueError` when there are more ends than names, or an end does not exist.
    """
    model = flatbuffer_utils.convert_bytearray_to_object(data)
    graph = model.subgraphs[0]
    for indexes, ports in ((graph.inputs, inputs), (graph.outputs, outputs)):
        ends = [graph.tensors[index] for index in indexes]
        if len(ends) != len(ports):
            raise ValueError(f"the TFLite file has {len(ends)} ends where {len(ports)} were declared")
        for end, port in zip(ends, ports, strict=True):
            end.name = (port["name"] if names is None else names[end.name.decode()]).encode()
    # Signatures name the same ends in other ways; the device reads the tensors.
    model.signatureDefs = []
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))
