"""A bounded reader of FlatBuffers: tables, vectors and strings, every offset checked before it is followed.

It knows no schema; fields are named by their index in the table. Source: <https://flatbuffers.dev/internals/>.
"""

from __future__ import annotations

from dataclasses import dataclass
from mmap import mmap
from struct import Struct

Buffer = bytes | mmap

_FORMATS = {name: Struct("<" + code) for name, code in {"u8": "B", "i8": "b", "u16": "H", "i32": "i", "u32": "I", "u64": "Q"}.items()}

#: Elements that may be visited in all: shared vectors could otherwise make a small file a long walk.
MAX_VISITED = 20_000_000


class FlatError(Exception):
    """The bytes are not a FlatBuffer. `cut` tells that an offset points behind the end of the file."""

    def __init__(self, detail: str, *, cut: bool = False) -> None:
        super().__init__(detail)
        self.cut = cut


class Flat:
    """A FlatBuffer file."""

    def __init__(self, data: Buffer) -> None:
        self.data = data
        self.size = len(data)
        self.visited = 0

    def root(self) -> Table:
        """Return the root table. Raises `FlatError`."""
        return self.table(self.offset(0))

    def number(self, kind: str, position: int) -> int:
        """Read one little-endian number. Raises `FlatError` beyond the end."""
        form = _FORMATS[kind]
        if position < 0 or position + form.size > self.size:
            raise FlatError("an offset points behind the end", cut=True)
        return int(form.unpack_from(self.data, position)[0])

    def offset(self, position: int) -> int:
        """Follow the forward offset stored at `position`."""
        target = position + self.number("u32", position)
        if target == position or target >= self.size:
            raise FlatError("an offset points behind the end", cut=target >= self.size)
        return target

    def table(self, position: int) -> Table:
        """Check the table at `position` and its vtable."""
        vtable = position - self.number("i32", position)
        if vtable < 0:
            raise FlatError("a table has no field list")
        vtable_size = self.number("u16", vtable)
        table_size = self.number("u16", vtable + 2)
        if vtable_size < 4 or vtable_size % 2 or vtable + vtable_size > self.size or table_size < 4:
            raise FlatError("a table has a broken field list")
        if position + table_size > self.size:
            raise FlatError("a table reaches over the end", cut=True)
        return Table(self, position, vtable, vtable_size, table_size)

    def vector(self, position: int, width: int) -> tuple[int, int]:
        """Check the vector at `position`, elements of `width` bytes. Return (position of the first element, count)."""
        count = self.number("u32", position)
        if count * width > self.size - position - 4:
            raise FlatError("a list reaches over the end", cut=True)
        return position + 4, count

    def visit(self, count: int) -> None:
        """Count `count` elements as visited. Raises `FlatError` over the cap."""
        self.visited += count
        if self.visited > MAX_VISITED:
            raise FlatError("the lists of the file add up to too many elements")


@dataclass(frozen=True, slots=True)
class Table:
    """A checked table; fields are asked for by index."""

    flat: Flat
    position: int
    vtable: int
    vtable_size: int
    table_size: int

    def number(self, index: int, kind: str, default: int = 0) -> int:
        """Return a scalar field, `default` when it is absent."""
        place = self._place(index, _FORMATS[kind].size)
        return default if place is None else self.flat.number(kind, place)

    def table(self, index: int) -> Table | None:
        """Return a table field; None when it is absent."""
        place = self._place(index, 4)
        return None if place is None else self.flat.table(self.flat.offset(place))

    def tables(self, index: int) -> list[Table]:
        """Return a list of tables; empty when it is absent."""
        start, count = self.vector(index, 4)
        self.flat.visit(count)
        return [self.flat.table(self.flat.offset(start + 4 * i)) for i in range(count)]

    def integers(self, index: int) -> tuple[int, ...] | None:
        """Return a list of int32; None when it is absent."""
        if self._place(index, 4) is None:
            return None
        start, count = self.vector(index, 4)
        self.flat.visit(count)
        return Struct(f"<{count}i").unpack_from(self.flat.data, start)

    def raw(self, index: int, most: int) -> bytes:
        """Return a string or list of bytes, at most `most` of them; empty when it is absent."""
        start, count = self.vector(index, 1)
        if count > most:
            raise FlatError("a text is far too long")
        return bytes(self.flat.data[start : start + count])

    def vector(self, index: int, width: int) -> tuple[int, int]:
        """Return (position, count) of a list with elements of `width` bytes; (0, 0) when it is absent."""
        place = self._place(index, 4)
        return (0, 0) if place is None else self.flat.vector(self.flat.offset(place), width)

    def has(self, index: int) -> bool:
        """Whether the field is there."""
        return self._place(index, 1) is not None

    def _place(self, index: int, width: int) -> int | None:
        slot = 4 + 2 * index
        if slot + 2 > self.vtable_size:
            return None
        offset = self.flat.number("u16", self.vtable + slot)
        if offset == 0:
            return None
        if offset < 4 or offset + width > self.table_size:
            raise FlatError("a field lies outside its table")
        return self.position + offset
