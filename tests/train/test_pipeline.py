"""A pipeline in one process against its definition: which weights each batch meets, word for word."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
import torch
from bench.networks import Chain
from bench.normed import normed
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from espalier.errors import UnsupportedError
from espalier.ir.cut import cut_points, split
from espalier.ir.differentiate import differentiate, differentiate_parts, gradient_name
from espalier.ir.graph import Graph
from espalier.ir.interpret import evaluate, interpret
from espalier.ir.types import Fixed, Format, Value
from espalier.numerics.compensation import Compensation, compensated, predicted
from espalier.numerics.update import BufferedSgd
from espalier.train.calibrate import initial_state
from espalier.train.evaluate import run as run_graph
from espalier.train.optimise import Optimiser, Sgd, Update, buffered_rule
from espalier.train.pipeline import Given, Schedule, run, run_synchronously
from espalier.train.stage import Stage

BATCH = 5
SGD = Sgd(0.05, 0.9, 1e-3)
Arrays = dict[str, NDArray]


def chain() -> Chain:
    first = Chain((2, 8, 8)).conv(4, (3, 3), (1, 1, 1, 1)).relu().pool()
    return first.conv(6, (3, 3)).relu().linear(7).relu().linear(5)


def stages(graph: Graph, cuts: Sequence[str], state: Mapping[str, NDArray], formats: Mapping[str, Format],
           update: Update, compensated: bool = False) -> list[Stage]:
    parts, made = split(graph, cuts), []
    for number, (part, step) in enumerate(zip(parts, differentiate_parts(parts, formats=formats), strict=True)):
        delay = Schedule(len(parts)).delay(number) if compensated else 0
        optimiser = Optimiser(part.learned(), formats, update, BATCH, statistics=part.statistics(), delay=delay)
        optimiser.set(SGD)
        optimiser.load(state)
        made.append(Stage(step, optimiser))
    return made


def final(made: Sequence[Stage]) -> Arrays:
    return {name: array for stage in made for name, array in stage.optimiser.state().items()}


def batches(rng: np.random.Generator, count: int) -> list[tuple[NDArray, NDArray]]:
    return [(rng.integers(-3000, 3000, (BATCH, 2, 8, 8)), rng.integers(0, 5, BATCH)) for _ in range(count)]


def by_definition(parts: Sequence[Graph], steps: Sequence[Graph], state: Arrays, formats: Mapping[str, Format],
                  given: Sequence[tuple[NDArray, NDArray]], compensate: bool) -> Arrays:
    """W(t+1) = W(t) - step(g(x(t - D), W(t - D) forward, W(t) back)), one part and cycle after the other."""
    count, state = len(parts), {name: array.copy() for name, array in state.items()}
    met: dict[tuple[int, int], Arrays] = {}
    came: dict[tuple[int, int], NDArray] = {}
    gradients: dict[tuple[int, int], NDArray] = {}
    for cycle in range(len(given) + 2 * (count - 1)):
        for k, (part, step) in enumerate(zip(parts, steps, strict=True)):
            delay = 2 * (count - 1 - k)
            ahead, back, late = cycle - k, cycle - k - delay, delay if compensate else 0
            if 0 <= ahead < len(given):
                x = given[ahead][0] if k == 0 else came[k, ahead]
                weights = {value.name: foreseen(value, state, late) for value in part.parameters}
                values = interpret(part, {**weights, part.inputs[0].name: x})
                met[k, ahead], came[k + 1, ahead] = values, values[part.outputs[0].name]
            if 0 <= back < len(given):
                second = given[back][1] if k == count - 1 else gradients[k + 1, back]
                backward(step, met[k, back], state, second, gradients, (k, back))
                for value in part.parameters:
                    moved(value.name, rule_of(value.format, formats[gradient_name(value.name)]), late, state,
                          gradients.pop((value.name, back)))
    return state


def backward(step: Graph, met: Arrays, state: Arrays, second: NDArray, gradients: dict, key: tuple[int, int]) -> None:
    """Forward values as they were met, weights as they are."""
    values = {**met, **{value.name: state[value.name] for value in step.parameters}, step.inputs[1].name: second}
    for op in step.ops:
        if op.out.name not in met:
            values[op.out.name] = evaluate(op, *(values[value.name] for value in op.inputs))
    through = gradient_name(step.inputs[0].name)
    if through in values:
        gradients[key] = values[through]
    for value in step.parameters:
        gradients[value.name, key[1]] = values[gradient_name(value.name)]


def rule_of(weight: Format, gradient: Format) -> BufferedSgd:
    assert isinstance(weight, Fixed) and isinstance(gradient, Fixed)
    return buffered_rule(SGD, BATCH, weight, gradient)


def foreseen(value: Value, state: Arrays, delay: int) -> NDArray:
    assert isinstance(value.format, Fixed)
    return predicted(value.format, state[f"{value.name}.master"], state[f"{value.name}.momentum"], delay)


def moved(name: str, rule: BufferedSgd, delay: int, state: Arrays, gradient: NDArray) -> None:
    now = state[f"{name}.master"], state[f"{name}.momentum"], gradient
    how = Compensation.of(SGD.momentum, delay)
    state[f"{name}.master"], state[f"{name}.momentum"], state[name] = (
        compensated(rule, how, *now) if delay else rule(*now))


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("compensate", [False, True])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_weights_are_as_stale_as_defined(count: int, compensate: bool, native: bool) -> None:
    """Uncompensated, and with spikes and predicted weights."""
    rng, made = np.random.default_rng(count), chain()
    graph, formats = made.graph(), made.gradient_formats
    real = {value.name: rng.normal(0, 0.3, value.shape) for value in graph.parameters}
    state = initial_state(graph, real, Update.BUFFERED)
    points = [value.name for value in cut_points(graph)]
    cuts = [points[(k + 1) * len(points) // count] for k in range(count - 1)]
    pipeline, given = stages(graph, cuts, state, formats, Update.BUFFERED, compensate), batches(rng, 6)
    if not native:
        for stage in pipeline:
            stage.native = None
    kind = torch.int16 if native else torch.float64
    run(pipeline, Given([(torch.tensor(x).to(kind), torch.tensor(labels)) for x, labels in given]))
    parts = split(graph, cuts)
    expected = by_definition(parts, differentiate_parts(parts, formats=formats), state, formats, given, compensate)
    found = final(pipeline)
    assert any(not np.array_equal(found[name], state[name]) for name in real), "something was learned"
    for name, array in found.items():
        assert np.array_equal(array, expected[name]), name


def test_one_part_is_training_as_ever() -> None:
    """In float32, with batch norm: weights, momenta and running statistics."""
    graph, real = normed()
    rng, state = np.random.default_rng(0), initial_state(graph, real, Update.FLOAT)
    given = [(torch.tensor(rng.normal(size=(BATCH, *graph.inputs[0].shape)), dtype=torch.float32),
              torch.tensor(rng.integers(0, graph.outputs[0].shape[0], BATCH))) for _ in range(4)]
    pipeline = stages(graph, [], state, {}, Update.FLOAT)
    run(pipeline, Given(given))
    optimiser = Optimiser(graph.learned(), {}, Update.FLOAT, BATCH, statistics=graph.statistics())
    optimiser.set(SGD)
    optimiser.load(state)
    step = differentiate(graph)
    for images, labels in given:
        optimiser.step(run_graph(step, {**optimiser.weights, graph.inputs[0].name: images, "labels": labels}))
    expected = optimiser.state()
    for name, array in final(pipeline).items():
        assert np.array_equal(array, expected[name]), name
    assert pipeline[0].tally[0] > 0


def test_what_goes_on_is_not_kept() -> None:
    """The result of a part is the next one's, and what waits for its way back is as many batches as are under way."""
    rng, made = np.random.default_rng(0), chain()
    state = initial_state(made.graph(), {value.name: rng.normal(0, 0.3, value.shape) for value in made.parameters},
                          Update.BUFFERED)
    points = [value.name for value in cut_points(made.graph())]
    pipeline = stages(made.graph(), [points[1], points[4]], state, made.gradient_formats, Update.BUFFERED)
    x = torch.tensor(batches(rng, 1)[0][0]).short()
    found = weakref.ref(pipeline[0].forward(x))
    assert found() is None
    pipeline[0].under_way.clear()
    run(pipeline, Given([(x, torch.zeros(BATCH, dtype=torch.int64))] * 8))
    assert [len(stage.rooms) for stage in pipeline] == [5, 3, 1]


