"""The text form of a graph: one line a value, exact in both directions.

::

    graph "tiny"
    input %image: fixed<8,1,AP_RND,AP_SAT>[1,8,8]
    parameter %linear.weight: fixed<8,1,AP_RND,AP_SAT>[3,16]
    %pool: float[1,4,4] = max_pool(x=%image, window=2x2 stride 2x2 pad 0,0,0,0 dilation 1x1)
    %flat: float[16] = reshape(x=%pool)
    %linear: float[3] = linear(x=%flat, w=%linear.weight, b=none)
    output %linear

Inputs, parameters, operations and outputs come in this order. A name with characters other than
``A-Z a-z 0-9 _ . / -`` is quoted: ``%"onnx::Conv_1"``. Blank lines and lines that start with ``#``
mean nothing. The operations and their arguments are those of ``ops.py``, read from the dataclasses; a format that
only operations on words have is left out in float.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import get_args, get_type_hints

from espalier.errors import FormatError, GraphError
from espalier.ir.graph import Graph
from espalier.ir.ops import Op
from espalier.ir.types import FLOAT, INDEX, Format, TensorType, Value
from espalier.numerics.fixed import Fixed
from espalier.numerics.window import Window

PLAIN_NAME = r"[A-Za-z0-9_./-]+"
QUOTED = r'"(?:[^"\\\x00-\x1f]|\\(?:["\\/bfnrt]|u[0-9A-Fa-f]{4}))*"'
INTEGER = r"(?:0|-?[1-9][0-9]{0,17})\b"
REAL = r"-?[0-9]{1,20}(?:\.[0-9]{1,20})?(?:e[+-]?[0-9]{1,3})?\b"
#: what an operation has as a field
Argument = Value | Window | Fixed | int | float | None
OPTIONAL_FORMAT = Fixed | None  #: the type of a field that is left out where there is none
SECTIONS = ("an input", "a parameter", "an operation", "an output")  #: in the order of the text


def op_name(kind: type[Op]) -> str:
    """The name of an operation in the text: ``MaxPoolGrad`` is ``max_pool_grad``."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", kind.__name__).lower()


OP_KINDS: dict[str, type[Op]] = {op_name(kind): kind for kind in get_args(Op)}


def dump(graph: Graph) -> str:
    """The text of ``graph``; equal graphs give equal bytes, and :func:`load` gives the graph back.

    Raises GraphError where an operation or output is not a value defined in the graph with that
    very type, because the text could not say so.
    """
    defined = {value.name: value for value in graph.values()}
    for reader in (*((op, value) for op in graph.ops for value in op.inputs),
                   *((None, value) for value in graph.outputs)):
        _check_defined(defined, *reader)
    lines = [f"graph {json.dumps(graph.name)}"]
    lines += [f"input {_definition(value)}" for value in graph.inputs]
    lines += [f"parameter {_definition(value)}" for value in graph.parameters]
    lines += [_operation(op) for op in graph.ops]
    lines += [f"output {_name(value)}" for value in graph.outputs]
    return "\n".join(lines) + "\n"


def _check_defined(defined: Mapping[str, Value], op: Op | None, value: Value) -> None:
    if defined.get(value.name) != value:
        reader = f"operation {op.out}" if op is not None else "graph's output list"
        there = defined.get(value.name)
        raise GraphError(f"The {reader} reads {value}, which the graph defines "
                         f"{'nowhere' if there is None else f'as {there}'}")


def _name(value: Value) -> str:
    return "%" + (value.name if re.fullmatch(PLAIN_NAME, value.name) else json.dumps(value.name))


def _definition(value: Value) -> str:
    return f"{_name(value)}: {value.type}"


def _operation(op: Op) -> str:
    kinds = get_type_hints(type(op))
    found = {field.name: getattr(op, field.name) for field in fields(op) if field.name != "out"}
    arguments = (f"{name}={_argument(argument)}" for name, argument in found.items()
                 if argument is not None or kinds[name] != OPTIONAL_FORMAT)
    return f"{_definition(op.out)} = {op_name(type(op))}({', '.join(arguments)})"


