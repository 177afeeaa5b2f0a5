"""Encode the lists and commands of a scheduled network."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from espalier.arch.machine import Machine
from espalier.compiler.backward import Backward, backward
from espalier.compiler.legalise import Layer, Loss
from espalier.compiler.lists import Block, LayerBlocks
from espalier.compiler.place import Memory, PhaseAxis, phases, vectors
from espalier.errors import FitError, UnsupportedError
from espalier.ir.differentiate import gradient_name
from espalier.ir.graph import Graph
from espalier.ir.types import MapShape
from espalier.numerics.update import BufferedSgd
from espalier.program.program import Command, Entry, Placement, Program
from espalier.program.words import PAGE_BITS, PAGE_SHIFT, Opcode, command_fields

Place = tuple[int, int, int]  #: of blocks in a list: the block that the list is ordered by, and the tap


def emit(machine: Machine, graph: Graph, layers: tuple[Layer, ...], loss: Loss, blocks: tuple[LayerBlocks, ...],
         memory: Memory, rules: Mapping[str, BufferedSgd]) -> Program:
    """The Program: index lists first (their table positions go into the commands), then the commands."""
    plan = backward(layers)
    commands = _Commands(machine, layers, blocks, memory)
    image = commands.refetches(-1)
    infer = [*image, *(commands.forward(k) for k in range(len(layers))), commands.loss(loss)]
    train = [*(commands.spilling(command) for command in infer[:-1]), *commands.refetches(len(layers)), infer[-1]]
    loss_command, last_of_step = len(train) - 1, []
    for time, step in enumerate(plan.steps, start=len(layers) + 1):
        first, *others = (*commands.refetches(time), *(
            commands.backward(step.layer, step.add) if step.opcode == Opcode.BACKWARD else
            [commands.update(step.layer, rules)]))
        train += [replace(first, fence=int(time in memory.fences)), *others]
        last_of_step.append(len(train) - 1)
    end = Command(opcode=Opcode.END, layer="end")
    addresses = {name: places.reshape(graph.value(name).shape)
                 for item in blocks for name, places in item.addresses().items()}
    return Program(
        machine=machine, commands=(*train, end, *infer, end), entries_at={"train": 0, "infer": len(train) + 1},
        entries=tuple(commands.lists.entries), table=tuple(commands.lists.table), addresses=addresses,
        constants=_constants(blocks),
        weight_formats={name: layer.weight_format for layer in layers for name in (layer.weight, layer.bias) if name},
        placements=_placements(layers, memory, plan, len(image), [*last_of_step, loss_command]),
        image=layers[0].in_shape, image_base=memory.activations[layers[0].x], image_format=layers[0].x_format,
        image_pages=commands.image_pages)


def _constants(blocks: tuple[LayerBlocks, ...]) -> dict[int, NDArray[np.int64]]:
    found: dict[int, list[NDArray[np.int64]]] = {}
    for item in blocks:
        if item.layer.weight is None:
            found.setdefault(item.layer.constant, []).append(item.constant_places())
    return {word: np.concatenate(places) for word, places in found.items()}


def _placements(layers: tuple[Layer, ...], memory: Memory, plan: Backward, first: int, last_of_step: list[int]
                ) -> tuple[Placement, ...]:
    """All stored activations in order, then all stored gradients in the order in which they are whole.

    ``first`` is the number of the first layer's command, ``last_of_step[-1]`` the loss's.
    """
    found = [Placement(value=layer.out, memory="activations", base=memory.activations[layer.out],
                       shape=layer.out_shape, format=layer.out_format, command=k, pooled=layer.pool)
             for k, layer in enumerate(layers, start=first)]
    gradients = [Placement(value=gradient_name(layer.name), memory="gradients", base=memory.gradients[layer.out],
                           shape=layer.out_shape, format=layer.gradient_format,
                           command=last_of_step[plan.complete[layer.out]], pooled=layer.pool)
                 for layer in reversed(layers) if layer.out in plan.complete]
    return (*found, *sorted(gradients, key=lambda placement: placement.command))


class _Lists:
    """Index lists and segment pointers as they grow."""

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.entries: list[Entry] = []
        self.table: list[int] = []

    def forward(self, item: LayerBlocks, base: int, source: MapShape) -> int:
        """Append a layer's FP list, ordered by output block, then tap; return its table position."""
        layer, plane = item.layer, source[1] * source[2]
        by_place = _grouped(item.blocks, lambda b: (b.out, b.ky, b.kx))
        biases = [Entry(column, base, 0, 0, 1, one=1) for column in item.bias_columns]
        return self._append(item.out_blocks, layer.weight_shape[2:], biases, {
            place: [Entry(b.column, base + b.source * self.rows * plane, b.ky, b.kx, b.columns) for b in found]
            for place, found in by_place.items()})

    def backward(self, item: LayerBlocks, base: int, gradient: MapShape, axes: tuple[PhaseAxis, PhaseAxis]) -> int:
        """Append a layer's BP list of one phase, by source block, then mirrored tap; return its table position."""
        layer, plane = item.layer, gradient[1] * gradient[2]
        channels = layer.weight_shape[0]
        taps: dict[Place, list[Entry]] = {}
        for b in item.backward():
            ky, kx = (axis.place(tap, stride)
                      for axis, tap, stride in zip(axes, (b.ky, b.kx), layer.stride, strict=True))
            if ky is not None and kx is not None:
                taps.setdefault((b.source, ky, kx), []).append(
                    Entry(b.column, base + b.out * plane, ky, kx, min(self.rows, channels - b.out * self.rows)))
        return self._append(item.source_blocks, (axes[0].taps, axes[1].taps), [], taps)

    def _append(self, blocks: int, kernel: tuple[int, int], biases: list[Entry], taps: Mapping[Place, list[Entry]]
                ) -> int:
        """A list for each block: its bias where there are any, then its entries tap by tap."""
        start = len(self.table)
        for block in range(blocks):
            self.table.append(len(self.entries))
            self.entries += biases[block: block + 1]
            for ky in range(kernel[0]):
                for kx in range(kernel[1]):
                    self.table.append(len(self.entries))
                    self.entries += taps.get((block, ky, kx), ())
        self.table.append(len(self.entries))
        return start


