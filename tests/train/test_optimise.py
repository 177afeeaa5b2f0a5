"""The flat optimiser equals the definitions of the update, word for word."""

from __future__ import annotations

from math import prod

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from espalier.errors import FormatError, UnsupportedError
from espalier.ir.types import FLOAT, Fixed, TensorType, Value
from espalier.numerics.compensation import Compensation, compensated_scalars, predicted_scalars
from espalier.numerics.scalar import scalar
from espalier.numerics.update import master_format
from espalier.train.optimise import (
    Optimiser,
    Sgd,
    Update,
    buffered_rule,
    narrow_rule,
    scalar_rule,
    state_names,
    unbuffered_rule,
)

SHAPES = {"a.w": (3, 2, 2, 2), "a.b": (3,), "f.w": (4, 5)}


def words(random: np.random.RandomState, format_: Fixed, shape: tuple[int, ...], extreme: bool) -> np.ndarray:
    if extreme:
        return np.where(random.randint(0, 2, shape) == 1, format_.high, format_.low).astype(np.int64)
    return random.randint(format_.low, format_.high + 1, shape, dtype=np.int64)


def start(random: np.random.RandomState, parameters: tuple[Value, ...], update: Update, extreme: bool
          ) -> dict[str, np.ndarray]:
    """A random state; a quarter of the weights are dead."""
    state = {}
    for value in parameters:
        assert isinstance(value.format, Fixed)
        names = state_names(value.name, update)
        live = random.randint(0, 4, value.shape) > 0
        wide = value.format if update is Update.NARROW else master_format(value.format)
        state[names["live"]] = live
        state[names["weight"]] = words(random, value.format, value.shape, extreme) * live
        state[names["momentum"]] = words(random, wide, value.shape, extreme) * live
        if "master" in names:
            state[names["master"]] = words(random, wide, value.shape, extreme) * live
    return state


def stepped(state: dict[str, np.ndarray], value: Value, gradient: np.ndarray, gradient_format: Fixed, update: Update,
            sgd: Sgd, batch: int) -> dict[str, np.ndarray]:
    """The state of one parameter after a step, by the definition."""
    assert isinstance(value.format, Fixed)
    names = state_names(value.name, update)
    live = state[names["live"]]
    arguments = (sgd, batch, value.format, gradient_format)
    weight, momentum = state[names["weight"]], state[names["momentum"]]
    gradient = np.where(live, gradient, 0)
    match update:
        case Update.BUFFERED:
            master, momentum, weight = buffered_rule(*arguments)(state[names["master"]], momentum, gradient)
            return {names["weight"]: weight, names["momentum"]: momentum, names["live"]: live,
                    names["master"]: master}
        case Update.UNBUFFERED:
            weight, momentum = unbuffered_rule(*arguments)(weight, momentum, gradient)
        case _:
            weight, momentum = narrow_rule(*arguments)(weight, momentum, gradient)
    return {names["weight"]: weight, names["momentum"]: momentum, names["live"]: live}


@settings(deadline=None, max_examples=60, derandomize=True)
@given(st.data(), st.sampled_from([Update.BUFFERED, Update.UNBUFFERED, Update.NARROW]), st.integers(0, 2**32 - 1),
       st.booleans())
