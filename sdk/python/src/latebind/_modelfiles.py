"""What model files say of themselves: names of inputs and outputs, metadata, files that belong to them. Read on the user's machine.

Only what a declaration can use is read, over a mapped file, with a bound on everything that is kept; weights are stepped over. Whether a
model can be used is the server's question. Field numbers: onnx/onnx.proto; TFLite's schema.fbs and metadata_schema.fbs (TensorFlow Lite
metadata: a FlatBuffer in the buffer TFLITE_METADATA, associated files as members of a ZIP appended to the model).
"""

from __future__ import annotations

import mmap
import struct
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

MAX_TEXT = 64 << 10
MAX_ENTRIES = 256
MAX_DEPTH = 16
MAX_FIELDS = 20_000_000
MAX_ASSOCIATED_BYTES = 16 << 20


class Unreadable(Exception):
    """The file is not what its name says, or makes no sense."""


@dataclass(slots=True)
class ModelFacts:
    """What was found. `data` are the names of files with external tensors; `associated` files that were packed into the model."""

    description: str = ""
    metadata: dict[str, str] = field(default_factory=dict)
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    data: list[str] = field(default_factory=list)
    associated: dict[str, bytes] = field(default_factory=dict)


def read_model(path: Path) -> ModelFacts:
    """The facts of an ONNX or TFLite file, by its ending. Raises Unreadable, OSError."""
    with path.open("rb") as file:
        try:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError as error:
            raise Unreadable(f"{path.name} is empty") from error
        with mapped:
            try:
                return _read_tflite(mapped, path) if path.suffix == ".tflite" else _Onnx(mapped).facts
            except (struct.error, IndexError, OverflowError) as error:
                raise Unreadable(f"{path.name} is damaged or cut off") from error


