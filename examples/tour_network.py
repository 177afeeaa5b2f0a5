"""The network of the tour: compiled, one training step of it, and what the Program alone says of that step."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import nn

from espalier.compiler.legalise import Layer, legalise
from espalier.compiler.machine_choice import Constraints, choose_machine
from espalier.compiler.pipeline import compile_program
from espalier.compress.magnitude import Magnitude
from espalier.data import load, normalise
from espalier.engines.base import Network
from espalier.engines.interpreter import InterpreterEngine
from espalier.frontend.torch_export import from_torch
from espalier.ir.differentiate import differentiate, gradient_name
from espalier.ir.types import Value
from espalier.numerics.fixed import Fixed
from espalier.program.program import Command, Entry, Program
from espalier.program.words import Opcode
from espalier.train.calibrate import calibrate
from espalier.train.optimise import Sgd, buffered_rule
from espalier.zoo.initialise import initialise

ROWS, LANES = 2, 4
LAYER, WEIGHT = "conv2", "conv2.weight"
SGD = Sgd(learning_rate=0.01, momentum=0.9, weight_decay=1e-3)
Words = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tour:
    """A network compiled, one of its training steps, and the weight, image and pixel that are followed.

    Members
    -------
    before : mapping
        Weights, masters and momenta at the beginning of the step (the network's second).
    step : mapping
        Every tensor of the step and the state after it.
    o, i, ky, kx, lane, y, x : int
        Output channel, input channel and tap of the weight; image; pixel of the convolution's result.
    """

    network: Network
    layer: Layer
    real: NDArray[np.float64]
    before: dict[str, Words]
    step: dict[str, Words]
    labels: Words
    o: int
    i: int
    ky: int
    kx: int
    lane: int
    y: int
    x: int

    @property
    def program(self) -> Program:
        return self.network.program

    @property
    def source(self) -> tuple[int, int]:
        """The pixel of the convolution's input that the weight meets at (y, x)."""
        return self.y + self.ky - self.layer.pad[0], self.x + self.kx - self.layer.pad[1]

    @property
    def index(self) -> tuple[int, int, int, int]:
        """The weight's place in its tensor."""
        return self.o, self.i, self.ky, self.kx

    @property
    def block(self) -> tuple[int, int]:
        """First column of the weight's block, and which column of the block is the weight's."""
        return self.place[0] - self.i % ROWS, self.i % ROWS

    @property
    def place(self) -> tuple[int, int]:
        """Column and bank of the followed weight."""
        return divmod(int(self.program.addresses[WEIGHT][self.o, self.i, self.ky, self.kx]), ROWS)

    def command(self, opcode: Opcode) -> Command:
        """The training command of the followed layer in one phase."""
        return next(c for c in self.program.commands if c.opcode is opcode and c.layer == LAYER)

    def gradient(self) -> Words:
        """The gradient of the convolution's result (N, O, H, W), unpooled and masked."""
        return self.step[gradient_name(LAYER)]


def module() -> nn.Sequential:
    """2C3–P–4C3–P–FC for 8×8 digits, with rectifiers."""
    return nn.Sequential(OrderedDict([
        ("conv1", nn.Conv2d(1, 2, 3, padding=1)), ("relu1", nn.ReLU()), ("pool1", nn.MaxPool2d(2)),
        (LAYER, nn.Conv2d(2, 4, 3, padding=1)), ("relu2", nn.ReLU()), ("pool2", nn.MaxPool2d(2)),
        ("flatten", nn.Flatten()), ("fc", nn.Linear(16, 10))]))


def prepare() -> Tour:
    """Import, calibrate, prune half of the blocks of one layer, compile, and run two training steps."""
    torch_module = module()
    initialise(torch_module, seed=3)
    train = normalise(load("digits")).train
    graph, real = from_torch(torch_module, (1, 8, 8), "tour")
    fixed = calibrate(graph, real, train.images[:256], train.labels[:256], batch=LANES)
    live = {value.name: np.ones(value.shape, dtype=np.bool_) for value in fixed.graph.parameters}
    live |= Magnitude(density=0.5, rows=ROWS)({WEIGHT: real[WEIGHT]})
    step = differentiate(fixed.graph, formats=fixed.gradient_formats)
    rules = {value.name: buffered_rule(SGD, LANES, fixed_format(value),
                                       fixed_format(step.value(gradient_name(value.name))))
             for value in fixed.graph.parameters}
    layers, loss = legalise(step)
    machine = choose_machine(layers, loss, live, Constraints(rows=ROWS, lanes=LANES))
    program = compile_program(fixed.graph, loss="softmax_cross_entropy", gradient_formats=fixed.gradient_formats,
                              live=live, rules=rules, machine=machine)
    network = Network(graph=step, program=program, rules=rules, live=live)
    engine = InterpreterEngine(network)
    engine.load({name: np.where(live[name.removesuffix(".master").removesuffix(".momentum")], words, 0)
                 for name, words in fixed.state.items() if not name.endswith(".live")})
    images = fixed_format(fixed.graph.inputs[0]).quantise(train.images[: 2 * LANES])
    engine.traced_step(images[:LANES], train.labels[:LANES])
    before = engine.state()
    seen = engine.traced_step(images[LANES:], train.labels[LANES: 2 * LANES])
    layer = next(layer for layer in layers if layer.name == LAYER)
    return Tour(network=network, layer=layer, real=real[WEIGHT], before=before, step=seen,
                labels=train.labels[LANES: 2 * LANES], **chosen(layer, live[WEIGHT], seen))


def fixed_format(value: Value) -> Fixed:
    """The format of a value of a network in fixed point."""
    assert isinstance(value.format, Fixed), f"{value} is not in fixed point"
    return value.format


def chosen(layer: Layer, live: NDArray[np.bool_], seen: dict[str, Words]) -> dict[str, int]:
    """The live weight, image and pixel with the largest product of activation and gradient, away from block (0, 0)."""
    source, gradient = seen[layer.x], seen[gradient_name(LAYER)]
    top, left = layer.pad
    padded = np.pad(source, ((0, 0), (0, 0), (top, top), (left, left)))
    best, found = 0, {}
    for o, i, ky, kx in np.argwhere(live).tolist():
        if o < ROWS or not i % ROWS:
            continue
        height, width = gradient.shape[2:]
        product = np.abs(padded[:, i, ky: ky + height, kx: kx + width] * gradient[:, o])
        if product.max() > best:
            lane, y, x = (int(k) for k in np.unravel_index(product.argmax(), product.shape))
            best, found = product.max(), {"o": o, "i": i, "ky": ky, "kx": kx, "lane": lane, "y": y, "x": x}
    return found


@dataclass(frozen=True, slots=True)
class Step:
    """One cycle of the lattice: an index entry, a channel of its block, and a position in the source map."""

    entry: Entry
    term: int
    y: int
    x: int


def tile_steps(program: Program, command: Command, block: int, y: int, x: int) -> Iterator[Step]:
    """The steps of the tile at pixel (y, x) of a block of results, FP or BP; taps outside the map are left out."""
    slot = command.table + block * (command.kernel_y * command.kernel_x + 1)
    for entry in program.entries[program.table[slot]: program.table[slot + 1]]:
        yield Step(entry, 0, y, x)  # the bias
    for ky in range(command.kernel_y):
        for kx in range(command.kernel_x):
            slot += 1
            here_y, here_x = y + ky - command.pad_y, x + kx - command.pad_x
            if 0 <= here_y < command.source_y and 0 <= here_x < command.source_x:
                for entry in program.entries[program.table[slot]: program.table[slot + 1]]:
                    yield from (Step(entry, term, here_y, here_x) for term in range(entry.count))


def tiles(command: Command) -> Iterator[tuple[int, int, int]]:
    """Block and pixel of each tile in order: raster order, or with pooling window by window."""
    edge = 2 if command.pool_out else 1
    for block in range(command.blocks):
        for top in range(0, command.out_y, edge):
            for left in range(0, command.out_x, edge):
                yield from ((block, top + k // edge, left + k % edge) for k in range(edge * edge))


def forward_operands(tour: Tour, step: Step) -> tuple[int, list[int]]:
    """The activation of the followed image, and the weight of each row: a column of the block."""
    command, weights = tour.command(Opcode.FORWARD), tour.program.memory_images(tour.before)["weights"]
    column = step.entry.column + step.term
    b = [int(weights[column * ROWS + (row + step.term) % ROWS]) for row in range(ROWS)]
    if step.entry.one:
        return command.one, b
    channel = (step.entry.channel - activation_base(tour)) // command.source_plane + step.term
    return int(tour.step[tour.layer.x][tour.lane, channel, step.y, step.x]), b


def backward_operands(tour: Tour, step: Step) -> tuple[int, list[int]]:
    """The gradient of the followed image, and the weight of each row: a row of the block, one address a bank."""
    weights = tour.program.memory_images(tour.before)["weights"]
    b = []
    for row in range(ROWS):
        bank = (row + step.term) % ROWS
        b.append(int(weights[(step.entry.column + (bank - step.term) % ROWS) * ROWS + bank]))
    plane = tour.layer.out_shape[1] * tour.layer.out_shape[2]
    channel = (step.entry.channel - gradient_base(tour)) // plane * ROWS + step.term
    return int(tour.gradient()[tour.lane, channel, step.y, step.x]), b


def activation_base(tour: Tour) -> int:
    """Address of the layer's input."""
    return next(p.base for p in tour.program.placements if p.value == tour.layer.x)


def gradient_base(tour: Tour) -> int:
    """Address, in each bank, of the gradient of the layer's result."""
    return next(p.base for p in tour.program.placements if p.value == gradient_name(LAYER))