def test_steps_equal_the_definition(data: st.DataObject, update: Update, seed: int, extreme: bool) -> None:
    random = np.random.RandomState(seed)
    parameters = tuple(Value(name, TensorType(shape, Fixed.of(data.draw(st.integers(2, 16)),
                                                              data.draw(st.integers(0, 17)))))
                       for name, shape in SHAPES.items())
    formats = {f"{value.name}.grad": Fixed.of(32, data.draw(st.integers(1, 8)) + value.format.frac)
               for value in parameters if isinstance(value.format, Fixed)}  # a coarser one: rate > 2**16
    sgd = Sgd(data.draw(st.floats(1e-4, 1.0)), data.draw(st.floats(0, 0.99)),
              0.0 if update is Update.NARROW else data.draw(st.floats(0, 0.01)))
    batch = data.draw(st.integers(1, 200))
    optimiser = Optimiser(parameters, formats, update, batch)
    state = start(random, parameters, update, extreme)
    optimiser.load(state)
    optimiser.set(sgd)
    for _ in range(3):
        gradients = {name: words(random, format_, SHAPES[name.removesuffix(".grad")], extreme)
                     for name, format_ in formats.items()}
        state = {name: array for value in parameters for name, array in stepped(
            state, value, gradients[f"{value.name}.grad"], formats[f"{value.name}.grad"], update, sgd, batch).items()}
        optimiser.step({name: torch.tensor(array, dtype=torch.float64) for name, array in gradients.items()})
        got = optimiser.state()
        assert set(got) == set(state)
        for name, array in state.items():
            assert np.array_equal(got[name], array) and got[name].dtype == array.dtype, name


SCALARS = {"n.scale": (3,), "n.shift": (3,)}


@settings(deadline=None, max_examples=30, derandomize=True)
@given(st.sampled_from([Update.BUFFERED, Update.UNBUFFERED, Update.NARROW]), st.integers(0, 2**32 - 1),
       st.floats(1e-4, 1.0), st.floats(0, 0.99), st.floats(0, 0.01), st.integers(1, 200),
       st.sampled_from([1.0, 2.0 ** -100, 2.0 ** 126]))
def test_scalars_among_words_equal_their_definition(update: Update, seed: int, rate: float, momentum: float,
                                                    decay: float, batch: int, size: float) -> None:
    """At the ends of their range, too; the words beside them are those of an optimiser without them."""
    random = np.random.RandomState(seed)
    word, formats = Value("w", TensorType((4, 2), Fixed.of(8, 6))), {"w.grad": Fixed.of(32, 12)}
    values = [Value(name, TensorType(shape, FLOAT)) for name, shape in SCALARS.items()]
    sgd = Sgd(rate, momentum, 0.0 if update is Update.NARROW else decay)
    words_only = start(random, (word,), update, False)
    real = {name: scalar(random.standard_normal(3) * size) for name in (
        "n.scale", "n.scale.momentum", "n.shift", "n.shift.momentum")}
    both, one = (Optimiser(some, formats, update, batch) for some in ((values[0], word, values[1]), (word,)))
    both.load({**words_only, **real, "n.scale.live": np.ones(3, bool), "n.shift.live": np.ones(3, bool)})
    one.load(words_only)
    for optimiser in (both, one):
        optimiser.set(sgd)
    rule = scalar_rule(sgd, batch)
    for _ in range(3):
        gradients = {"w.grad": words(random, Fixed.of(32, 12), (4, 2), False),
                     **{f"{name}.grad": scalar(random.standard_normal(3) * size) for name in SCALARS}}
        for name in SCALARS:
            real[name], real[f"{name}.momentum"] = rule(real[name], real[f"{name}.momentum"], gradients[f"{name}.grad"])
        for optimiser in (both, one):
            optimiser.step({name: torch.tensor(array, dtype=torch.float32 if name[0] == "n" else torch.float64)
                            for name, array in gradients.items()})
    found = both.state()
    assert all(np.array_equal(found[name], array) and found[name].dtype == array.dtype
               for name, array in {**real, **one.state()}.items())
    assert set(found) == {*real, *one.state(), "n.scale.live", "n.shift.live"}
    assert all(np.array_equal(both.weights[name].numpy(), real[name]) for name in SCALARS)
    assert all(np.array_equal(both.real_weights()[name], real[name]) for name in SCALARS)


