"""The compiled step equals the interpreter, word for word, and is left out where there is no compiler."""

from __future__ import annotations

import platform
from math import prod

import numpy as np
import pytest
import torch
from bench.draws import Draw, draws, words
from bench.random_networks import chains
from numpy.typing import NDArray

from espalier.errors import GraphError
from espalier.ir import ops
from espalier.ir.differentiate import differentiate, gradient_name
from espalier.ir.graph import Graph
from espalier.ir.interpret import interpret
from espalier.ir.types import Fixed, Format, Value
from espalier.numerics.update import GRADIENT_BITS
from espalier.numerics.window import Window
from espalier.train import native_code
from espalier.train.convolve import Rounding
from espalier.train.evaluate import run, to_array, to_tensor
from espalier.train.native_step import compiled
from espalier.train.optimise import Optimiser, Sgd, Update

CLASSES = 5
LOSSES = ("softmax_cross_entropy", "square_hinge")


def check(step: Graph, random: np.random.RandomState, batch: int, extreme: bool, density: float,
          room: int = 0) -> None:
    """Hold a step on random words against the interpreter; the native one is compiled for ``room`` images more.

    Where words are wider than native code has, there must be none, and the slower path is held against it.
    """
    native = compiled(step, batch + room)
    assert (native is None) == any(width(value) > 16 for value in carried(step))
    image, labels = step.inputs
    arrays = {value.name: words(random, value.format, value.shape, extreme) for value in step.parameters}
    live = {name: random.rand(*array.shape) < density for name, array in arrays.items()}
    arrays = {name: np.where(live[name], array, 0) for name, array in arrays.items()}
    arrays[image.name] = words(random, image.format, (batch, *image.shape), extreme)
    arrays[labels.name] = random.randint(0, step.outputs[1].shape[0], batch)
    expected = interpret(step, arrays)
    names = [value.name for value in step.parameters]
    if native is None:
        formats = {value.name: value.format for value in step.values()}
        slow = run(step, {name: to_tensor(array, formats[name]) for name, array in arrays.items()})
        assert all(np.array_equal(to_array(slow[name], formats[name]), array) for name, array in expected.items())
        return
    loss, logits, sums = native.train(
        torch.tensor(arrays[image.name], dtype=torch.int16), torch.tensor(arrays[labels.name]),
        flat([arrays[name] for name in names]), flat([live[name] for name in names]))
    assert np.array_equal(loss.numpy(), expected[step.outputs[0].name])
    assert np.array_equal(logits.numpy(), expected[step.outputs[1].name])
    for name, part, rounding in zip(names, sums.split([arrays[name].size for name in names]), native.roundings,
                                    strict=True):
        want = expected[gradient_name(name)] * live[name]
        assert np.array_equal(rounding(part).numpy().reshape(want.shape), want), name


def width(value: Value) -> int:
    return value.format.width if isinstance(value.format, Fixed) else 0


def carried(step: Graph) -> list[Value]:
    """What native code holds in words: maps, and the weights that multiply them; not biases, sums and losses."""
    weights = {layer.w for layer in step.layers()}
    gradients = {gradient_name(value.name) for value in step.parameters}
    return [value for value in step.values() if value in weights or not (
        value in step.parameters or value in step.outputs[:1] or value.name in gradients)]


def flat(arrays: list[NDArray]) -> torch.Tensor:
    return torch.tensor(np.concatenate([array.reshape(-1) for array in arrays]), dtype=torch.float64)


