"""Does a network fit a machine? Every limit by name, with the numbers."""

from __future__ import annotations

from collections.abc import Mapping

from espalier.arch.machine import Machine
from espalier.compiler.backward import adds
from espalier.compiler.legalise import Layer, Loss
from espalier.compiler.lists import LayerBlocks
from espalier.compiler.panels import LayerPanels, Piece
from espalier.compiler.place import Memory, phases, table_slots
from espalier.errors import FitError
from espalier.numerics.fixed import Fixed
from espalier.numerics.scalar import SUM_BITS

NO_PANELS: Mapping[int, LayerPanels] = {}


def required_depths(layers: tuple[Layer, ...], blocks: tuple[LayerBlocks, ...], memory: Memory, rows: int,
                    panels: Mapping[int, LayerPanels] = NO_PANELS) -> dict[str, int]:
    """The depth of each memory that a network needs on a machine with ``rows``, or of each processing element's.

    ``panels`` has, by their numbers, the layers whose weights lie in external memory. Where activations are spilled
    there is room for the commands that spill all: with more room on chip others are, and can be more.
    """
    elements = blocks[0].elements
    entries = max(sum(_entries(item, element) for item in blocks) for element in range(elements))
    spills = bool(memory.spilled)
    commands, table = 3 + len(layers) * 2 + spills * (len(layers) + 3), 0
    for k, layer in enumerate(layers):
        forward, backward = table_slots(layer, rows, elements)
        table += forward + 1
        if makes_own(layer, elements):
            table += -(-blocks[k].out_blocks // elements) * (layer.weight_shape[2] * layer.weight_shape[3] + 1) + 1
        commands += layer.trained
        if layer.input_gradient_format is not None:
            table += backward + len(phases(layer))
            commands += len(phases(layer))
        if layer.norm is not None:
            table += forward + 1
            commands += 3
        if k in panels:
            commands += _more_commands(layer, panels[k], spills)
            parts = sum(piece.entries is not None for piece in _pieces(layer, panels[k]))
            table += parts * (layer.weight_shape[2] * layer.weight_shape[3] + 2)
    resident = [item.columns for k, item in enumerate(blocks) if k not in panels]
    cut = [panel for item in panels.values() for panel in (*item.forward, *item.backward)]
    pieces = [piece.panel for k, item in panels.items() for piece in _pieces(layers[k], item)]
    outside = {"panel_depth": max(panel.columns for panel in cut),
               "state_depth": max((piece.columns for piece in pieces), default=2),
               "run_depth": len({panel.runs for panel in pieces} - {panel.runs for panel in cut} - {()})
               + sum(len(panel.runs) for panel in cut)} if cut else {}
    return {"activation_depth": memory.activation_depth, "gradient_depth": memory.gradient_depth,
            "weight_depth": resident[-1] if resident else 0, "index_depth": entries, "table_depth": table,
            "program_depth": commands + 1, **outside, **_norm_depth(layers)}


def makes_own(layer: Layer, elements: int) -> bool:
    """Whether each of several processing elements makes results of its own in FP: it has all that they are made of."""
    return elements > 1 and layer.depthwise


def _entries(item: LayerBlocks, element: int) -> int:
    """Index entries of a layer's lists for a processing element."""
    biases = len(item.bias_columns[element:: item.elements])
    blocks = sum(block.element == element for block in item.blocks)
    again = item.layer.norm is not None or makes_own(item.layer, item.elements)  # a second list for FP
    taps = 1 << sum(item.layer.crossing)
    return (1 + again) * (biases + blocks) + (item.layer.input_gradient_format is not None) * taps * blocks


def _norm_depth(layers: tuple[Layer, ...]) -> dict[str, int]:
    channels = sum(layer.conv_shape[0] for layer in layers if layer.norm)
    return {"norm_depth": channels} if channels else {}


def _pieces(layer: Layer, panels: LayerPanels) -> tuple[Piece, ...]:
    """Those of WU, where there is one."""
    return () if layer.weight_gradient_format is None else panels.update


def _more_commands(layer: Layer, panels: LayerPanels, spills: bool) -> int:
    """Commands of a layer whose weights lie in external memory, beyond those that it would have with them on chip."""
    pieces = [piece.panel for piece in _pieces(layer, panels)]
    forward, update, backward = (sum(panel.columns > 0 for panel in part)
                                 for part in (panels.forward, pieces, panels.backward))
    return ((2 + spills) * (len(panels.forward) - 1) + 2 * forward + max(0, len(pieces) - 1) + 3 * update
            + max(0, len(panels.backward) - 1) * len(phases(layer)) + backward)


def required_acc_bits(layers: tuple[Layer, ...], blocks: tuple[LayerBlocks, ...]) -> int:
    """The accumulator width that cannot overflow: a proof from formats and fan-in.

    The largest product of two words is ``2**(a-1+b-1)``. FP adds one for each live weight of an
    output channel (and its bias), BP one for each live weight of an input channel, WU one for each
    pixel; ``n`` of them fit in as many bits as ``n * 2**(a+b-2)`` has, and a sign.
    """
    needed = 0
    for k, item in enumerate(blocks):
        layer = layers[k]
        fan_in, fan_out = _fans(item)
        pixels = layer.conv_shape[1] * layer.conv_shape[2]
        sums = [(layer.x_format, layer.weight_format, fan_in), (layer.x_format, layer.gradient_format, pixels)]
        if layer.input_gradient_format is not None:
            sums.append((layer.gradient_format, layer.weight_format, fan_out))
        if layer.norm is not None:
            sums.append((layer.x_format, layer.x_format, pixels))
        needed = max(needed, *(_sum_bits(*terms) for terms in sums))
    return needed


def _sum_bits(a: Fixed, b: Fixed, terms: int) -> int:
    return (terms << a.width + b.width - 2).bit_length() + 1


def _norm_sum_bits(layer: Layer, lanes: int) -> int:
    """Bits, without a sign, of the largest sums that a batch norm makes scalars of: of x², and of gx."""
    terms = lanes * layer.conv_shape[1] * layer.conv_shape[2]
    widths = max(layer.x_format.width, layer.gradient_format.width)
    return ((terms << layer.x_format.width + widths - 2) - 1).bit_length()


def _fans(item: LayerBlocks) -> tuple[int, int]:
    """The most products that FP adds up in one output channel, and BP in one input channel."""
    fan_in, fan_out = [0] * item.out_blocks, [0] * item.source_blocks
    alone = item.layer.depthwise
    for block in item.blocks:
        fan_in[block.out] += 1 if alone else block.columns
        fan_out[block.source] += 1 if alone else min(item.rows, item.layer.weight_shape[0] - block.out * item.rows)
    return max(fan_in) + (item.layer.bias is not None), max(fan_out)


def check_fit(machine: Machine, layers: tuple[Layer, ...], loss: Loss, blocks: tuple[LayerBlocks, ...],
              memory: Memory, panels: Mapping[int, LayerPanels] = NO_PANELS) -> None:
    """Raise FitError for the first limit of ``machine`` that the network exceeds."""
    for name, needed in required_depths(layers, blocks, memory, machine.rows, panels).items():
        if needed > getattr(machine, name):
            raise FitError(f"The network needs {name} = {needed} and the machine has {getattr(machine, name)}: "
                           f"enlarge it, prune more, or shrink the network")
    acc_bits = required_acc_bits(layers, blocks)
    if acc_bits > machine.acc_bits:
        raise FitError(f"Sums of this network need accumulators of {acc_bits} bits and the machine has "
                       f"{machine.acc_bits}")
    if loss.classes > machine.max_classes:
        raise FitError(f"The network has {loss.classes} classes and the machine's loss unit takes "
                       f"{machine.max_classes}")
    clipped = next((layer.name for layer in layers if layer.clip), None)
    if clipped and not machine.clips:
        raise FitError(f"The rectifier of {clipped!r} has an upper end and the machine's have none: build one with "
                       f"clips")
    if adds(layers) and not machine.sums:
        raise FitError("The network adds up layers, or gradients of a value with several readers, which the machine "
                       "cannot: build one with sums")
    for layer in layers:
        if layer.norm and (sums := _norm_sum_bits(layer, machine.lanes)) > SUM_BITS:
            raise FitError(f"The statistics of batch norm {layer.name!r} are sums of {sums} bits over "
                           f"{machine.images} images, and scalars are made of {SUM_BITS}: take fewer lanes or narrower "
                           f"words")
        for what, fmt in (("input", layer.x_format), ("weight", layer.weight_format), ("output", layer.out_format),
                          ("gradient", layer.gradient_format),
                          ("slope", layer.norm.slope_format if layer.norm and layer.norm.slope_format
                           else layer.weight_format)):
            if fmt.width > machine.word_bits:
                raise FitError(f"The {what} of {layer.name!r} has {fmt.width} bits and the machine's words have "
                               f"{machine.word_bits}")