def test_scalars_are_taken_over_frozen_and_pruned_as_words_are() -> None:
    parameters = (Value("w", TensorType((4,), Fixed.of(8, 6))), Value("s", TensorType((2,), FLOAT)))
    first, second = (Optimiser(parameters, {"w.grad": Fixed.of(32, 12)}, Update.BUFFERED, 1, frozen=["s"])
                     for _ in range(2))
    state = {**start(np.random.RandomState(0), parameters[:1], Update.BUFFERED, False),
             "s": np.array([1, 2], np.float32), "s.momentum": np.zeros(2, np.float32), "s.live": np.ones(2, bool)}
    first.load(state)
    second.take_over(first)
    second.set(Sgd(0.1, 0.9, 0.1))
    before = [tensor.clone() for tensor in second.state_tensors]
    second.step({"w.grad": torch.full((4,), 1e6, dtype=torch.float64), "s.grad": torch.ones(2)})
    assert second.weights["s"].tolist() == [1, 2] and second.part("master").keys() == {"w"}
    assert any(not torch.equal(now, old) for now, old in zip(second.state_tensors, before, strict=True))
    second.prune({"s": np.array([True, False])})
    assert second.state()["s"].tolist() == [1, 0] and second.part("live")["s"].tolist() == [1, 0]


@pytest.mark.parametrize("size", [1.0, 2.0 ** -100, 2.0 ** 126])
@pytest.mark.parametrize("delay", [2, 6])
def test_late_gradients_of_scalars_are_made_up_for_as_defined(delay: int, size: float) -> None:
    parameters = (Value("w", TensorType((4,), Fixed.of(8, 6))), Value("s", TensorType((2,), FLOAT)))
    optimiser = Optimiser(parameters, {"w.grad": Fixed.of(32, 12)}, Update.BUFFERED, 3, delay=delay)
    random, sgd = np.random.RandomState(delay), Sgd(0.1, 0.9, 0.01)
    weight, velocity = (scalar(random.standard_normal(2) * size) for _ in range(2))
    optimiser.load({**start(random, parameters[:1], Update.BUFFERED, False),
                    "s": weight, "s.momentum": velocity, "s.live": np.ones(2, bool)})
    optimiser.set(sgd)
    for _ in range(3):
        assert np.array_equal(optimiser.weights_ahead()["s"].numpy(), predicted_scalars(weight, velocity, delay))
        gradient = scalar(random.standard_normal(2) * size)
        weight, velocity = compensated_scalars(scalar_rule(sgd, 3), Compensation.of(0.9, delay), weight, velocity,
                                               gradient)
        optimiser.step({"w.grad": torch.ones(4, dtype=torch.float64), "s.grad": torch.tensor(gradient)})
        assert np.array_equal(optimiser.weights["s"].numpy(), weight)
        assert np.array_equal(optimiser.state()["s.momentum"], velocity)


def test_pruned_weights_lose_everything_and_stay_dead() -> None:
    value = Value("w", TensorType((4, 4), Fixed.of(8, 6)))
    optimiser = Optimiser((value,), {"w.grad": Fixed.of(32, 12)}, Update.BUFFERED, 4)
    optimiser.load(start(np.random.RandomState(1), (value,), Update.BUFFERED, False))
    optimiser.set(Sgd(0.1, 0.9, 0.001))
    live = np.arange(16).reshape(4, 4) % 3 == 0
    optimiser.prune({"w": live})
    for _ in range(2):
        state = optimiser.state()
        assert np.array_equal(state["w.live"], live)
        for name in ("w", "w.master", "w.momentum"):
            assert not state[name][~live].any()
        optimiser.step({"w.grad": torch.full((4, 4), 1e6, dtype=torch.float64)})


