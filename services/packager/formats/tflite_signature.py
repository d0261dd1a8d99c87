"""Reads what a TFLite file's signature calls its inputs and outputs, so that a package need not show names of the converter."""

from __future__ import annotations

from services.packager.formats.flatbuffer import Buffer, Flat


def signature_names(data: Buffer) -> dict[str, str]:
    """Return name in the signature to name of the tensor, when one signature names every end of the main graph; else nothing.

    `data` has passed `tflite.read`. Model: subgraphs = 2, signature_defs = 7; SignatureDef: inputs = 0, outputs = 1, subgraph_index = 4;
    TensorMap: name = 0, tensor_index = 1.
    """
    model = Flat(data).root()
    graph = model.tables(2)[0]
    tensors = graph.tables(0)
    ends = {*(graph.integers(1) or ()), *(graph.integers(2) or ())}
    signatures = [one for one in model.tables(7) if one.number(4, "u32") == 0]
    if len(signatures) != 1:
        return {}
    names: dict[str, str] = {}
    for entry in (*signatures[0].tables(0), *signatures[0].tables(1)):
        index = entry.number(1, "u32")
        name = entry.raw(0, 1024).decode("utf-8", "replace")
        if index not in ends or not name.isprintable() or name in names:
            return {}
        names[name] = tensors[index].raw(3, 4096).decode("utf-8", "replace")
    return names if len(names) == len(ends) else {}
