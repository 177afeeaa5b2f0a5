"""Encode the lists and commands of a scheduled network."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from espalier.arch.machine import Machine
from espalier.compiler.legalise import Layer, Loss
from espalier.compiler.lists import Block, LayerBlocks
from espalier.compiler.place import Memory
from espalier.errors import UnsupportedError
from espalier.ir.differentiate import gradient_name
from espalier.ir.graph import Graph
from espalier.ir.types import MapShape
from espalier.numerics.update import BufferedSgd
from espalier.program.program import Command, Entry, Placement, Program
from espalier.program.words import Opcode

Place = tuple[int, int, int]  #: of blocks in a list: the block that the list is ordered by, and the tap


def emit(machine: Machine, graph: Graph, layers: tuple[Layer, ...], loss: Loss, blocks: tuple[LayerBlocks, ...],
         memory: Memory, rules: Mapping[str, BufferedSgd]) -> Program:
    """The Program: index lists first (their table positions go into the commands), then the commands."""
    lists = _Lists(machine.rows)
    forward_tables = [lists.forward(item, memory.activations[k], layers[k].in_shape)
                      for k, item in enumerate(blocks)]
    backward_tables = [None] + [lists.backward(item, memory.gradients[k], layers[k].out_shape)
                                for k, item in enumerate(blocks) if k > 0]
    phases = _Phases(machine, layers, memory, forward_tables, backward_tables)
    infer = [*(phases.forward(k) for k in range(len(layers))), phases.loss(loss)]
    train = list(infer)
    for k in reversed(range(len(layers))):
        if k > 0:
            train.append(phases.backward(k))
        train.append(phases.update(k, rules[layers[k].weight]))
    end = Command(opcode=Opcode.END, layer="end")
    addresses = {name: places.reshape(graph.value(name).shape)
                 for item in blocks for name, places in item.addresses().items()}
    return Program(
        machine=machine, commands=(*train, end, *infer, end), entries_at={"train": 0, "infer": len(train) + 1},
        entries=tuple(lists.entries), table=tuple(lists.table), addresses=addresses,
        weight_formats={name: layer.weight_format for layer in layers for name in (layer.weight, layer.bias) if name},
        placements=_placements(layers, memory), image=layers[0].in_shape, image_base=memory.activations[0],
        image_format=layers[0].x_format)


def _placements(layers: tuple[Layer, ...], memory: Memory) -> tuple[Placement, ...]:
    """All stored activations in order, then all stored gradients in the order of the backward pass."""
    count = len(layers)
    found = [Placement(value=layer.out, memory="activations", base=memory.activations[k + 1], shape=layer.out_shape,
                       format=layer.out_format, command=k, pooled=layer.pool) for k, layer in enumerate(layers)]
    found.append(Placement(value=gradient_name(layers[-1].name), memory="gradients", base=memory.gradients[-1],
                           shape=layers[-1].out_shape, format=layers[-1].gradient_format, command=count,
                           pooled=False))
    for k in reversed(range(1, count)):
        source = layers[k - 1]
        found.append(Placement(value=gradient_name(source.name), memory="gradients", base=memory.gradients[k - 1],
                               shape=source.out_shape, format=source.gradient_format,
                               command=count + 1 + 2 * (count - 1 - k), pooled=source.pool))
    return tuple(found)


class _Lists:
    """Index lists and segment pointers as they grow."""

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.entries: list[Entry] = []
        self.table: list[int] = []

    def forward(self, item: LayerBlocks, base: int, source: MapShape) -> int:
        """Append a layer's FP list, ordered by output block, then tap; return its table position."""
        start, layer = len(self.table), item.layer
        taps = self._taps(layer)
        plane = source[1] * source[2]
        by_place = _grouped(item.blocks, lambda b: (b.out, b.ky, b.kx))
        for out in range(item.out_blocks):
            self.table.append(len(self.entries))
            if layer.bias is not None:
                self.entries.append(Entry(item.bias_columns[out], base, 0, 0, 1, one=1))
            for ky, kx in taps:
                self.table.append(len(self.entries))
                self.entries += [Entry(b.column, base + b.source * self.rows * plane, ky, kx, b.columns)
                                 for b in by_place.get((out, ky, kx), ())]
        self.table.append(len(self.entries))
        return start

    def backward(self, item: LayerBlocks, base: int, gradient: MapShape) -> int:
        """Append a layer's BP list, ordered by source block, then mirrored tap; return its table position."""
        start, layer = len(self.table), item.layer
        channels, _, height, width = layer.weight_shape
        plane = gradient[1] * gradient[2]
        by_place = _grouped(item.backward(), lambda b: (b.source, height - 1 - b.ky, width - 1 - b.kx))
        for source in range(item.source_blocks):
            self.table.append(len(self.entries))
            for ky, kx in self._taps(layer):
                self.table.append(len(self.entries))
                self.entries += [Entry(b.column, base + b.out * plane, ky, kx,
                                       min(self.rows, channels - b.out * self.rows))
                                 for b in by_place.get((source, ky, kx), ())]
        self.table.append(len(self.entries))
        return start

    @staticmethod
    def _taps(layer: Layer) -> list[tuple[int, int]]:
        return [(ky, kx) for ky in range(layer.weight_shape[2]) for kx in range(layer.weight_shape[3])]


