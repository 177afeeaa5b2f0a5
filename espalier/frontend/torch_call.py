"""One ``aten`` call of an exported module: its operator, arguments and windows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch.fx import Node

from espalier.frontend import supported
from espalier.frontend.builder import Site
from espalier.numerics.window import Window

Argument = Node | str | float | Sequence[int] | None  #: what the operators of the table take (bool, int are floats)


@dataclass(frozen=True, slots=True)
class Call:
    """One ``aten`` call: its site, operator, arguments by name (defaults filled in) and the shape of its result."""

    site: Site
    operator: str
    arguments: dict[str, Argument]
    result_shape: tuple[int, ...]

    def __getitem__(self, name: str) -> Argument:
        return self.arguments[name]

    def numbers(self, name: str) -> tuple[int, ...]:
        """An argument of one or several whole numbers; empty where it is None."""
        found = self.arguments[name]
        if found is None:
            return ()
        if isinstance(found, int):
            return (found,)
        assert isinstance(found, Sequence), (self.site.label, name, found)
        return tuple(int(number) for number in found)

    def pair(self, name: str) -> tuple[int, int]:
        """A (y, x) argument; torch writes one number for both, too."""
        numbers = self.numbers(name)
        return numbers[0], numbers[-1]

    def number(self, name: str, absent: float) -> float:
        """An argument of one number; ``absent`` where it is None."""
        found = self.arguments[name]
        assert found is None or isinstance(found, int | float), (self.site.label, name, found)
        return absent if found is None else float(found)

    def node(self, name: str) -> Node | None:
        """An argument that is a tensor, as the fx node that computes it; None where it is not."""
        found = self.arguments[name]
        return found if isinstance(found, Node) else None


def call_of(node: Node) -> Call:
    """The call of an fx node."""
    target = node.target
    site = site_of(node)
    if not isinstance(target, torch._ops.OpOverload):
        raise supported.unsupported(site.label, getattr(target, "__name__", str(target)))
    arguments: dict[str, Argument] = {}
    for position, argument in enumerate(target._schema.arguments):
        given = node.args[position] if position < len(node.args) else argument.default_value
        arguments[argument.name] = cast(Argument, node.kwargs.get(argument.name, given))
    value = node.meta["val"]
    shape = tuple(int(size) for size in value.shape) if isinstance(value, torch.Tensor) else ()
    return Call(site, str(target).removeprefix("aten."), arguments, shape)


def site_of(node: Node) -> Site:
    """A torch.nn layer gives its path as name; a function gives the path it is called in, and its own name."""
    stack = list((node.meta.get("nn_module_stack") or {"": ("", "")}).values())
    path, kind = stack[-1]
    kind = kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"
    own = path if path and kind.startswith("torch.nn.modules.") else ".".join(filter(None, (path, node.name)))
    return Site(own, f"Layer {own!r} ({node.target})")


def conv_window(call: Call, kernel: Sequence[int]) -> Window:
    """The window of a convolution with a kernel of (ky, kx); torch may write its padding as a word."""
    stride, dilation = call.pair("stride"), call.pair("dilation")
    match call["padding"]:
        case "valid":
            pad = (0, 0, 0, 0)
        case "same":
            total = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
            pad = (total[0] // 2, total[1] // 2, total[0] - total[0] // 2, total[1] - total[1] // 2)
        case _:
            y, x = call.pair("padding")
            pad = (y, x, y, x)
    return Window((kernel[0], kernel[1]), stride, pad, dilation)


def pool_window(call: Call) -> Window:
    """The window of a pooling call; torch's empty stride is the kernel."""
    kernel = call.pair("kernel_size")
    y, x = call.pair("padding")
    stride = call.pair("stride") if call["stride"] else kernel
    return Window(kernel, stride, (y, x, y, x), call.pair("dilation") if "dilation" in call.arguments else (1, 1))