class Network:
    """A random network while it grows: any window, groups, branches, every pool; formats of its own or one for all.

    ``widest``: bits of a word. Of ``far`` formats the binary point lies anywhere, also outside the word.
    """

    def __init__(self, draw: Draw, widest: int = 16, far: bool = False) -> None:
        self.draw, self.widest, self.far = draw, widest, far
        self.common = self.format() if draw.integer(0, 1) else None
        self.made: list[ops.Op] = []
        self.parameters: list[Value] = []
        self.end = self.image = self.value("image", draw.integer(1, 3), draw.integer(5, 9), draw.integer(5, 9))

    def format(self, coarsest: int = 0, finest: int = 5) -> Fixed:
        if self.far:
            coarsest, finest = coarsest - 8, finest + 8
        return Fixed.of(self.draw.integer(2, self.widest), self.draw.integer(coarsest, finest))

    def value(self, name: str, *shape: int, format_: Fixed | None = None) -> Value:
        return self.draw.value(f"{name}{len(self.made)}", *shape, format_=format_ or self.common or self.format())

    def parameter(self, name: str, *shape: int) -> Value:
        self.parameters.append(self.value(name, *shape, format_=self.format(5, 14)))
        return self.parameters[-1]

    def bias(self, outputs: int, weight: Value) -> Value:
        """One that is no finer than the sums it is added to."""
        assert isinstance(self.end.format, Fixed) and isinstance(weight.format, Fixed)
        frac = self.end.format.frac + weight.format.frac - self.draw.integer(0, 9)
        self.parameters.append(self.value("b", outputs, format_=Fixed.of(self.draw.integer(2, self.widest), frac)))
        return self.parameters[-1]

    def add(self, kind: type[ops.Op], shape: tuple[int, ...], *rest: object, format_: Fixed | None = None) -> None:
        out = self.value(kind.__name__, *shape, format_=format_)
        self.made.append(kind(out, self.end, *rest))
        self.end = out

    def convolve(self) -> None:
        draw, channels = self.draw, self.end.shape[0]
        groups = channels if draw.integer(0, 3) == 0 else 1
        window = draw.window()
        try:
            size = window.out_size(*self.end.shape[1:])
        except GraphError:
            window, size = Window((1, 1)), (self.end.shape[1], self.end.shape[2])
        outputs = groups * draw.integer(1, 2) if groups > 1 else draw.integer(1, 9)
        weight = self.parameter("w", outputs, channels // groups, *window.kernel)
        bias = self.bias(outputs, weight) if draw.integer(0, 1) else None
        self.add(ops.Conv2d, (outputs, *size), weight, bias, window, groups)

    def branch(self) -> None:
        start = self.end
        weight = self.parameter("w", start.shape[0], start.shape[0], 3, 3)
        self.add(ops.Conv2d, start.shape, weight, None, Window((3, 3), pad=(1, 1, 1, 1)), 1)
        self.add(ops.Add, start.shape, start)

    def rectify(self) -> None:
        self.add(ops.Relu, self.end.shape)

    def clip(self) -> None:
        self.add(ops.ClippedRelu, self.end.shape, self.draw.integer(1, 6))

    def concatenate(self) -> None:
        """With another convolution of the same, or the same again."""
        start = self.end
        if self.draw.integer(0, 1):
            weight = self.parameter("w", self.draw.integer(1, 3), start.shape[0], 1, 1)
            self.add(ops.Conv2d, (weight.shape[0], *start.shape[1:]), weight, None, Window((1, 1)), 1)
        self.add(ops.Concat, (self.end.shape[0] + start.shape[0], *start.shape[1:]), start)

    def pool(self) -> None:
        channels, *size = self.end.shape
        window = self.draw.window(pools=True) if self.draw.integer(0, 1) else Window((2, 2), (2, 2))
        try:
            self.add(ops.MaxPool if self.draw.integer(0, 2) else ops.AveragePool,
                     (channels, *window.out_size(*size)), window)
        except GraphError:
            self.add(ops.GlobalAveragePool, (channels, 1, 1))

    def finished(self) -> Graph:
        assert isinstance(self.end.format, Fixed)
        if self.draw.integer(0, 1):
            self.add(ops.GlobalAveragePool, (self.end.shape[0], 1, 1))
        self.add(ops.Reshape, (prod(self.end.shape),), format_=self.end.format)
        self.add(ops.Linear, (CLASSES,), self.parameter("w", CLASSES, *self.end.shape), None)
        return Graph("random", (self.image,), tuple(self.parameters), tuple(self.made), (self.end,))

    def gradient_formats(self, graph: Graph) -> dict[str, Format]:
        parameters = {value.name for value in self.parameters}
        return {gradient_name(value.name): Fixed.of(GRADIENT_BITS, self.draw.integer(-2, 0))
                if value.name in parameters else self.common or self.format() for value in graph.values()}


@pytest.mark.parametrize(("widest", "far"), [(16, False), (16, True), (18, True)])
def test_any_network(widest: int, far: bool) -> None:
    draws(lambda draw: check_network(Network(draw, widest, far)))()


def check_network(network: Network) -> None:
    draw = network.draw
    steps = [network.convolve, network.branch, network.rectify, network.pool, network.clip, network.concatenate]
    network.convolve()
    for _ in range(draw.integer(0, 6)):
        steps[draw.integer(0, 5)]()
    if any(isinstance(op, ops.Conv2d) for op in network.made[-1:]):
        network.rectify()
    graph = network.finished()
    loss = LOSSES[0]
    step = differentiate(graph, loss, network.gradient_formats(graph))
    check(step, draw.random, draw.batch, draw.extreme, draw.integer(1, 4) / 4)


@draws
def test_any_network_of_the_engine(draw: Draw) -> None:
    loss = LOSSES[draw.integer(0, 1)]
    chain = draw.data.draw(chains(16, 1, loss == "square_hinge"))
    graph = Graph("chain", (chain.image,), tuple(chain.parameters), tuple(chain.ops), (chain.x,))
    check(differentiate(graph, loss, chain.gradient_formats), draw.random, draw.batch, draw.extreme, 0.6)


def convolution(channels: int, outputs: int, size: int, window: Window, shift: int = 9) -> Graph:
    """A convolution of 16-bit words, whose results are rectified and read by a linear layer; as a training step.

    ``shift``: the bits that the convolution's sums lose.
    """
    word, fine, result = Fixed.of(16, 4), Fixed.of(16, 9), Fixed.of(16, 13 - shift)
    out = (outputs, *window.out_size(size, size))
    draw = Draw(None, None, False, 0)
    image, w = draw.value("x", channels, size, size, format_=word), draw.value("w", outputs, channels, *window.kernel,
                                                                              format_=fine)
    y, r = draw.value("y", *out, format_=result), draw.value("r", *out, format_=result)
    flat, v = draw.value("flat", prod(out), format_=result), draw.value("v", CLASSES, prod(out), format_=fine)
    z = draw.value("z", CLASSES, format_=word)
    graph = Graph("one", (image,), (w, v), (ops.Conv2d(y, image, w, None, window), ops.Relu(r, y), ops.Reshape(flat, r),
                                            ops.Linear(z, flat, v, None)), (z,))
    names = [gradient_name(value.name) for value in graph.values()]
    return differentiate(graph, LOSSES[0], {**dict.fromkeys(names, Fixed.of(16, 14)),
                                            "w.grad": Fixed.of(32, 0), "v.grad": Fixed.of(32, 0)})


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("batch", [1, 9, 17, 33, 70])
def test_any_batch_on_any_number_of_threads(batch: int, threads: int) -> None:
    step, random = convolution(5, 8, 9, Window((3, 2), (2, 1), (1, 0, 0, 1))), np.random.RandomState(batch)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        check(step, random, batch, False, 0.5, room=3)
    finally:
        torch.set_num_threads(before)


def test_a_smaller_batch_after_a_larger_one() -> None:
    """Lanes without an image hold nothing of the batch before."""
    step, random = convolution(2, 4, 5, Window((3, 3))), np.random.RandomState(1)
    native = compiled(step, 40)
    assert native is not None
    parameters = flat([random.randint(-99, 99, value.shape) for value in step.parameters])
    images = torch.tensor(random.randint(-99, 99, (40, 2, 5, 5)), dtype=torch.int16)
    labels = torch.tensor(random.randint(0, CLASSES, 40))
    alone = compiled(step, 3)
    assert alone is not None
    native.train(images, labels, parameters, torch.ones_like(parameters))
    results = [each.train(images[:3], labels[:3], parameters, torch.ones_like(parameters)) for each in (native, alone)]
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


INSTRUCTIONS = [("-march=native",), *([("-march=x86-64-v3",), ("-march=x86-64",), ("-march=x86-64", "-U__SSE2__")]
                                      if platform.machine() == "x86_64" else [])]


@pytest.mark.parametrize("options", INSTRUCTIONS, ids=" ".join)
@pytest.mark.usefixtures("native_code_anew")
def test_any_processor_with_sums_of_any_size(monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]) -> None:
    """Small words are summed in 32 bits, larger ones carried after fewer and fewer, and the largest need 64 bits."""
    if options == ("-march=x86-64-v3",) and not torch.backends.cpu.get_cpu_capability().startswith("AVX"):
        options = ("-march=x86-64",)
    monkeypatch.setattr(native_code, "OPTIONS", ("-O1", *options))
    step = convolution(11, 4, 12, Window((10, 10)))
    for largest in (90, 3000, 5000, 12000, 20000, 2**15):
        random = np.random.RandomState(largest)
        native = compiled(step, 35)
        assert native is not None
        x, w, v = (random.choice([-largest, largest - 1], shape)
                   for shape in ((35, 11, 12, 12), (4, 11, 10, 10), (CLASSES, 36)))
        w[:, :, 0] = 0
        x[:, 0], w[:, 0] = largest - 1, -largest  # sums that do not cancel
        v //= 64
        labels = random.randint(0, CLASSES, 35)
        expected = interpret(step, {"x": x, "w": w, "v": v, "labels": labels})
        parameters = flat([w, v])
        _, logits, sums = native.train(torch.tensor(x, dtype=torch.int16), torch.tensor(labels), parameters,
                                       torch.ones_like(parameters))
        assert np.array_equal(logits.numpy(), expected["z"])
        found = native.roundings[0](sums[: w.size]).numpy().reshape(w.shape)
        assert np.array_equal(found, expected["w.grad"])