def _grouped(blocks: Iterable[Block], key: Callable[[Block], Place]) -> dict[Place, list[Block]]:
    groups: dict[Place, list[Block]] = {}
    for block in blocks:
        groups.setdefault(key(block), []).append(block)
    return groups


class _Commands:
    """Makes the commands of each phase of each layer, and the lists that they walk."""

    def __init__(self, machine: Machine, layers: tuple[Layer, ...], blocks: tuple[LayerBlocks, ...], memory: Memory
                 ) -> None:
        self.machine, self.layers, self.items, self.memory = machine, layers, blocks, memory
        self.makers = {layer.out: layer for layer in layers}
        self.lists = _Lists(machine.rows)
        self.image_pages = 0  # between the two places of images in external memory; 0 where they come from the host
        self.external = self._external_places()
        self.tables = [self.lists.forward(item, memory.activations[item.layer.x], item.layer.in_shape)
                       for item in blocks]

    def _external_places(self) -> dict[str, tuple[int, int]]:
        """For each spilled tensor, its first page and its beats."""
        found: dict[str, tuple[int, int]] = {}
        page, machine = 0, self.machine
        for name in self.memory.spilled:
            image = name not in self.makers
            shape = self.layers[0].in_shape if image else self.makers[name].out_shape
            beats = vectors(shape) * machine.vector_beats
            found[name] = page, beats
            pages = -(-beats * machine.port_bits // 8 >> PAGE_SHIFT)
            if image:
                self.image_pages = pages
            page += 2 * pages if image else pages
        if page > 1 << PAGE_BITS:
            raise FitError(f"The network would spill {page << PAGE_SHIFT} bytes, and external memory has addresses of "
                           f"{PAGE_BITS + PAGE_SHIFT} bits: take fewer lanes")
        return found

    def _offset(self, address: int, other: int) -> int:
        """From ``address`` to ``other``, as the machine adds it: modulo the addresses that there are."""
        return (other - address) % (1 << command_fields(self.machine)["add_offset"])

    def _blocks(self, channels: int) -> dict[str, int]:
        blocks = -(-channels // self.machine.rows)
        return {"blocks": blocks, "last_rows": channels - (blocks - 1) * self.machine.rows}

    def _shift(self, layer: Layer, phase: str, acc_frac: int, out_frac: int) -> int:
        if not 0 <= acc_frac - out_frac < 64:
            raise UnsupportedError(f"{phase} of {layer.name!r} would round {acc_frac} fraction bits to {out_frac}: the "
                                   f"result may not be finer than its products")
        return acc_frac - out_frac

    def _bound(self, high: int, layer: Layer, less: int = 0) -> int:
        """Of words up to ``high``, the largest that the rectifier of ``layer`` leaves, or so much ``less``."""
        return min(high, layer.clip - less if layer.clip else high) if self.machine.clips else 0

    def _source(self, k: int) -> dict[str, int]:
        """What FP and WU share: the convolution over the layer's input."""
        layer = self.layers[k]
        _, height, width = layer.in_shape
        image = layer.x not in self.makers
        return {"kernel_y": layer.weight_shape[2], "kernel_x": layer.weight_shape[3], "pad_y": layer.pad[0],
                "pad_x": layer.pad[1], "source_y": height, "source_x": width, "source_plane": height * width,
                "stride_y": layer.stride[0].bit_length() - 1, "stride_x": layer.stride[1].bit_length() - 1,
                "out_y": layer.conv_shape[1], "out_x": layer.conv_shape[2],
                "alternate": layer.in_shape[0] * height * width if image and not self.image_pages else 0,
                "one": 1 << layer.x_format.frac if layer.bias is not None else 0,
                "bias": int(layer.bias is not None), "table": self.tables[k], **self._blocks(layer.conv_shape[0])}

    def forward(self, k: int) -> Command:
        layer, places = self.layers[k], self.memory.activations
        plane = layer.out_shape[1] * layer.out_shape[2]
        block = plane * self.machine.rows if layer.out_shape[0] > self.machine.rows else 0  # no step from the only one
        out, added = places[layer.out], places[layer.out if layer.addend is None else layer.addend]
        return Command(
            opcode=Opcode.FORWARD, layer=layer.name, **self._source(k), pool_out=int(layer.pool),
            fence=int(k in self.memory.fences), rectify=int(layer.rectify), out_base=out, out_plane=plane,
            out_step=1, out_skip=1, out_block=block,
            add=int(layer.addend is not None), add_offset=self._offset(out, added),
            limit=layer.out_format.high, bound=self._bound(layer.out_format.high, layer),
            shift=self._shift(layer, "FP", layer.x_format.frac + layer.weight_format.frac, layer.out_format.frac))

    def spilling(self, command: Command) -> Command:
        """An FP command as a training step has it: what is not on chip all the time goes to external memory, too."""
        out = next((layer.out for layer in self.layers if layer.name == command.layer), None)
        if out not in self.external:  # the image neither, which is where it comes from
            return command
        page, beats = self.external[out]
        return replace(command, spill=1, external=page, beats=beats)

    def refetches(self, time: int) -> list[Command]:
        """What is asked back before the commands of a time."""
        found = []
        for name in self.memory.refetches.get(time, ()):
            page, beats = self.external[name]
            if name not in self.makers:  # the image, pixel by pixel
                found.append(Command(
                    opcode=Opcode.REFETCH, layer=name, out_base=self.memory.activations[name], last_rows=1, blocks=1,
                    out_plane=vectors(self.layers[0].in_shape), external=page, beats=beats,
                    alternate=self.image_pages))
                continue
            layer = self.makers[name]
            channels, height, width = layer.out_shape
            plane = height * width
            block = plane * self.machine.rows if channels > self.machine.rows else 0
            found.append(Command(
                opcode=Opcode.REFETCH, layer=layer.name, out_base=self.memory.activations[name], out_plane=plane,
                out_block=block, external=page, beats=beats, **self._blocks(channels)))
        return found

    def backward(self, k: int, add: str | None) -> list[Command]:
        """One command for each phase of the source map."""
        return [self._backward_phase(k, add, phase) for phase in phases(self.layers[k])]

    def _backward_phase(self, k: int, add: str | None, phase: tuple[int, int]) -> Command:
        layer, memory = self.layers[k], self.memory
        source = self.makers[layer.x]
        channels, height, width = layer.in_shape
        y, x = axes = PhaseAxis.of(layer, 0, phase[0]), PhaseAxis.of(layer, 1, phase[1])
        table = self.lists.backward(self.items[k], memory.gradients[layer.out], layer.out_shape, axes)
        base, first = memory.gradients[layer.x], phase[0] * width + phase[1]
        added = memory.gradients[layer.x if add is None else add]
        assert layer.input_gradient_format is not None
        return Command(
            opcode=Opcode.BACKWARD, layer=layer.name, table=table, **self._blocks(channels),
            kernel_y=y.taps, kernel_x=x.taps, pad_y=y.pad, pad_x=x.pad,
            source_y=layer.conv_shape[1], source_x=layer.conv_shape[2], out_y=y.size, out_x=x.size,
            pool_source=int(layer.pool), gradient_x=layer.out_shape[2], out_base=base + first,
            out_block=height * width, out_plane=height * width, out_step=layer.stride[1],
            out_skip=layer.stride[0] * width - (x.size - 1) * layer.stride[1],
            add=int(add is not None), add_offset=self._offset(base, added),
            mask_base=memory.activations[layer.x] + first, rectify=int(source.rectify),
            limit=layer.input_gradient_format.high, bound=self._bound(layer.x_format.high, source, 1),
            shift=self._shift(layer, "BP", layer.gradient_format.frac + layer.weight_format.frac,
                              layer.input_gradient_format.frac))

    def update(self, k: int, rules: Mapping[str, BufferedSgd]) -> Command:
        layer = self.layers[k]
        assert layer.weight is not None and layer.weight_gradient_format is not None, "it is trained"
        rule = rules[layer.weight]
        assert rule.weight == layer.weight_format, "an update rule for another format"
        return Command(
            opcode=Opcode.UPDATE, layer=layer.name, **self._source(k), pool_source=int(layer.pool),
            gradient_x=layer.out_shape[2], out_base=self.memory.gradients[layer.out],
            out_block=layer.out_shape[1] * layer.out_shape[2], diagonal=int(layer.depthwise),
            gradient_shift=self._shift(layer, "WU", layer.x_format.frac + layer.gradient_format.frac,
                                       layer.weight_gradient_format.frac),
            weight_width=layer.weight_format.width, **rule_fields(rule))

    def loss(self, loss: Loss) -> Command:
        logits = self.layers[-1].out
        return Command(
            opcode=Opcode.LOSS, layer="loss", mask_base=self.memory.activations[logits],
            out_base=self.memory.gradients[logits], classes=loss.classes, logit_frac=loss.logit_format.frac,
            gradient_frac=loss.gradient_format.frac, gradient_width=loss.gradient_format.width,
            hinge=int(loss.hinge))


def rule_fields(rule: BufferedSgd) -> dict[str, int]:
    """An update rule as command fields."""
    return {"rate": rule.rate.word, "rate_shift": rule.rate.shift, "momentum": rule.momentum.word,
            "momentum_shift": rule.momentum.shift, "decay": rule.decay.word, "decay_shift": rule.decay.shift}