def _grouped(blocks: Iterable[Block], key: Callable[[Block], Place]) -> dict[Place, list[Block]]:
    groups: dict[Place, list[Block]] = {}
    for block in blocks:
        groups.setdefault(key(block), []).append(block)
    return groups


class _Phases:
    """Makes the command of each phase of each layer."""

    def __init__(self, machine: Machine, layers: tuple[Layer, ...], memory: Memory, forward_tables: list[int],
                 backward_tables: list[int | None]) -> None:
        self.machine, self.layers, self.memory = machine, layers, memory
        self.forward_tables, self.backward_tables = forward_tables, backward_tables

    def _blocks(self, channels: int) -> dict[str, int]:
        blocks = -(-channels // self.machine.rows)
        return {"blocks": blocks, "last_rows": channels - (blocks - 1) * self.machine.rows}

    def _shift(self, layer: Layer, phase: str, acc_frac: int, out_frac: int) -> int:
        if not 0 <= acc_frac - out_frac < 64:
            raise UnsupportedError(f"{phase} of {layer.name!r} would round {acc_frac} fraction bits to {out_frac}: the "
                                   f"result may not be finer than its products")
        return acc_frac - out_frac

    def _source(self, k: int) -> dict[str, int]:
        """What FP and WU share: the convolution over the layer's input."""
        layer = self.layers[k]
        _, height, width = layer.in_shape
        return {"kernel_y": layer.weight_shape[2], "kernel_x": layer.weight_shape[3], "pad_y": layer.pad[0],
                "pad_x": layer.pad[1], "source_y": height, "source_x": width, "source_plane": height * width,
                "out_y": layer.conv_shape[1], "out_x": layer.conv_shape[2],
                "alternate": layer.in_shape[0] * height * width if k == 0 else 0,
                "one": 1 << layer.x_format.frac if layer.bias is not None else 0,
                "bias": int(layer.bias is not None), "table": self.forward_tables[k],
                **self._blocks(layer.conv_shape[0])}

    def forward(self, k: int) -> Command:
        layer = self.layers[k]
        plane = layer.out_shape[1] * layer.out_shape[2]
        block = plane * self.machine.rows if layer.out_shape[0] > self.machine.rows else 0  # no step from the only one
        return Command(
            opcode=Opcode.FORWARD, layer=layer.name, **self._source(k), pool_out=int(layer.pool),
            rectify=int(layer.rectify), out_base=self.memory.activations[k + 1], out_plane=plane,
            out_block=block, limit=layer.out_format.high,
            shift=self._shift(layer, "FP", layer.x_format.frac + layer.weight_format.frac, layer.out_format.frac))

    def backward(self, k: int) -> Command:
        layer, source = self.layers[k], self.layers[k - 1]
        channels, height, width = layer.in_shape
        kernel_y, kernel_x = layer.weight_shape[2:]
        table = self.backward_tables[k]
        assert table is not None and layer.input_gradient_format is not None
        return Command(
            opcode=Opcode.BACKWARD, layer=layer.name, table=table, **self._blocks(channels),
            kernel_y=kernel_y, kernel_x=kernel_x, pad_y=kernel_y - 1 - layer.pad[0], pad_x=kernel_x - 1 - layer.pad[1],
            source_y=layer.conv_shape[1], source_x=layer.conv_shape[2], out_y=height, out_x=width,
            pool_source=int(layer.pool), gradient_x=layer.out_shape[2], out_base=self.memory.gradients[k - 1],
            out_block=height * width, out_plane=height * width, mask_base=self.memory.activations[k],
            rectify=int(source.rectify), limit=layer.input_gradient_format.high,
            shift=self._shift(layer, "BP", layer.gradient_format.frac + layer.weight_format.frac,
                              layer.input_gradient_format.frac))

    def update(self, k: int, rule: BufferedSgd) -> Command:
        layer = self.layers[k]
        assert rule.weight == layer.weight_format, "an update rule for another format"
        return Command(
            opcode=Opcode.UPDATE, layer=layer.name, **self._source(k), pool_source=int(layer.pool),
            gradient_x=layer.out_shape[2], out_base=self.memory.gradients[k],
            out_block=layer.out_shape[1] * layer.out_shape[2],
            gradient_shift=self._shift(layer, "WU", layer.x_format.frac + layer.gradient_format.frac,
                                       layer.weight_gradient_format.frac),
            weight_width=layer.weight_format.width, **rule_fields(rule))

    def loss(self, loss: Loss) -> Command:
        return Command(
            opcode=Opcode.LOSS, layer="loss", mask_base=self.memory.activations[-1],
            out_base=self.memory.gradients[-1], classes=loss.classes, logit_frac=loss.logit_format.frac,
            gradient_frac=loss.gradient_format.frac, gradient_width=loss.gradient_format.width,
            hinge=int(loss.hinge))


def rule_fields(rule: BufferedSgd) -> dict[str, int]:
    """An update rule as command fields."""
    return {"rate": rule.rate.word, "rate_shift": rule.rate.shift, "momentum": rule.momentum.word,
            "momentum_shift": rule.momentum.shift, "decay": rule.decay.word, "decay_shift": rule.decay.shift}