@given(st.integers(1, 8), st.integers(0, 20))
def test_every_batch_goes_through_every_part_and_back(parts: int, batches: int) -> None:
    schedule = Schedule(parts)
    cycles = range(schedule.cycles(batches))
    for part in range(parts):
        ahead = [schedule.forward(part, cycle) for cycle in cycles]
        back = [schedule.backward(part, cycle) for cycle in cycles]
        assert [b for b in ahead if 0 <= b < batches] == [b for b in back if 0 <= b < batches] == list(range(batches))
        assert schedule.delay(part) == 2 * (parts - 1 - part)
        for batch in range(batches):
            assert back.index(batch) - ahead.index(batch) == schedule.delay(part)
            if part + 1 < parts:
                assert schedule.backward(part + 1, back.index(batch) - 1) == batch, "its gradient is there just in time"


def test_a_pipeline_has_parts() -> None:
    with pytest.raises(UnsupportedError, match=r"^A pipeline has at least 1 part, not 0$"):
        Schedule(0)


def test_late_gradients_are_made_up_for_where_there_are_masters() -> None:
    graph = chain().graph()
    with pytest.raises(UnsupportedError, match=r"^Late gradients are made up for in the buffered update and in "
                                               r"float32, not in the narrow one$"):
        Optimiser(graph.parameters, {}, Update.NARROW, BATCH, delay=2)