@pytest.mark.parametrize("shift", [-2, 0, 1, 5, 14, 15, 16, 17, 22, 30, 31, 46, 47])
@pytest.mark.parametrize("live", [0.2, 1.0])
def test_carried_sums_shifted_by_any_number_of_bits(shift: int, live: float) -> None:
    """The largest words are where weights are zero, so that no bound knows how small the sums are."""
    step, random = convolution(11, 4, 7, Window((5, 5)), shift), np.random.RandomState(shift + 2)
    native = compiled(step, 35)
    assert native is not None
    largest = np.array([3, 200, 5000, 2**15]).reshape(4, 1, 1, 1)
    w = np.floor(random.uniform(-largest, largest, (4, 11, 5, 5))) * (random.rand(4, 11, 5, 5) < live)
    x, v = random.randint(-9, 10, (35, 11, 7, 7)), random.randint(-99, 100, (CLASSES, 36))
    x[:, 0], w[:, 0] = 2**15 - 1, 0
    arrays = {"x": x, "w": w.astype(np.int64), "v": v, "labels": random.randint(0, CLASSES, 35)}
    expected = interpret(step, arrays)
    parameters = flat([w, v])
    _, logits, sums = native.train(torch.tensor(x, dtype=torch.int16), torch.tensor(arrays["labels"]), parameters,
                                   torch.ones_like(parameters))
    assert np.array_equal(logits.numpy(), expected["z"])
    assert np.array_equal(native.roundings[1](sums[w.size:]).numpy().reshape(v.shape), expected["v.grad"])


