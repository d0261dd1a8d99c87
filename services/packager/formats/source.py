"""Says what an uploaded source is and what its ends are called: SavedModel, GraphDef, TFLite or ONNX, by content.

Runs in a child of our own, before any converter sees a byte. What may not be in a source is refused here, so that TensorFlow never
loads a graph with an operator that is not on the list.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from mmap import ACCESS_READ, mmap
from pathlib import Path

from services.packager.domain import Port, Source, Tensor
from services.packager.errors import ModelRejected, Reason
from services.packager.formats import onnx, tensorflow, tflite
from services.packager.formats.protowire import Buffer, WireError
from services.packager.formats.refused import check_not_refused
from services.packager.formats.saved_model import read_signature
from services.packager.formats.tflite_signature import signature_names

SAVED_MODEL_FILE = "saved_model.pb"


def read_source(
    files: Mapping[str, Path],
    names: Mapping[str, str],
    inputs: Sequence[Tensor] | None,
    outputs: Sequence[Tensor] | None,
    version_of: Callable[[str], str],
) -> tuple[str, Source]:
    """Read a source.

    Args:
        files: path in the upload to the place it lies now.
        names: what the owner calls an end (name in the package to name in the source); others keep their own names.
        inputs, outputs: as declared; a GraphDef needs both.
        version_of: tells the version of an engine's distribution here.

    Returns:
        The path of the file that holds the graph, and what is in it.

    Raises:
        ModelRejected: not a source that is accepted, broken, or not what was declared.
    """
    main = _main(files)
    if files[main].stat().st_size == 0:
        raise ModelRejected(Reason.MODEL_TRUNCATED, f"{main} is empty. Upload it again.")
    with _mapped(files[main]) as data:
        if main.endswith(SAVED_MODEL_FILE):
            return main, _saved_model(data, names)
        if tflite.is_tflite(data[:8]):
            found = tflite.read(data, version_of("ai-edge-litert"))
            return main, _named("tflite", found.inputs, found.outputs, names or signature_names(data), found.external)
        check_not_refused(data)
        try:
            found = onnx.read(data, version_of("onnxruntime"))
        except ModelRejected as rejected:
            if rejected.reason is not Reason.MODEL_NOT_RECOGNISED:
                raise
            return main, _graphdef(data, names, inputs, outputs)
        return main, _named("onnx", found.inputs, found.outputs, names, found.external)


def _main(files: Mapping[str, Path]) -> str:
    """Return the file that holds the graph."""
    saved = [path for path in files if path.rpartition("/")[2] == SAVED_MODEL_FILE]
    if saved:
        return min(saved, key=len)
    graphs = [path for path in files if path.endswith((".onnx", ".tflite", ".pb"))]
    candidates = graphs if len(graphs) == 1 else list(files)
    if len(candidates) != 1:
        raise ModelRejected(
            Reason.MODEL_NOT_RECOGNISED,
            f"The source has {len(files)} files, and it is not clear which one is the graph: a SavedModel folder has a {SAVED_MODEL_FILE}; "
            "ONNX with external data has one file that ends in .onnx.",
        )
    return candidates[0]


def _saved_model(data: Buffer, names: Mapping[str, str]) -> Source:
    tensorflow.read_saved_model(data)
    try:
        key, tags, signature = read_signature(data)
    except WireError as error:
        raise ModelRejected(Reason.MODEL_MALFORMED, f"The SavedModel's signatures cannot be read: {error}. Export it again.") from error
    source = _named("saved-model", tuple(signature.inputs), tuple(signature.outputs), names, {})
    return Source(source.format, source.inputs, source.outputs, {}, key, tags)


def _graphdef(data: Buffer, names: Mapping[str, str], inputs: Sequence[Tensor] | None, outputs: Sequence[Tensor] | None) -> Source:
    try:
        graph = tensorflow.read_graphdef(data)
    except ModelRejected as rejected:
        if rejected.reason is Reason.OPERATOR_NOT_ALLOWED:
            raise
        raise onnx.not_recognised(f"nor a TensorFlow graph: {rejected.detail}") from rejected
    sides = [[(names.get(tensor.name, tensor.name), tensor) for tensor in side or ()] for side in (inputs, outputs)]
    tensorflow.check_nodes(graph, [node for node, _ in sides[0]], [node for node, _ in sides[1]])
    ports = [tuple(Port(node, tensor) for node, tensor in side) for side in sides]
    return Source("graphdef", ports[0], ports[1], {})


def _named(
    form: str, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...], names: Mapping[str, str], external: Mapping[str, int]
) -> Source:
    """Put the ends under the owner's names. `names` that belong to no end are a mistake."""
    called = {theirs: ours for ours, theirs in names.items()}
    unknown = sorted(called.keys() - {tensor.name for tensor in (*inputs, *outputs)})
    if unknown:
        have = ", ".join(f'"{tensor.name}"' for tensor in (*inputs, *outputs))
        raise ModelRejected(Reason.GRAPH_NODES_NEEDED, f"The source has no input or output called {', '.join(unknown)}. It has: {have}.")
    sides = [
        tuple(Port(tensor.name, Tensor(called.get(tensor.name, tensor.name), tensor.dtype, tensor.shape)) for tensor in side)
        for side in (inputs, outputs)
    ]
    ours = [port.tensor.name for side in sides for port in side]
    if len(set(ours)) != len(ours):
        raise ModelRejected(
            Reason.DECLARATION_INVALID, "Two ends of the source would have the same name. Name them apart in `source.names`."
        )
    return Source(form, sides[0], sides[1], dict(external))


@contextmanager
def _mapped(path: Path) -> Iterator[mmap]:
    with path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as data:
        yield data