def _argument(value: Argument) -> str:
    match value:
        case None:
            return "none"
        case Value():
            return _name(value)
        case Window(kernel=kernel, stride=stride, pad=pad, dilation=dilation):
            return (f"{kernel[0]}x{kernel[1]} stride {stride[0]}x{stride[1]} pad {','.join(map(str, pad))} "
                    f"dilation {dilation[0]}x{dilation[1]}")
        case Fixed() | int():
            return str(value)
        case float():
            return repr(value)


def load(text: str) -> Graph:
    """The graph that ``text`` describes.

    Names are resolved and must be unique; shapes and formats are not judged (``verify`` does).

    Raises
    ------
    GraphError
        The text is not of this form. Gives the line's number, what was expected and what is there.
    """
    lines = [_Line(number, line) for number, line in enumerate(text.split("\n"), 1)
             if line.strip() and not line.lstrip().startswith("#")]
    if not lines:
        raise GraphError('Line 1: expected graph "name", found the end of the text')
    reader = _Reader(lines[0])
    for line in lines[1:]:
        reader.statement(line)
    return Graph(reader.name, tuple(reader.inputs), tuple(reader.parameters), tuple(reader.ops),
                 tuple(reader.outputs))


class _Line:
    """One line and how far it has been read."""

    def __init__(self, number: int, text: str) -> None:
        self.number = number
        self.text = text
        self.position = 0

    def error(self, sentence: str) -> GraphError:
        return GraphError(f"Line {self.number}: {sentence}")

    def skip(self, pattern: str) -> str | None:
        """Read ``pattern`` past spaces if it is next; otherwise read nothing and return None."""
        found = re.compile(rf"[ \t\r]*({pattern})").match(self.text, self.position)
        if found is None:
            return None
        self.position = found.end()
        return found[1]

    def take(self, pattern: str, expected: str) -> str:
        """Read ``pattern`` past spaces. Raises GraphError when something else is next."""
        found = self.skip(pattern)
        if found is None:
            rest = self.text[self.position:].strip()
            there = "the end of the line" if not rest else repr(rest if len(rest) <= 40 else rest[:40] + "…")
            raise self.error(f"expected {expected}, found {there}")
        return found

    def symbol(self, symbol: str) -> None:
        self.take(re.escape(symbol), repr(symbol))

    def keyword(self, word: str) -> None:
        self.take(rf"{word}\b", repr(word))

    def end(self) -> None:
        self.take(r"\Z", "the end of the line")

    def integer(self) -> int:
        return int(self.take(INTEGER, "a whole number"))

    def real(self) -> float:
        return float(self.take(REAL, "a number"))

    def pair(self) -> tuple[int, int]:
        """Two whole numbers written ``5x3``."""
        first = int(self.take(r"(?:0|-?[1-9][0-9]{0,17})(?=x)", "two whole numbers such as 5x3"))
        self.symbol("x")
        return first, self.integer()

    def value_name(self) -> str:
        name = self.take(f"%(?:{PLAIN_NAME}|{QUOTED})", "a name such as %conv1")[1:]
        return json.loads(name) if name.startswith('"') else name

    def definition(self) -> Value:
        """A name and a type: ``%x: float[3,8,8]``."""
        name = self.value_name()
        self.symbol(":")
        format_ = self.format()
        self.symbol("[")
        shape: list[int] = []
        while self.skip(r"\]") is None:
            if shape:
                self.take(",", "',' or ']'")
            shape.append(self.integer())
        return Value(name, TensorType(tuple(shape), format_))

    def format(self) -> Format:
        text = self.take(r"u?fixed<[A-Za-z0-9_, -]{0,80}>|float\b|index\b",
                         "a format (fixed<W,I,Q,O>, ufixed<W,I,Q,O>, float or index)")
        match text:
            case "float":
                return FLOAT
            case "index":
                return INDEX
            case _:
                try:
                    return Fixed.parse(text)
                except FormatError as error:
                    raise self.error(str(error)) from None

    def fixed(self) -> Fixed:
        """``fixed<8,1,AP_RND,AP_SAT>``."""
        format_ = self.format()
        if not isinstance(format_, Fixed):
            raise self.error(f"expected a fixed-point format, found {format_}")
        return format_

    def window(self) -> Window:
        """``5x5 stride 1x1 pad 0,0,0,0 dilation 1x1``; padding is top, left, bottom, right."""
        kernel = self.pair()
        self.keyword("stride")
        stride = self.pair()
        self.keyword("pad")
        top = self.integer()
        self.symbol(",")
        left = self.integer()
        self.symbol(",")
        bottom = self.integer()
        self.symbol(",")
        pad = (top, left, bottom, self.integer())
        self.keyword("dilation")
        dilation = self.pair()
        try:
            return Window(kernel, stride, pad, dilation)
        except GraphError as error:
            raise self.error(str(error)) from None


