"""The order of the backward pass, and how the gradient of a value with several readers is summed."""

from __future__ import annotations

from dataclasses import dataclass

from espalier.compiler.legalise import Layer, needed_gradients
from espalier.errors import UnsupportedError
from espalier.program.words import Opcode


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """BP or WU of one layer; of a batch norm also FP, of the part of its input's gradient that its input makes.

    ``layer`` is its number. BP writes the gradient of what the layer reads; ``add`` is the stored value whose gradient
    is added: that one, where an earlier step has written a part of it, or one of the same shape whose gradient passes.
    """

    opcode: Opcode
    layer: int
    add: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Backward:
    """The steps in order, and whose gradient each stored value shares: the gradient of a sum is that of both its parts.

    ``complete`` has for each stored value with a gradient the number of the step after which that is whole; -1: the
    loss.
    """

    steps: tuple[Step, ...]
    shared: dict[str, str]
    complete: dict[str, int]

    def owner(self, value: str) -> str:
        """The stored value whose gradient lies where that of ``value`` does."""
        while value in self.shared:
            value = self.shared[value]
        return value


def adds(layers: tuple[Layer, ...]) -> bool:
    """Whether something stored is added to a result: layers are added up, or what several readers send back is."""
    return any(layer.addend for layer in layers) or any(step.add for step in backward(layers).steps)


def backward(layers: tuple[Layer, ...]) -> Backward:
    """Plan the backward pass: for each layer from the last to the first BP, if anything needs it, and WU, if it trains.

    BP first, since WU changes the weights; of a batch norm WU, since BP needs what that sums up. Raises
    UnsupportedError for a gradient that no step could sum.
    """
    steps: list[Step] = []
    shared: dict[str, str] = {}
    complete, needed = {layers[-1].out: -1}, needed_gradients(layers)
    for k in reversed(range(len(layers))):
        layer = layers[k]
        if layer.out in shared and layer.out not in complete:
            if layer.rectify or layer.pool:
                raise UnsupportedError(f"Layer {layer.name!r} has a rectifier or a pool before a sum, and nothing else "
                                       f"reads it: this engine has no step that makes its gradient")
            complete[layer.out] = complete[shared[layer.out]]
        if layer.addend in needed:
            assert layer.addend is not None, "no value is None"
            if layer.addend in complete or layer.addend in shared:
                raise UnsupportedError(f"The gradient of {layer.addend!r} is a sum whose parts this engine has no step "
                                       f"to add: it may go into one sum only, which comes after what else reads it")
            shared[layer.addend] = layer.out
        if layer.norm is not None:
            steps.append(Step(opcode=Opcode.UPDATE, layer=k))
            if layer.input_gradient_format is not None:
                complete[layer.x] = len(steps) + 1
                steps += [Step(opcode=Opcode.FORWARD, layer=k), Step(opcode=Opcode.BACKWARD, layer=k, add=layer.x)]
            continue
        if layer.input_gradient_format is not None:
            add = shared.pop(layer.x, layer.x if layer.x in complete else None)
            complete[layer.x] = len(steps)
            steps.append(Step(opcode=Opcode.BACKWARD, layer=k, add=add))
        if layer.weight_gradient_format is not None:
            steps.append(Step(opcode=Opcode.UPDATE, layer=k))
    return Backward(steps=tuple(steps), shared=shared, complete=complete)
