"""Names formats that are refused because loading them can run code, by their content, and says what to send instead."""

from __future__ import annotations

from services.packager.errors import ModelRejected, Reason
from services.packager.formats.protowire import Buffer

_ONNX_FROM_TORCH = "torch.onnx.export(model, args, 'model.onnx', opset_version=18)"
_SAVED_MODEL = "model.export('saved_model') writes a SavedModel folder; push that"
_FROM_SKLEARN = "skl2onnx.to_onnx(model, sample) writes ONNX; push that"

#: zlib, gzip, bzip2, xz, lz4 of joblib.
_COMPRESSED = (b"\x78\x01", b"\x78\x5e", b"\x78\x9c", b"\x78\xda", b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x04\x22\x4d\x18", b"ZF0x")
#: How far into a file names of archive members are looked for.
_HEAD = 1 << 20


def check_not_refused(data: Buffer) -> None:
    """Raise `ModelRejected` (MODEL_FORMAT_REFUSED) for Keras files, pickles, joblib and TorchScript; anything else passes."""
    head = bytes(data[:_HEAD])
    tail = bytes(data[max(0, len(data) - _HEAD) :])
    found = _name(head, tail)
    if found is not None:
        what, instead = found
        raise ModelRejected(Reason.MODEL_FORMAT_REFUSED, f"This is {what}. Loading it can run code, so it is not accepted. {instead}.")


def _name(head: bytes, tail: bytes) -> tuple[str, str] | None:
    if head.startswith(b"PK\x03\x04"):
        return _archive(tail)
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        return "an HDF5 file (Keras .h5)", _SAVED_MODEL
    if _is_pickle(head, tail):
        return _pickle(head)
    if head.startswith(_COMPRESSED):
        return "a compressed file, as joblib writes", f"Unpack it if it holds a model; from scikit-learn, {_FROM_SKLEARN}"
    return None


def _archive(tail: bytes) -> tuple[str, str] | None:
    # The list of members is at the end of an archive.
    if b"metadata.json" in tail and b"config.json" in tail and b"model.weights.h5" in tail:
        return "a Keras .keras file", _SAVED_MODEL
    if b"constants.pkl" in tail or b"/code/" in tail:
        return "a TorchScript archive", f"Export it: {_ONNX_FROM_TORCH}"
    if b"data.pkl" in tail:
        return "a PyTorch checkpoint (a pickle in an archive)", f"Export the model: {_ONNX_FROM_TORCH}"
    return None


def _pickle(head: bytes) -> tuple[str, str]:
    if any(word in head for word in (b"sklearn", b"joblib", b"numpy_array_wrapper", b"NumpyArrayWrapper")):
        return "a pickle or joblib file of scikit-learn", _FROM_SKLEARN
    if b"torch" in head:
        return "a pickle of PyTorch", f"Export the model: {_ONNX_FROM_TORCH}"
    return "a Python pickle", f"Export the model as ONNX: {_ONNX_FROM_TORCH}, or {_FROM_SKLEARN}"


def _is_pickle(head: bytes, tail: bytes) -> bool:
    """Whether the bytes are a pickle: protocol 2 or later says so at the start, and every pickle ends with STOP."""
    if len(head) > 2 and head[0] == 0x80 and 2 <= head[1] <= 5:
        return True
    # Protocols 0 and 1 begin with a global or a mark.
    return head[:1] in {b"c", b"("} and tail[-1:] == b"." and b"\n" in head[:256]