class _Reader:
    """The graph as read so far."""

    def __init__(self, first: _Line) -> None:
        first.take(r"graph\b", 'graph "name"')
        self.name: str = json.loads(first.take(QUOTED, "the graph's name in double quotes"))
        first.end()
        self.section = 0
        self.known: dict[str, Value] = {}
        self.inputs: list[Value] = []
        self.parameters: list[Value] = []
        self.ops: list[Op] = []
        self.outputs: list[Value] = []

    def statement(self, line: _Line) -> None:
        """Read one line after the first."""
        keyword = line.skip(r"(?:input|parameter|output)\b")
        match keyword:
            case "input":
                self.enter(0, line)
                self.inputs.append(self.define(line.definition(), line))
            case "parameter":
                self.enter(1, line)
                self.parameters.append(self.define(line.definition(), line))
            case "output":
                self.enter(3, line)
                self.outputs.append(self.reference(line))
            case _:
                line.take(r"(?=%)", "input, parameter, output or an operation such as %y: float[8] = relu(x=%x)")
                self.enter(2, line)
                self.operation(line)
        line.end()

    def enter(self, section: int, line: _Line) -> None:
        """Check that sections come in order."""
        if section < self.section:
            raise line.error(f"expected {' or '.join(SECTIONS[self.section:])}, found {SECTIONS[section]}; inputs, "
                             f"parameters, operations and outputs come in this order")
        self.section = section

    def define(self, value: Value, line: _Line) -> Value:
        if value.name in self.known:
            raise line.error(f"expected a new name, found %{value.name}, which is defined above")
        self.known[value.name] = value
        return value

    def reference(self, line: _Line) -> Value:
        name = line.value_name()
        if name not in self.known:
            raise line.error(f"expected a value defined above, found %{name}")
        return self.known[name]

    def operation(self, line: _Line) -> None:
        """``%y: type = op(field=value, ...)`` with every field of the operation, in order."""
        out = line.definition()
        line.symbol("=")
        name = line.take(r"[A-Za-z_][A-Za-z0-9_]*", "an operation such as conv2d")
        if name not in OP_KINDS:
            raise line.error(f"expected an operation ({', '.join(OP_KINDS)}), found {name!r}")
        kind = OP_KINDS[name]
        hints = get_type_hints(kind)
        arguments: dict[str, Argument] = {}
        line.symbol("(")
        for field in fields(kind):
            if field.name == "out":
                continue
            if hints[field.name] == OPTIONAL_FORMAT and line.skip(rf"(?=,[ \t]*{field.name}\b)") is None:
                continue
            if arguments:
                line.symbol(",")
            line.keyword(field.name)
            line.symbol("=")
            arguments[field.name] = self.readers()[hints[field.name]](line)
        line.symbol(")")
        make: Callable[..., Op] = kind
        self.ops.append(make(out=self.define(out, line), **arguments))

    def readers(self) -> dict[object, Callable[[_Line], Argument]]:
        """How an argument of each type is read."""
        return {Value: self.reference, Value | None: self.optional, Window: _Line.window, int: _Line.integer,
                float: _Line.real, OPTIONAL_FORMAT: _Line.fixed}

    def optional(self, line: _Line) -> Value | None:
        return None if line.skip(r"none\b") else self.reference(line)