@pytest.mark.parametrize("update", [Update.BUFFERED, Update.UNBUFFERED, Update.NARROW])
def test_an_update_from_sums(update: Update) -> None:
    """Equal to the update from rounded gradients."""
    step, random = convolution(3, 4, 6, Window((3, 3))), np.random.RandomState(3)
    native = compiled(step, 8)
    assert native is not None
    formats = {gradient_name(value.name): step.value(gradient_name(value.name)).format for value in step.parameters}
    both = []
    for _ in range(2):
        optimiser = Optimiser(step.parameters, formats, update, 8)
        optimiser.set(Sgd(2.0 ** -12, 0.9, 0.0))
        start = np.random.RandomState(5)
        for tensor in optimiser.state_tensors:
            tensor.copy_(torch.tensor(start.randint(-2**13, 2**13, tensor.shape)))
        optimiser.prune({"w": np.random.RandomState(6).rand(4, 3, 3, 3) < 0.5})
        both.append(optimiser)
    for scale in (1, 2**20, 2**35):
        sums = torch.tensor(random.randint(-999, 999, both[0].weight.shape) * scale, dtype=torch.float64)
        both[0].step_sums(sums, native.roundings)
        sizes = [prod(value.shape) for value in step.parameters]
        both[1].step({gradient_name(value.name): rounding(part) for value, rounding, part in zip(
            step.parameters, native.roundings, sums.split(sizes), strict=True)})
        for ours, theirs in zip(both[0].state_tensors, both[1].state_tensors, strict=True):
            assert torch.equal(ours, theirs)