@pytest.mark.parametrize("micro_batches", [1, 2, BATCH])
@pytest.mark.parametrize("count", [1, 3])
def test_a_synchronous_pipeline_is_training_as_ever(count: int, micro_batches: int) -> None:
    """Word for word, however a batch is parted."""
    rng, made = np.random.default_rng(count), chain()
    graph, formats = made.graph(), made.gradient_formats
    state = initial_state(graph, {value.name: rng.normal(0, 0.3, value.shape) for value in graph.parameters},
                          Update.BUFFERED)
    given = [(torch.tensor(x).short(), torch.tensor(labels)) for x, labels in batches(rng, 4)]
    alone = stages(graph, [], state, formats, Update.BUFFERED)
    run(alone, Given(given))
    points = [value.name for value in cut_points(graph)]
    pipeline = stages(graph, points[2: 1 + count], state, formats, Update.BUFFERED)
    run_synchronously(pipeline, Given(given), micro_batches)
    expected = final(alone)
    assert len(pipeline) == count and torch.equal(pipeline[-1].tally, alone[0].tally)
    for name, array in final(pipeline).items():
        assert np.array_equal(array, expected[name]), name


def test_rounded_gradients_do_not_add_up() -> None:
    rng, made = np.random.default_rng(0), chain()
    state = initial_state(made.graph(), {value.name: rng.normal(0, 0.3, value.shape) for value in made.parameters},
                          Update.BUFFERED)
    [stage] = stages(made.graph(), [], state, made.gradient_formats, Update.BUFFERED)
    stage.native, stage.rounded = None, True
    x, labels = batches(rng, 1)[0]
    with pytest.raises(UnsupportedError, match="^The gradients of several micro-batches add up exactly in native code "
                                               "or in float32: install a C.. compiler, or take whole batches$"):
        run_synchronously([stage], Given([(torch.tensor(x).double(), torch.tensor(labels))]), 2)