def test_float_equals_torch_sgd() -> None:
    """In float32, to rounding: three steps of magnitudes about one."""
    value = Value("w", TensorType((5, 3), FLOAT))
    optimiser = Optimiser((value,), {}, Update.FLOAT, 2)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(5, 3, generator=generator)
    optimiser.load({"w": weight.numpy(), "w.momentum": np.zeros((5, 3)), "w.live": np.ones((5, 3), bool)})
    optimiser.set(Sgd(0.1, 0.9, 0.01))
    reference = torch.nn.Parameter(weight.clone())
    torch_sgd = torch.optim.SGD([reference], lr=0.1, momentum=0.9, weight_decay=0.01)
    for _ in range(3):
        gradient = torch.randn(5, 3, generator=generator)
        reference.grad = gradient / 2
        torch_sgd.step()
        optimiser.step({"w.grad": gradient})
    assert torch.allclose(optimiser.weights["w"], reference.detach(), atol=1e-6)


def test_real_weights() -> None:
    value = Value("w", TensorType((2,), Fixed.of(8, 6)))
    optimiser = Optimiser((value,), {"w.grad": Fixed.of(32, 12)}, Update.BUFFERED, 1)
    optimiser.load({"w": [32, -64], "w.master": [1 << 21, -(1 << 22)], "w.momentum": [0, 0], "w.live": [True, True]})
    assert optimiser.real_weights()["w"].tolist() == [0.5, -1.0]
    assert sum(prod(shape) for shape in SHAPES.values()) == 47


def test_another_batch_moves_weights_as_far() -> None:
    """Over as many images, by a gradient that stays what it is."""
    tuned, small = Sgd(0.1, 0.9, 1e-4), Sgd(0.1, 0.9, 1e-4).for_batch(25, 100)
    moved = {}
    for sgd, batches in ((tuned, 1), (small, 4)):
        weight = torch.zeros(1, dtype=torch.float64, requires_grad=True)
        steps = torch.optim.SGD([weight], sgd.learning_rate, sgd.momentum)
        for _ in range(200 * batches):
            weight.grad = torch.ones_like(weight)
            steps.step()
        moved[batches] = weight.item()
    assert moved[4] == pytest.approx(moved[1], rel=0.01)
    assert small.momentum ** 4 == pytest.approx(0.9) and small.weight_decay == tuned.weight_decay
    again = small.for_batch(100, 25)
    assert (again.learning_rate, again.momentum) == (pytest.approx(0.1), pytest.approx(0.9))


@pytest.mark.parametrize(("batch", "tuned"), [(32, 0), (0, 32)])
def test_tuned_batch_wrong(batch: int, tuned: int) -> None:
    with pytest.raises(FormatError, match=rf"^Batches have at least one image; .* of {tuned} to batches of {batch}$"):
        Sgd(0.1).for_batch(batch, tuned)


def test_learning_rate_wrong() -> None:
    with pytest.raises(FormatError, match=r"^The learning rate must be a number above 0, not 0$"):
        Sgd(0)


def test_momentum_wrong() -> None:
    with pytest.raises(FormatError, match=r"^Momentum must be at least 0 and below 1, not 1$"):
        Sgd(0.1, 1)


def test_weight_decay_wrong() -> None:
    with pytest.raises(FormatError, match=r"^Weight decay must be a number of at least 0, not -1$"):
        Sgd(0.1, 0.9, -1)


def test_narrow_weight_decay_wrong() -> None:
    with pytest.raises(UnsupportedError, match=r"^The narrow update has no weight decay: set it to 0, not 0.1$"):
        narrow_rule(Sgd(0.1, 0.9, 0.1), 1, Fixed.of(16, 14), Fixed.of(32, 12))


@pytest.mark.parametrize("update", [Update.BUFFERED, Update.UNBUFFERED, Update.NARROW])
def test_weights_too_wide_wrong(update: Update) -> None:
    weight = Value("w", TensorType((3,), Fixed.of(17, 14)))
    with pytest.raises(FormatError, match=r"^Weights are updated exactly in at most 16 bits, and .*w.* has 17: take a "
                                          r"narrower format$"):
        Optimiser((weight,), {"w.grad": Fixed.of(32, 12)}, update, 4)