def test_an_update_whose_gradients_are_shifted_away() -> None:
    """By 54 bits and more nothing is left, though a double would round the largest sums up to one."""
    step, random = convolution(1, 1, 3, Window((1, 1))), np.random.RandomState(4)
    formats = {gradient_name(value.name): step.value(gradient_name(value.name)).format for value in step.parameters}
    optimiser = Optimiser(step.parameters, formats, Update.BUFFERED, 8)
    optimiser.set(Sgd(2.0 ** -12, 0.0, 0.0))
    optimiser.master.copy_(torch.tensor(random.randint(-999, 999, optimiser.master.shape)))
    before = optimiser.master.clone()
    optimiser.step_sums(torch.full_like(before, 2.0 ** 53 - 1), [Rounding(54, -2**31, 2**31 - 1)] * 2)
    assert torch.equal(optimiser.master, before)


@pytest.mark.parametrize("batch", [3, 70])
def test_inference_keeps_no_maps(batch: int) -> None:
    """Chunks share the memory of their thread, and logits are those of training."""
    step, random = convolution(2, 4, 5, Window((3, 3))), np.random.RandomState(batch)
    graph = Graph("inference", step.inputs[:1], step.parameters, step.ops[:4], step.outputs[1:2])
    native, training = compiled(graph, batch), compiled(step, batch)
    assert native is not None and training is not None and len(native.own.arena) == 0 < len(training.own.arena)
    assert len(training.keeping(1).arena) == len(training.own.arena) // training.chunks(batch), "as large as its batch"
    parameters = flat([random.randint(-99, 99, value.shape) for value in graph.parameters])
    images = torch.tensor(random.randint(-99, 99, (batch, 2, 5, 5)), dtype=torch.int16)
    for part in (images, images[:2]):
        assert torch.equal(native.forward(part, parameters), training.forward(part, parameters))


def test_maps_share_memory_once_nothing_needs_them() -> None:
    """A deeper network takes no more memory to infer; a kernel wider than the others has a border of its own."""
    word, kernels = Fixed.of(16, 9), [3, 3, 5, 3, 3, 3, 5, 3]

    def chain(depth: int) -> Graph:
        draw = Draw(None, None, False, 0)
        values = [draw.value(f"x{layer}", 3, 6, 6, format_=word) for layer in range(depth + 1)]
        weights = [draw.value(f"w{layer}", 3, 3, size, size, format_=word)
                   for layer, size in enumerate(kernels[:depth])]
        layers = [ops.Conv2d(out, x, w, None, Window((size, size), pad=(size // 2,) * 4))
                  for x, out, w, size in zip(values, values[1:], weights, kernels, strict=False)]
        return Graph("chain", (values[0],), tuple(weights), tuple(layers), (values[-1],))

    shallow, deep = compiled(chain(5), 9), compiled(chain(len(kernels)), 9)
    assert shallow is not None and deep is not None and shallow.sizes == deep.sizes
    random = np.random.RandomState(0)
    for _ in range(2):
        x = random.randint(-300, 300, (9, 3, 6, 6))
        weights = {value.name: random.randint(-300, 300, value.shape) for value in deep.graph.parameters}
        expected = interpret(deep.graph, {"x0": x, **weights})
        found = deep.forward(torch.tensor(x, dtype=torch.int16), flat([*weights.values()]))
        assert np.array_equal(found.numpy(), expected[f"x{len(kernels)}"])


@pytest.mark.usefixtures("native_code_anew")
def test_without_a_compiler_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert compiled(convolution(1, 1, 3, Window((1, 1))), 2) is None


def test_what_the_list_does_not_know() -> None:
    """A weight that two layers share: its gradient has two parts."""
    draw, word = Draw(None, None, False, 0), Fixed.of(8, 4)
    image, w, v = (draw.value(name, *shape, format_=word) for name, shape in (
        ("x", (2, 3, 3)), ("w", (2, 2, 1, 1)), ("v", (3, 18))))
    a, b, flat_, z = (draw.value(name, *shape, format_=word) for name, shape in (
        ("a", (2, 3, 3)), ("b", (2, 3, 3)), ("flat", (18,)), ("z", (3,))))
    point = Window((1, 1))
    graph = Graph("shared", (image,), (w, v), (ops.Conv2d(a, image, w, None, point), ops.Conv2d(b, a, w, None, point),
                                               ops.Reshape(flat_, b), ops.Linear(z, flat_, v, None)), (z,))
    formats = {gradient_name(value.name): word for value in graph.values()}
    assert compiled(differentiate(graph, LOSSES[0], formats), 2) is None
    assert compiled(graph, 2) is not None
