"""Reads TensorFlow graphs (GraphDef, SavedModel) before TensorFlow sees them: operators at every nesting, candidates for nodes.

Functions and attributes are walked with a list of work, never by recursion. Every occurrence of a field is looked at, also of those
that protobuf lets a later one replace. Neither shapes nor weights are checked: the converter's child does that.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from services.packager.errors import ModelRejected, Reason
from services.packager.formats.protowire import BYTES, Buffer, WireError, fields
from services.packager.formats.tensorflow_operators import ALLOWED, CHECKPOINT

MAX_NODES = 200_000
MAX_DEPTH = 16
MAX_FUNCTIONS = 20_000

_MAX_NAME_BYTES = 4_096
_MAX_LISTED = 20
_INPUT_OPERATORS = frozenset({"Placeholder", "PlaceholderWithDefault"})
_NEVER_OUTPUTS = _INPUT_OPERATORS | {"Assert", "Const", "NoOp", "SaveV2"}

Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Graph:
    """What a source has. `inputs` and `outputs` are nodes of the main graph that could be meant: placeholders, and what nobody reads."""

    operators: tuple[str, ...]
    nodes: frozenset[str]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(slots=True)
class _Walk:
    data: Buffer
    allowed: frozenset[str]
    functions: set[str] = field(default_factory=set)
    called: set[str] = field(default_factory=set)
    nodes: dict[str, str] = field(default_factory=dict)
    consumed: set[str] = field(default_factory=set)
    count: int = 0

    def graph(self, span: Span) -> None:
        """Walk a GraphDef: node = 1, library = 2."""
        for number, start, end in self._messages(span):
            if number == 1:
                self._node((start, end), main=True)
            elif number == 2:
                self._library((start, end))

    def _library(self, span: Span) -> None:
        """FunctionDefLibrary: function = 1, gradient = 2 (both of its fields name functions)."""
        for number, start, end in self._messages(span):
            if number == 1:
                self._function((start, end))
            elif number == 2:
                self.called.update(self._text(inner) for _, *inner in self._messages((start, end)))

    def _function(self, span: Span) -> None:
        """FunctionDef: signature = 1 (OpDef, name = 1), node_def = 3, attr = 5."""
        for number, start, end in self._messages(span):
            if number == 1:
                self.functions.update(self._text(inner) for one, *inner in self._messages((start, end)) if one == 1)
            elif number == 3:
                self._node((start, end), main=False)
            elif number == 5:
                self._attributes([((start, end), 0)])
        if len(self.functions) > MAX_FUNCTIONS:
            raise _too_complex(f"more than {MAX_FUNCTIONS:,} functions")

    def _node(self, span: Span, *, main: bool) -> None:
        """NodeDef: name = 1, op = 2, input = 3, attr = 5."""
        self.count += 1
        if self.count > MAX_NODES:
            raise _too_complex(f"more than {MAX_NODES:,} nodes")
        name = operator = ""
        for number, start, end in self._messages(span):
            if number == 1:
                name = self._text((start, end))
            elif number == 2:
                operator = self._text((start, end))
                self.called.add(operator)
            elif number == 3 and main:
                self.consumed.add(self._text((start, end)).lstrip("^").partition(":")[0])
            elif number == 5:
                self._attributes([((start, end), 0)])
        if not operator:
            raise WireError("a node has no operator")
        if main:
            self.nodes[name] = operator

    def _attributes(self, work: list[tuple[Span, int]]) -> None:
        """Collect what attributes name. An entry is key = 1, value = 2; AttrValue: list = 1, func = 10; ListValue: func = 9."""
        while work:
            span, depth = work.pop()
            if depth > MAX_DEPTH:
                raise _too_complex(f"attributes nested over {MAX_DEPTH} deep")
            for number, start, end in self._messages(span):
                if number != 2:
                    continue
                for function in self._functions_of((start, end)):
                    for inner, first, last in self._messages(function):
                        if inner == 1:
                            self.called.add(self._text((first, last)))
                        elif inner == 2:
                            work.append(((first, last), depth + 1))

    def _functions_of(self, value: Span) -> Iterator[Span]:
        for number, start, end in self._messages(value):
            if number == 10:
                yield start, end
            elif number == 1:
                yield from ((first, last) for inner, first, last in self._messages((start, end)) if inner == 9)

    def _messages(self, span: Span) -> Iterator[tuple[int, int, int]]:
        return ((number, a, b) for number, kind, a, b in fields(self.data, *span) if kind == BYTES)

    def _text(self, span: Sequence[int]) -> str:
        start, end = span
        if end - start > _MAX_NAME_BYTES:
            raise WireError("a name is too long")
        try:
            return self.data[start:end].decode()
        except UnicodeDecodeError as error:
            raise WireError("a name is not text") from error

    def judge(self) -> Graph:
        """Check everything that is named anywhere, and sum up."""
        # TensorFlow's own operators have no "_" inside, so a function with one can never stand in for an operator.
        hidden = {name for name in self.functions if "_" not in name[1:]}
        refused = sorted(hidden | (self.called - self.functions - self.allowed))
        if refused:
            raise ModelRejected(
                Reason.OPERATOR_NOT_ALLOWED,
                f"The graph uses what is not on the list of allowed TensorFlow operators: {_listed(refused)}. "
                "Export the part of the graph that computes the prediction, without reading, writing, tables and custom operators.",
            )
        return Graph(
            tuple(sorted(self.called & self.allowed)),
            frozenset(self.nodes),
            tuple(name for name, operator in self.nodes.items() if operator in _INPUT_OPERATORS),
            tuple(name for name, operator in self.nodes.items() if name not in self.consumed and operator not in _NEVER_OUTPUTS),
        )


def read_graphdef(data: Buffer) -> Graph:
    """Read a frozen GraphDef. Raises `ModelRejected`: cut off or no graph, too complex, an operator not on the list at any nesting."""
    walk = _Walk(data, ALLOWED)
    try:
        walk.graph((0, len(data)))
    except WireError as error:
        raise _broken(error) from error
    if not walk.nodes:
        raise _broken(WireError("it has no nodes"))
    return walk.judge()


def read_saved_model(data: Buffer) -> Graph:
    """Read a `saved_model.pb`: every graph in it. Raises `ModelRejected` as `read_graphdef`; checkpoint operators are allowed here."""
    walk = _Walk(data, ALLOWED | CHECKPOINT)
    try:
        for number, kind, start, end in fields(data, 0, len(data)):
            if (number, kind) == (2, BYTES):
                for inner, inner_kind, first, last in fields(data, start, end):
                    if (inner, inner_kind) == (2, BYTES):
                        walk.graph((first, last))
    except WireError as error:
        raise _broken(error) from error
    if not walk.nodes:
        raise _broken(WireError("it has no graph"))
    return walk.judge()


def check_nodes(graph: Graph, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Check the nodes that an owner declared for a GraphDef (`name` or `name:0`).

    Raises:
        ModelRejected: GRAPH_NODES_NEEDED, when there are none or one does not exist; the detail lists what could be meant.
    """
    missing = [name for name in (*inputs, *outputs) if name.partition(":")[0] not in graph.nodes]
    if inputs and outputs and not missing:
        return
    why = f"The graph has no {_listed(missing)}." if missing else "A GraphDef does not say which nodes are its inputs and outputs."
    raise ModelRejected(
        Reason.GRAPH_NODES_NEEDED,
        f"{why} Declare `inputs` and `outputs`. Inputs could be: {_listed(graph.inputs)}; outputs: {_listed(graph.outputs)}.",
    )


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MAX_LISTED} more" if len(names) > _MAX_LISTED else ""
    return (", ".join(f"{name!r:.80}" for name in names[:_MAX_LISTED]) or "none") + more


def _broken(error: WireError) -> ModelRejected:
    if error.cut:
        return ModelRejected(Reason.MODEL_TRUNCATED, "The TensorFlow graph ends in the middle. Upload it again.")
    return ModelRejected(Reason.MODEL_MALFORMED, f"The file is no TensorFlow graph ({error}). Send a binary GraphDef or a SavedModel.")


def _too_complex(why: str) -> ModelRejected:
    return ModelRejected(Reason.MODEL_TOO_COMPLEX, f"The TensorFlow graph has {why}.")
