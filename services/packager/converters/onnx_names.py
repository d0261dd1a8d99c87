"""Renames values of an ONNX model, wherever they are mentioned. Needs no import of `onnx`: it changes the messages that it is given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def rename_onnx(model: Any, names: Mapping[str, str]) -> None:
    """Rename values of the main graph, old name to new; inner values that have one of the new names make room.

    Raises `ValueError` when an end does not exist, or one tensor would have two names.
    """
    graph = model.graph
    ends = [value.name for value in (*graph.input, *graph.output)]
    missing = [old for old in names if old not in ends]
    if missing:
        raise ValueError(f"the model has no input or output called {', '.join(missing)}")
    taken = {new for old, new in names.items() if old != new}
    room = {name: f"{name}__inner" for name in taken if name not in names}
    _rename(graph, {**room, **names})


def _rename(graph: Any, names: Mapping[str, str]) -> None:
    for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        value.name = names.get(value.name, value.name)
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
        for attribute in node.attribute:
            # A graph inside may use values of this one.
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                _rename(inner, names)