class _Onnx:
    """Walks over the wire format. An initializer is an input of old models too, so its name is taken out of the inputs."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self._left = MAX_FIELDS
        self.facts = ModelFacts()
        initializers: set[str] = set()
        for number, start, end in self._fields(0, len(data)):
            if number == 6:
                self.facts.description = self._text(start, end)
            elif number == 14 and len(self.facts.metadata) < MAX_ENTRIES:
                entry = dict(self._entry(start, end))
                self.facts.metadata[entry.get(1, "")] = entry.get(2, "")
            elif number == 7:
                for inner, a, b in self._fields(start, end):
                    if inner in {11, 12} and len(self.facts.inputs) + len(self.facts.outputs) < 4 * MAX_ENTRIES:
                        (self.facts.inputs if inner == 11 else self.facts.outputs).append(dict(self._entry(a, b)).get(1, ""))
                    elif inner == 5:
                        initializers.add(dict(self._entry(a, b, wanted=frozenset({8}))).get(8, ""))
                self._graph(start, end, 0)
        if not self.facts.outputs:
            raise Unreadable("this is no ONNX model: it has no graph with outputs")
        self.facts.inputs = [name for name in self.facts.inputs if name not in initializers]

    def _graph(self, start: int, end: int, depth: int) -> None:
        """Gather the external files of initializers, and of constants in nodes at any depth."""
        if depth > MAX_DEPTH:
            raise Unreadable("its graphs are nested too deeply")
        for number, a, b in self._fields(start, end):
            if number == 5:
                self._tensor(a, b)
            elif number == 1:
                for inner, c, d in self._fields(a, b):
                    if inner == 5:
                        self._attribute(c, d, depth)

    def _attribute(self, start: int, end: int, depth: int) -> None:
        for number, a, b in self._fields(start, end):
            if number in {5, 10}:
                self._tensor(a, b)
            elif number in {6, 11}:
                self._graph(a, b, depth + 1)

    def _tensor(self, start: int, end: int) -> None:
        for number, a, b in self._fields(start, end):
            if number == 13:
                entry = dict(self._entry(a, b))
                name = entry.get(2, "")
                if entry.get(1) == "location" and name not in self.facts.data and len(self.facts.data) < MAX_ENTRIES:
                    self.facts.data.append(name)

    def _entry(self, start: int, end: int, wanted: frozenset[int] = frozenset({1, 2})) -> Iterator[tuple[int, str]]:
        """The texts of a small message, by field number."""
        for number, a, b in self._fields(start, end):
            if number in wanted:
                yield number, self._text(a, b)

    def _text(self, start: int, end: int) -> str:
        return bytes(self._data[start : min(end, start + MAX_TEXT)]).decode("utf-8", "replace")

    def _fields(self, start: int, end: int) -> Iterator[tuple[int, int, int]]:
        """(number, start, end) of each field that has a length; numbers are stepped over."""
        position = start
        while position < end:
            self._left -= 1
            if self._left < 0:
                raise Unreadable("it has far too many parts")
            key, position = self._varint(position, end)
            kind = key & 7
            if kind == 0:
                _, position = self._varint(position, end)
                continue
            size = {1: 8, 5: 4}.get(kind)
            if kind == 2:
                size, position = self._varint(position, end)
                if position + size <= end:
                    yield key >> 3, position, position + size
            if size is None or position + size > end:
                raise Unreadable("it is damaged or cut off")
            position += size

    def _varint(self, position: int, end: int) -> tuple[int, int]:
        value = 0
        for shift in range(0, 70, 7):
            if position >= end:
                break
            byte = self._data[position]
            position += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, position
        raise Unreadable("it is damaged or cut off")


def _read_tflite(data: mmap.mmap, path: Path) -> ModelFacts:
    if data[4:8] != b"TFL3":
        raise Unreadable("this is no TFLite model")
    model = _Table.root(data)
    facts = ModelFacts(description=model.text(3))
    graphs = model.tables(2)
    if not graphs:
        raise Unreadable("this is no TFLite model: it has no graph")
    tensors = graphs[0].tables(0)
    for field_number, names in ((1, facts.inputs), (2, facts.outputs)):
        names += [tensors[index].text(3) for index in graphs[0].integers(field_number) if 0 <= index < len(tensors)]
    buffers = model.tables(4)
    for entry in model.tables(6):
        index = entry.number(1)
        if entry.text(0) == "TFLITE_METADATA" and index < len(buffers):
            _read_metadata(buffers[index].raw(0), facts)
    if zipfile.is_zipfile(path):
        _read_associated(path, facts)
    return facts


def _read_metadata(data: bytes, facts: ModelFacts) -> None:
    """`ModelMetadata`: name, description, version, …, author, license."""
    if data[4:8] != b"M001":
        return
    metadata = _Table.root(data)
    facts.description = metadata.text(1) or facts.description
    for number, name in ((0, "name"), (2, "version"), (4, "author"), (5, "license")):
        if text := metadata.text(number):
            facts.metadata[name] = text


def _read_associated(path: Path, facts: ModelFacts) -> None:
    """The files of the appended ZIP: plain names only, each and all of them bounded by what comes out."""
    left = MAX_ASSOCIATED_BYTES
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist()[:MAX_ENTRIES]:
                if member.is_dir() or not is_plain(member.filename) or member.filename in facts.associated:
                    continue
                with archive.open(member) as opened:
                    content = opened.read(left + 1)
                left -= len(content)
                if left < 0:
                    raise Unreadable(f"the files inside of {path.name} are larger than {MAX_ASSOCIATED_BYTES} bytes")
                facts.associated[member.filename] = content
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise Unreadable(f"the files inside of {path.name} cannot be read: {error}") from error


def is_plain(name: str) -> bool:
    """Whether a name is one file name, the same on every system: letters, digits and `._+-`, no dot first or last."""
    allowed = all(char.isascii() and (char.isalnum() or char in "._+-") for char in name)
    return 0 < len(name) <= 128 and allowed and name[0] != "." and name[-1] != "."


class _Table:
    """A FlatBuffer table; every offset is checked against the bytes that are there."""

    def __init__(self, data: mmap.mmap | bytes, position: int) -> None:
        self._data, self._position = data, position
        self._vtable = position - self._read("<i", position)
        self._slots = (self._read("<H", self._vtable) - 4) // 2

    @classmethod
    def root(cls, data: mmap.mmap | bytes) -> _Table:
        """The first table."""
        (offset,) = struct.unpack_from("<I", data, 0)
        return cls(data, offset)

    def number(self, index: int) -> int:
        """An unsigned 32-bit field; 0 when it is absent."""
        place = self._place(index)
        return 0 if place is None else self._read("<I", place)

    def raw(self, index: int) -> bytes:
        """A string or a list of bytes, at most 1 MiB of it; empty when it is absent."""
        start, count = self._vector(index, 1)
        return bytes(self._data[start : start + min(count, 1 << 20)])

    def text(self, index: int) -> str:
        """A string."""
        return self.raw(index)[:MAX_TEXT].decode("utf-8", "replace")

    def integers(self, index: int) -> list[int]:
        """A list of int32, at most 256."""
        start, count = self._vector(index, 4)
        return [self._read("<i", start + 4 * at) for at in range(min(count, MAX_ENTRIES))]

    def tables(self, index: int) -> list[_Table]:
        """A list of tables, at most a million."""
        start, count = self._vector(index, 4)
        if count > 1_000_000:
            raise Unreadable("it has far too many parts")
        places = [start + 4 * at for at in range(count)]
        return [_Table(self._data, place + self._read("<I", place)) for place in places]

    def _vector(self, index: int, width: int) -> tuple[int, int]:
        place = self._place(index)
        if place is None:
            return 0, 0
        start = place + self._read("<I", place)
        count = self._read("<I", start)
        if start + 4 + count * width > len(self._data):
            raise Unreadable("it is damaged or cut off")
        return start + 4, count

    def _place(self, index: int) -> int | None:
        if index >= self._slots:
            return None
        offset = self._read("<H", self._vtable + 4 + 2 * index)
        return self._position + offset if offset else None

    def _read(self, form: str, place: int) -> int:
        if place < 0:
            raise Unreadable("it is damaged or cut off")
        value: int = struct.unpack_from(form, self._data, place)[0]
        return value
