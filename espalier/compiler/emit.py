"""Encode the lists and commands of a scheduled network."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from espalier.arch.machine import Machine
from espalier.compiler.backward import Backward, Step, backward
from espalier.compiler.fit import makes_own
from espalier.compiler.growing_lists import GrowingLists
from espalier.compiler.legalise import Layer, Loss
from espalier.compiler.lists import LayerBlocks
from espalier.compiler.moves import LOSS, Moves, Part
from espalier.compiler.panels import LayerPanels, Panel, Piece
from espalier.compiler.place import Memory, PhaseAxis, phases, vectors
from espalier.errors import FitError, UnsupportedError
from espalier.ir.differentiate import gradient_name
from espalier.ir.graph import Graph
from espalier.ir.types import MapShape
from espalier.numerics.fixed import Fixed
from espalier.numerics.fixed_batch_norm import following, share
from espalier.numerics.scalar import binary32
from espalier.numerics.update import BufferedSgd, ScalarSgd
from espalier.program.norm import NormMode, Slot
from espalier.program.program import Command, Placement, Program
from espalier.program.scalar import FRAC_BITS
from espalier.program.words import PAGE_BITS, PAGE_SHIFT, Opcode, command_fields

Rules = Mapping[str, BufferedSgd | ScalarSgd]


def emit(machine: Machine, graph: Graph, layers: tuple[Layer, ...], loss: Loss, blocks: tuple[LayerBlocks, ...],
         panels: Mapping[int, LayerPanels], memory: Memory, rules: Rules) -> Program:
    """The Program: index lists first (their table positions go into the commands), then the commands."""
    plan = backward(layers)
    commands = _Commands(machine, layers, blocks, panels, memory)
    image = [Part(commands=(command,)) for command in commands.refetches(-1)]
    forward = [part for k in range(len(layers)) for part in commands.forward(k, rules)]
    end = Command(opcode=Opcode.END, layer="end")
    losing = [Part(commands=(commands.loss(loss),), makes=LOSS)]
    running = [part for k in range(len(layers)) for part in commands.forward(k)]
    infer = commands.moves.scheduled([*image, *running, *losing])
    steps = [*image, *commands.spilling(forward),
             *(Part(commands=(command,)) for command in commands.refetches(len(layers))), *losing]
    for number, step in enumerate(plan.steps):
        time = len(layers) + 1 + number
        parts = [*(Part(commands=(command,)) for command in commands.refetches(time)),
                 *commands.step(step, rules)]
        first, *others = parts[0].commands
        parts[0] = replace(parts[0], commands=(replace(first, fence=int(time in memory.fences)), *others))
        steps += [*parts[:-1], replace(parts[-1], makes=number)]
    train = commands.moves.scheduled(steps)
    written = replace(end, fence=int(any(command.opcode == Opcode.STORE for command in train.commands)))
    addresses = {name: places.reshape(graph.value(name).shape)
                 for item in blocks for name, places in item.addresses(machine.master_depth).items()}
    return Program(
        machine=machine, commands=(*train.commands, written, *infer.commands, end),
        entries_at={"train": 0, "infer": len(train.commands) + 1},
        lists=commands.lists.whole(), addresses=addresses, constants=_constants(blocks, machine.master_depth),
        weight_formats={name: layer.weight_format for layer in layers if not layer.norm
                        for name in (layer.weight, layer.bias) if name},
        scalars={name: (commands.channels[layer.out], layer.conv_shape[0], slot.value) for layer in layers if layer.norm
                 for name, slot in _scalars(layer).items()},
        placements=_placements(layers, memory, plan, train.makers),
        image=layers[0].in_shape, image_base=memory.activations[layers[0].x], image_format=layers[0].x_format,
        image_pages=commands.image_pages, runs=tuple(commands.moves.runs),
        external_columns=commands.external_columns, weight_page=commands.weight_page, state_page=commands.state_page)


def _constants(blocks: tuple[LayerBlocks, ...], each: int) -> dict[int, NDArray[np.int64]]:
    found: dict[int, list[NDArray[np.int64]]] = {}
    for item in blocks:
        if item.layer.weight is None:
            found.setdefault(item.layer.constant, []).append(item.constant_places(each))
    return {word: np.concatenate(places) for word, places in found.items()}


def _scalars(layer: Layer) -> dict[str, Slot]:
    """The slot of each scalar of a batch norm that a host loads and reads, by its name in the state."""
    assert layer.norm and layer.weight and layer.bias, "it is one"
    return {layer.weight: Slot.SCALE, layer.bias: Slot.SHIFT, f"{layer.weight}.momentum": Slot.SCALE_VELOCITY,
            f"{layer.bias}.momentum": Slot.SHIFT_VELOCITY, layer.norm.mean: Slot.RUNNING_MEAN,
            layer.norm.variance: Slot.RUNNING_VARIANCE}


def _placements(layers: tuple[Layer, ...], memory: Memory, plan: Backward, makers: Mapping[str | int, int]
                ) -> tuple[Placement, ...]:
    """All stored activations in order, then all stored gradients in the order in which they are whole.

    ``makers`` has the number of the command after which a value, or the gradients of a step, can be read.
    """
    found = [Placement(value=layer.out, memory="activations", base=memory.activations[layer.out],
                       shape=layer.out_shape, format=layer.out_format, command=makers[layer.out], pooled=layer.pool,
                       apart=layer.apart)
             for layer in layers]
    gradients = [Placement(value=gradient_name(layer.name), memory="gradients", base=memory.gradients[layer.out],
                           shape=layer.out_shape, format=layer.gradient_format,
                           command=makers[plan.complete[layer.out]], pooled=layer.pool and not any(layer.crossing),
                           apart=layer.apart)
                 for layer in reversed(layers) if layer.out in plan.complete]
    return (*found, *sorted(gradients, key=lambda placement: placement.command))


class _Commands:
    """Makes the commands of each phase of each layer, and the lists that they walk."""

    def __init__(self, machine: Machine, layers: tuple[Layer, ...], blocks: tuple[LayerBlocks, ...],
                 panels: Mapping[int, LayerPanels], memory: Memory) -> None:
        self.machine, self.layers, self.items, self.memory, self.panels = machine, layers, blocks, memory, panels
        self.makers = {layer.out: layer for layer in layers}
        self.numbers = {layer.out: k for k, layer in enumerate(layers)}
        self.lists = GrowingLists(machine.rows, machine.elements)
        self.image_pages = 0  # between the two places of images in external memory; 0 where they come from the host
        self.pages = 0        # of external memory that are taken
        self.external = self._external_places()
        self.external_columns = max((blocks[k].columns - machine.weight_depth for k in panels), default=0)
        self.weight_page, self.state_page = (
            self._taken(machine.column_beats(self.external_columns, state=state) if panels else 0)
            for state in (False, True))
        self.moves = Moves(machine, self.weight_page, self.state_page)
        norms = [layer for layer in layers if layer.norm]
        channels = accumulate((layer.conv_shape[0] for layer in norms), initial=0)
        self.channels = {layer.out: first for layer, first in zip(norms, channels, strict=False)}
        self.tables = [self._list(k, panels[k].forward_columns if k in panels else {}) for k in range(len(blocks))]
        self.own_tables = {k: self._list(k, {}, own=True) for k, layer in enumerate(layers)
                           if makes_own(layer, machine.elements)}

    def _list(self, k: int, columns: Mapping[int, int], *, own: bool = False) -> int:
        """The FP list of a layer, as :meth:`GrowingLists.forward`."""
        layer = self.layers[k]
        return self.lists.forward(self.items[k], self.memory.activations[layer.x], layer.in_shape, columns,
                                  everywhere=layer.x not in self.makers, own=own)

    def _taken(self, beats: int, times: int = 1) -> int:
        """The first of so many pages as take so many beats."""
        first = self.pages
        self.pages += times * -(-beats * self.machine.port_bits // 8 >> PAGE_SHIFT)
        if self.pages > 1 << PAGE_BITS:
            raise FitError(f"The network would take {self.pages << PAGE_SHIFT} bytes of external memory, which has "
                           f"addresses of {PAGE_BITS + PAGE_SHIFT} bits: take fewer lanes")
        return first

    def _external_places(self) -> dict[str, list[tuple[int, int]]]:
        """For each spilled tensor the first page and the beats of each of its parts."""
        found: dict[str, list[tuple[int, int]]] = {}
        for name in self.memory.spilled:
            if name not in self.makers:
                beats = vectors(self.layers[0].in_shape) * self.machine.vector_beats
                found[name] = [(self._taken(beats, 2), beats)]
                self.image_pages = self.pages // 2
                continue
            channels, height, width = self.makers[name].out_shape
            rows = self._made_at_once(name)
            sizes = [min(channels, (first + blocks) * rows) - first * rows for first, blocks in self._parts(name)]
            parts = [size * height * width * self.machine.vector_beats for size in sizes]
            found[name] = [(self._taken(beats), beats) for beats in parts]
        return found

    def _parts(self, name: str) -> list[tuple[int, int]]:
        """The blocks of channels, as first and how many, of each command that makes a layer's result."""
        k = self.numbers[name]
        if k in self.panels:
            return [(panel.first, panel.blocks) for panel in self.panels[k].forward]
        return [(0, -(-self.makers[name].out_shape[0] // self._made_at_once(name)))]

    def _made_at_once(self, name: str) -> int:
        """The results of a block of the command that makes a layer's result."""
        machine = self.machine
        return machine.all_rows if makes_own(self.makers[name], machine.elements) else machine.rows

    def _cut(self, command: Command, first: int, blocks: int) -> Command:
        """A command for some of its blocks only."""
        rows, slots = self.machine.rows, command.kernel_y * command.kernel_x + 1
        mask = first * rows * command.out_plane if command.opcode == Opcode.BACKWARD or command.target else 0
        return replace(
            command, table=command.table + first * slots, blocks=blocks,
            last_rows=command.last_rows if first + blocks == command.blocks else rows,
            out_base=command.out_base + first * command.out_block, mask_base=command.mask_base + mask)

    def _in_panels(self, commands: Sequence[Command], panels: Sequence[Panel], makes: str | int | None = None
                   ) -> list[Part]:
        """For each panel the commands that use it; what the first waited for, only the first of all does now."""
        found = [Part(commands=tuple(self._cut(command, panel.first, panel.blocks) for command in commands),
                      panel=panel) for panel in panels]
        later = [replace(part, commands=tuple(replace(command, fence=0) for command in part.commands))
                 for part in found[1:]]
        *before, last = found[0], *later
        return [*before, replace(last, makes=makes)]

    def _added(self, address: int, other: int) -> dict[str, int]:
        """To results at ``address`` is added what is at ``other``: so far behind, modulo the addresses."""
        return {"add": 1, "add_offset": (other - address) % (1 << command_fields(self.machine)["add_offset"])}

    def _blocks(self, channels: int, *, own: bool = False) -> dict[str, int]:
        """How many blocks of results there are: of one element, or, where each has its ``own``, of all together."""
        rows = self.machine.all_rows if own else self.machine.rows
        blocks = -(-channels // rows)
        return {"blocks": blocks, "last_rows": channels - (blocks - 1) * rows}

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
                "bias": int(layer.bias is not None), "table": self.tables[k], **self._blocks(layer.conv_shape[0]),
                **self._tile(layer, layer.in_shape)}

    def _tile(self, layer: Layer, shape: MapShape) -> dict[str, int]:
        """How large a tile of the map is that is read through the taps, and how far the next."""
        names = ("tile_y", "tile_x", "reach_y", "reach_x") if self.machine.tiles > 1 else ()
        return {name: (size - 1).bit_length() for name, size in zip(names, (*shape[1:], *layer.reach), strict=False)}

    def forward(self, k: int, rules: Rules | None = None) -> list[Part]:
        """FP of a layer in training, by ``rules``, or for inference, where a batch norm has its running statistics."""
        command, layer = self._forward(k), self.layers[k]
        if layer.norm is not None:
            first = self._from_running(k) if rules is None else self._statistics(k, rules)
            return [Part(commands=(replace(first, fence=command.fence),)),
                    Part(commands=(replace(command, fence=0),), makes=layer.out)]
        if k in self.panels:
            return self._in_panels([command], self.panels[k].forward, layer.out)
        return [Part(commands=(command,), makes=layer.out)]

    def _forward(self, k: int) -> Command:
        layer, places = self.layers[k], self.memory.activations
        plane = layer.out_shape[1] * layer.out_shape[2]
        block = plane * self.machine.rows if layer.out_shape[0] > self.machine.all_rows else 0  # no step from the last
        own = k in self.own_tables
        alone = {**self._blocks(layer.conv_shape[0], own=True), "table": self.own_tables[k]} if own else {}
        out, copies = places[layer.out], self.memory.copies
        target = {"out_base": out, "out_block": block}
        if layer.out in copies:
            target = {"target": 1, "mask_base": out, "out_base": copies[layer.out], "out_block": plane}
        return Command(
            opcode=Opcode.FORWARD, layer=layer.name, **{**self._source(k), **alone}, own=int(own),
            pool_out=int(layer.pool),
            fence=int(k in self.memory.fences), rectify=int(layer.rectify), out_plane=plane,
            out_step=1, out_skip=1, **target,
            **({} if layer.addend is None else self._added(copies[layer.out], copies[layer.addend])),
            limit=layer.out_format.high, bound=self._bound(layer.out_format.high, layer),
            shift=self._shift(layer, "FP", layer.x_format.frac + layer.weight_format.frac, layer.out_format.frac))

    def spilling(self, parts: Iterable[Part]) -> Iterator[Part]:
        """FP as a training step has it: what is not on chip all the time goes to external memory, too."""
        makers = {layer.name: layer.out for layer in self.layers}
        places = {name: iter(found) for name, found in self.external.items()}
        for part in parts:
            command, = part.commands
            out = makers[command.layer]
            if out in places and command.opcode == Opcode.FORWARD:  # a batch norm has statistics before
                page, beats = next(places[out])
                part = replace(part, commands=(replace(command, spill=1, external=page, beats=beats),))
            yield part

    def refetches(self, time: int) -> list[Command]:
        """What is asked back before the commands of a time."""
        found = []
        for name in self.memory.refetches.get(time, ()):
            places = self.external[name]
            base = self.memory.activations[name]
            if name not in self.makers:  # the image, pixel by pixel
                (page, beats), = places
                found.append(Command(
                    opcode=Opcode.REFETCH, layer=name, out_base=base, last_rows=1, blocks=1,
                    out_plane=vectors(self.layers[0].in_shape), external=page, beats=beats,
                    alternate=self.image_pages, everywhere=int(self.machine.elements > 1)))
                continue
            layer, rows, own = self.makers[name], self._made_at_once(name), self.numbers[name] in self.own_tables
            channels, height, width = layer.out_shape
            block = height * width * self.machine.rows if channels > self.machine.all_rows else 0
            for (first, blocks), (page, beats) in zip(self._parts(name), places, strict=True):
                found.append(Command(
                    opcode=Opcode.REFETCH, layer=layer.name, out_base=base + first * block, out_plane=height * width,
                    out_block=block, external=page, beats=beats, own=int(own),
                    **self._blocks(min(channels, (first + blocks) * rows) - first * rows, own=own)))
        return found

    def backward(self, k: int, add: str | None) -> list[Part]:
        """One command for each phase of the source map."""
        commands = [self._backward_phase(k, add, phase) for phase in phases(self.layers[k])]
        if k in self.panels:
            return self._in_panels(commands, self.panels[k].backward)
        return [Part(commands=tuple(commands))]

    def _backward_phase(self, k: int, add: str | None, phase: tuple[int, int]) -> Command:
        layer, memory = self.layers[k], self.memory
        source = self.makers[layer.x]
        channels, height, width = layer.in_shape
        own = self.machine.elements > 1
        y, x = axes = PhaseAxis.of(layer, 0, phase[0]), PhaseAxis.of(layer, 1, phase[1])
        table = self.lists.backward(self.items[k], memory.gradients[layer.out], layer.out_shape, axes,
                                    self.panels[k].backward_columns if k in self.panels else {})
        base, first = memory.gradients[layer.x], phase[0] * width + phase[1]
        added = {} if add is None else self._added(memory.gradients[layer.x], memory.gradients[add])
        assert layer.input_gradient_format is not None
        return Command(
            opcode=Opcode.BACKWARD, layer=layer.name, table=table, own=int(own), **self._blocks(channels, own=own),
            kernel_y=y.taps, kernel_x=x.taps, pad_y=y.pad, pad_x=x.pad,
            source_y=layer.conv_shape[1], source_x=layer.conv_shape[2], out_y=y.size, out_x=x.size,
            **self._tile(layer, layer.conv_shape),
            pool_source=int(layer.pool), gradient_x=layer.out_shape[2], out_base=base + first,
            out_block=height * width, out_plane=height * width, out_step=layer.stride[1],
            out_skip=layer.stride[0] * width - (x.size - 1) * layer.stride[1],
            **added,
            mask_base=memory.activations[layer.x] + first, rectify=int(source.rectify),
            limit=layer.input_gradient_format.high, bound=self._bound(layer.x_format.high, source, 1),
            shift=self._shift(layer, "BP", layer.gradient_format.frac + layer.weight_format.frac,
                              layer.input_gradient_format.frac))

    def step(self, step: Step, rules: Rules) -> list[Part]:
        """A step of the backward pass."""
        match step.opcode:
            case Opcode.BACKWARD:
                return self.backward(step.layer, step.add)
            case Opcode.FORWARD:
                return [Part(commands=(self._slopes(step.layer),))]
            case _ if self.layers[step.layer].norm is not None:
                return [Part(commands=(self._gradient_sums(step.layer, rules),))]
            case _:
                return self.update(step.layer, rules)

    def update(self, k: int, rules: Rules) -> list[Part]:
        command = self._update(k, rules)
        if k not in self.panels:
            return [Part(commands=(command,))]
        return [Part(commands=(self._piece(command, piece),), panel=piece.panel, state=True)
                for piece in self.panels[k].update]

    def _piece(self, command: Command, piece: Piece) -> Command:
        """WU of some blocks, or of some entries of one, for which pointers are added."""
        cut = replace(self._cut(command, piece.panel.first, piece.panel.blocks), first_column=piece.column)
        if piece.entries is None:
            return cut
        return replace(cut, table=self.lists.part(cut.table, cut.kernel_y * cut.kernel_x + 1, *piece.entries))

    def _norm(self, k: int, mode: NormMode) -> dict[str, int]:
        """What all commands of a batch norm's scalars share."""
        layer, item = self.layers[k], self.items[k]
        assert layer.norm is not None, "it is one"
        backward = mode == NormMode.BACKWARD
        made = (layer.norm.slope_format if backward else None) or layer.weight_format
        return {"norm": 1, "norm_mode": mode, "norm_base": self.channels[layer.out],
                "norm_count": layer.conv_shape[0], "norm_column": item.bias_columns[0] + item.slopes * backward,
                "word_frac": _signed(made.frac), "word_limit": made.high, "epsilon": binary32(layer.norm.epsilon)}

    def _sums(self, k: int, gradient: Fixed, rule: ScalarSgd) -> dict[str, int]:
        """WU whose sums are those of a batch norm: of products of its input with words of the format ``gradient``."""
        layer = self.layers[k]
        values = self.machine.lanes * layer.conv_shape[1] * layer.conv_shape[2]
        return {"diagonal": 1, "sum_frac": _signed(layer.x_format.frac + gradient.frac),
                "share": binary32(share(values)), "following": binary32(following(values)),
                "norm_momentum": binary32(rule.momentum), "norm_rate": binary32(rule.rate),
                "norm_decay": binary32(rule.decay)}

    def _from_running(self, k: int) -> Command:
        return Command(opcode=Opcode.NORM, layer=self.layers[k].name, **self._norm(k, NormMode.RUNNING))

    def _statistics(self, k: int, rules: Rules) -> Command:
        """The input stands in for the gradient."""
        layer = self.layers[k]
        return Command(opcode=Opcode.UPDATE, layer=layer.name, **self._source(k), gradient_x=layer.in_shape[2],
                       out_base=self.memory.copies[layer.x], out_block=layer.in_shape[1] * layer.in_shape[2],
                       **self._norm(k, NormMode.FORWARD), **self._sums(k, layer.x_format, _scalar_rule(rules, layer)))

    def _gradient_sums(self, k: int, rules: Rules) -> Command:
        layer = self.layers[k]
        return Command(opcode=Opcode.UPDATE, layer=layer.name, **self._source(k), pool_source=int(layer.pool),
                       gradient_x=layer.out_shape[2], out_base=self.memory.gradients[layer.out],
                       out_block=layer.out_shape[1] * layer.out_shape[2], **self._norm(k, NormMode.BACKWARD),
                       **self._sums(k, layer.gradient_format, _scalar_rule(rules, layer)))

    def _slopes(self, k: int) -> Command:
        """The part of the gradient of a batch norm's input that this input makes."""
        layer, item = self.layers[k], self.items[k]
        assert layer.norm and layer.norm.slope_format and layer.input_gradient_format, "there is a gradient"
        table = self._list(k, item.slope_columns)
        plane = layer.in_shape[1] * layer.in_shape[2]
        return Command(
            opcode=Opcode.FORWARD, layer=layer.name, **{**self._source(k), "table": table}, target=3,
            out_base=self.memory.gradients[layer.x], out_plane=plane, out_step=1, out_skip=1, out_block=plane,
            limit=layer.input_gradient_format.high,
            shift=self._shift(layer, "BP", layer.x_format.frac + layer.norm.slope_format.frac,
                              layer.input_gradient_format.frac))

    def _update(self, k: int, rules: Rules) -> Command:
        layer = self.layers[k]
        assert layer.weight is not None and layer.weight_gradient_format is not None, "it is trained"
        rule = rules[layer.weight]
        assert isinstance(rule, BufferedSgd) and rule.weight == layer.weight_format, "an update rule for another format"
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


def _scalar_rule(rules: Rules, layer: Layer) -> ScalarSgd:
    rule = rules[layer.weight or ""]
    assert isinstance(rule, ScalarSgd), "scale and shift are scalars"
    return rule


def _signed(frac: int) -> int:
    """A number of fraction bits as a field."""
    return frac % (1 << FRAC_BITS)


def rule_fields(rule: BufferedSgd) -> dict[str, int]:
    """An update rule as command fields."""
    return {"rate": rule.rate.word, "rate_shift": rule.rate.shift, "momentum": rule.momentum.word,
            "momentum_shift": rule.momentum.shift, "decay": rule.decay.word, "decay_shift": rule.decay.shift}
