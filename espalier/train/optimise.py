"""Optimisers on torch tensors, equal to ``numerics/update.py`` bit for bit.

All parameters lie one behind the other in flat tensors, so that an update is a handful of operations
on the device however many layers there are. Words are carried in float64: the largest product is of a
32-bit word and a 16-bit factor, 48 bits, and with its rounding still below 2**53, so all is exact. Wider
weights are refused. Scale and shift of batch norms on words are scalars, in flat tensors of their own.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from espalier.errors import FormatError, UnsupportedError
from espalier.ir.differentiate import gradient_name, next_name
from espalier.ir.types import FLOAT, Format, Value
from espalier.numerics.compensation import Compensation
from espalier.numerics.fixed import Fixed
from espalier.numerics.scalar import scalar
from espalier.numerics.update import EXTRA_BITS, BufferedSgd, NarrowSgd, ScalarSgd, master_format
from espalier.train.convolve import Rounding
from espalier.train.evaluate import element_type, to_array
from espalier.train.native_code import UpdateRule, library
from espalier.train.scalars import add, mul, number, sub
from espalier.train.unbuffered import UnbufferedSgd

WEIGHT_BITS = 16  #: of the widest weights whose update float64 carries exactly


class Update(Enum):
    """How a step reaches the weights."""

    BUFFERED = "buffered"      #: through the wide masters of the gradient accumulation buffer
    UNBUFFERED = "unbuffered"  #: straight onto the narrow weights, with wide momentum
    NARROW = "narrow"          #: as in arXiv 1908.06724: narrow, wrapping
    FLOAT = "float"            #: in float32


@dataclass(frozen=True, slots=True)
class Sgd:
    """Hyper-parameters of stochastic gradient descent.

    Parameters
    ----------
    learning_rate : float
        Of the mean gradient over the batch; above 0.
    momentum : float
        In 0..1, below 1.
    weight_decay : float
        At least 0. Weights and biases both decay.
    """

    learning_rate: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.learning_rate < math.inf:
            raise FormatError(f"The learning rate must be a number above 0, not {self.learning_rate}")
        if not 0 <= self.momentum < 1:
            raise FormatError(f"Momentum must be at least 0 and below 1, not {self.momentum}")
        if not 0 <= self.weight_decay < math.inf:
            raise FormatError(f"Weight decay must be a number of at least 0, not {self.weight_decay}")

    def scaled(self, factor: float) -> Sgd:
        """The same with the learning rate times ``factor``."""
        return replace(self, learning_rate=self.learning_rate * factor)

    def for_batch(self, batch: int, tuned: int) -> Sgd:
        """What does in batches of ``batch`` images as this does in batches of ``tuned``.

        An image's gradient moves a weight as far in all, and over as many images (Kosson et al., arXiv 2003.11666).
        Raises FormatError.
        """
        if min(batch, tuned) < 1:
            raise FormatError(f"Batches have at least one image; rate and momentum cannot be scaled from batches of "
                              f"{tuned} to batches of {batch}")
        part = batch / tuned
        momentum = self.momentum ** part
        return replace(self, momentum=momentum,
                       learning_rate=self.learning_rate * part * (1 - momentum) / (1 - self.momentum))


def buffered_rule(sgd: Sgd, batch: int, weight: Fixed, gradient: Fixed) -> BufferedSgd:
    """The word-level rule of ``sgd`` for a weight and its gradient summed over ``batch`` images."""
    return BufferedSgd.of(weight=weight, grad_frac=gradient.frac, learning_rate=sgd.learning_rate, batch=batch,
                          momentum=sgd.momentum, weight_decay=sgd.weight_decay)


def unbuffered_rule(sgd: Sgd, batch: int, weight: Fixed, gradient: Fixed) -> UnbufferedSgd:
    """As :func:`buffered_rule`, without the buffer."""
    return UnbufferedSgd(rule=buffered_rule(sgd, batch, weight, gradient))


def narrow_rule(sgd: Sgd, batch: int, weight: Fixed, gradient: Fixed) -> NarrowSgd:
    """As :func:`buffered_rule`, all words narrow. Raises UnsupportedError for weight decay."""
    if sgd.weight_decay:
        raise UnsupportedError(f"The narrow update has no weight decay: set it to 0, not {sgd.weight_decay}")
    return NarrowSgd.of(weight=weight, grad_frac=gradient.frac, learning_rate=sgd.learning_rate, batch=batch,
                        momentum=sgd.momentum)


def scalar_rule(sgd: Sgd, batch: int) -> ScalarSgd:
    """The rule of ``sgd`` for scale and shift of a batch norm on words, gradients summed over ``batch`` images."""
    return ScalarSgd(momentum=scalar(sgd.momentum), rate=scalar(sgd.learning_rate / batch),
                     decay=scalar(sgd.learning_rate * sgd.weight_decay))


def update_of(parameter: Value, update: Update) -> Update:
    """How a step reaches a parameter: in float32 where it is a scalar among words, otherwise by the ``update``."""
    return update if isinstance(parameter.format, Fixed) else Update.FLOAT


def state_names(parameter: str, update: Update) -> dict[str, str]:
    """The names of a parameter's tensors by role: weight, momentum, live, and master where there is one."""
    roles = {"weight": parameter, "momentum": f"{parameter}.momentum", "live": f"{parameter}.live"}
    return {**roles, "master": f"{parameter}.master"} if update is Update.BUFFERED else roles


class Optimiser:
    """Weights, masters, momenta and live masks of a network on a device, and how a step changes them.

    Its tensors keep their addresses for life, so that a captured CUDA graph may read and write them;
    learning rate and masks may change between steps.

    Parameters
    ----------
    parameters : tuple of Value
        All float for ``Update.FLOAT``; otherwise words, and scalars among them.
    formats : mapping
        Format of each parameter's gradient by name; not read for ``Update.FLOAT``.
    update : Update
    batch : int
        Images whose gradients are summed.
    device : str
    frozen : collection of str
        Parameters that keep their values: their rate and decay are zero.
    statistics : tuple of Value
        Running statistics of batch norms. No gradient moves them, and they neither decay nor die.
    delay : int
        By how many steps gradients come late, to be made up for (:mod:`espalier.numerics.compensation`).

    Members
    -------
    weights : dict of Tensor
        The narrow weights and the statistics by name: what the forward and backward pass read.
    """

    def __init__(self, parameters: tuple[Value, ...], formats: Mapping[str, Format], update: Update, batch: int,
                 device: str = "cpu", frozen: Collection[str] = (), statistics: tuple[Value, ...] = (),
                 delay: int = 0) -> None:
        if delay and update not in (Update.BUFFERED, Update.FLOAT):
            raise UnsupportedError(f"Late gradients are made up for in the buffered update and in float32, not in the "
                                   f"{update.value} one")
        self.parameters, self.update, self.batch, self.frozen = parameters, update, batch, frozenset(frozen)
        self.delay, self.lasting, self.sudden = delay, 1.0, 0.0
        self.flat = tuple(value for value in parameters if update_of(value, update) is update)
        scalars = tuple(value for value in parameters if value not in self.flat)
        self.scalars = [_Scalars(scalars, {}, Update.FLOAT, batch, device, frozen, delay=delay)] if scalars else []
        self.gradients = {value.name: formats.get(gradient_name(value.name)) for value in parameters}
        dtype = element_type(FLOAT if update is Update.FLOAT else self.flat[0].format)
        size = sum(prod(value.shape) for value in self.flat)
        self.weight, self.master, self.momentum, self.rate, self.decay = (
            torch.zeros(size, dtype=dtype, device=device) for _ in range(5))
        self.live = torch.ones(size, dtype=dtype, device=device)
        self.mu, self.scale = (torch.zeros((), dtype=dtype, device=device) for _ in range(2))
        self.statistics = {value.name: torch.zeros(value.shape, dtype=dtype, device=device) for value in statistics}
        self.weights = self.part("weight") | self.statistics
        if update is not Update.FLOAT:
            self.low, self.high, self.wide_low, self.wide_high = map(
                self._spread, zip(*map(self._ends, self.flat), strict=True))

    @property
    def state_tensors(self) -> tuple[Tensor, ...]:
        """The tensors that a step changes."""
        beside = (tensor for scalars in self.scalars for tensor in scalars.state_tensors)
        return self.weight, self.master, self.momentum, *self.statistics.values(), *beside

    def set(self, sgd: Sgd) -> None:
        """Use ``sgd`` from the next step on. Raises FormatError where a factor has no word."""
        if self.update is Update.FLOAT:
            rule = scalar_rule(sgd, self.batch)
            rates, mu, decay = [float(rule.rate)] * len(self.flat), float(rule.momentum), float(rule.decay)
        else:
            rates, mu, decay = self._factors(sgd)
        if self.delay:
            how = Compensation.of(sgd.momentum, self.delay)
            self.lasting, self.sudden = how.lasting.value, how.sudden.value
        still = [value.name in self.frozen for value in self.flat]
        self.rates = [0.0 if stays else rate for stays, rate in zip(still, rates, strict=True)]
        self.decays = [0.0 if stays else decay for stays in still]
        self.rate.copy_(self._spread(self.rates))
        self.decay.copy_(self._spread(self.decays))
        self.mu.fill_(mu)
        for scalars in self.scalars:
            scalars.set(sgd)

    def step(self, gradients: Mapping[str, Tensor]) -> None:
        """Apply the gradients (by the gradients' names), each summed over the batch, and :meth:`follow`."""
        self.follow(gradients)
        for scalars in self.scalars:
            scalars.step(gradients)
        flat = torch.cat([gradients[gradient_name(value.name)].reshape(-1) for value in self.flat]) * self.live
        match self.update:
            case Update.BUFFERED:
                self._step_buffered(flat)
            case Update.UNBUFFERED:
                self._step_unbuffered(flat)
            case Update.NARROW:
                self._step_narrow(flat)
            case Update.FLOAT:
                self._step_float(flat)

    def follow(self, values: Mapping[str, Tensor]) -> None:
        """Take over the running statistics (:func:`next_name`) among ``values``; others stay."""
        for name, statistic in self.statistics.items():
            if next_name(name) in values:
                statistic.copy_(values[next_name(name)])

    def step_sums(self, sums: Tensor, roundings: Sequence[Rounding], scalars: Mapping[str, Tensor] | None = None
                  ) -> None:
        """As :meth:`step`, from sums not yet rounded, of all words one behind the other, on a CPU.

        ``scalars``: gradients of scalars and next statistics by name.
        """
        native = library()
        if native is None or self.update is not Update.BUFFERED:
            parts = self._views(sums).values()
            self.step({**(scalars or {}), **{
                gradient_name(value.name): rounding(part)
                for value, rounding, part in zip(self.flat, roundings, parts, strict=True)}})
            return
        self.follow(scalars or {})
        for beside in self.scalars:
            beside.step(scalars or {})
        rules = [UpdateRule(prod(value.shape), rounding.scale, rounding.low, rounding.high, rate, self.mu.item(),
                            decay, self.lasting, self.sudden, 2.0 ** -EXTRA_BITS, *self._ends(value))
                 for value, rounding, rate, decay in zip(self.flat, roundings, self.rates, self.decays, strict=True)]
        native.lanes_update((UpdateRule * len(rules))(*rules), len(rules), *(tensor.data_ptr() for tensor in (
            sums, self.live, self.weight, self.master, self.momentum)))

    def load(self, state: Mapping[str, NDArray]) -> None:
        """Take over a state as :meth:`state` gives it."""
        for role, flat in self._roles().items():
            arrays = [np.asarray(state[state_names(value.name, self.update)[role]], dtype=np.float64).reshape(-1)
                      for value in self.flat]
            flat.copy_(torch.from_numpy(np.concatenate(arrays)))
        for name, statistic in self.statistics.items():
            statistic.copy_(torch.from_numpy(np.asarray(state[name], dtype=np.float64)))
        for scalars in self.scalars:
            scalars.load(state)

    def state(self) -> dict[str, NDArray]:
        """Every tensor of the state by name on the host: words int64, float32 numbers, live masks bool."""
        found: dict[str, NDArray] = {}
        for role, flat in self._roles().items():
            views = self._views(flat)
            for value in self.flat:
                array = to_array(views[value.name], value.format)
                found[state_names(value.name, self.update)[role]] = array > 0 if role == "live" else array
        for scalars in self.scalars:
            found |= scalars.state()
        return found | {name: to_array(statistic, FLOAT) for name, statistic in self.statistics.items()}

    def take_over(self, other: Optimiser) -> None:
        """The state of the parameters and statistics that both have, from ``other``."""
        for role in self._roles():
            theirs = other.part(role)
            for name, view in self.part(role).items():
                if name in theirs:
                    view.copy_(theirs[name])
        for name in self.statistics.keys() & other.statistics.keys():
            self.statistics[name].copy_(other.statistics[name])

    def part(self, role: str) -> dict[str, Tensor]:
        """The tensors of one role (:func:`state_names`) by parameter; they share memory with the state."""
        roles = self._roles()
        own = self._views(roles[role]) if role in roles else {}
        return own | {name: view for scalars in self.scalars for name, view in scalars.part(role).items()}

    def real_weights(self) -> dict[str, NDArray[np.float64]]:
        """The most precise weights there are, as real values by parameter name; not the statistics."""
        source = self.master if self.update is Update.BUFFERED else self.weight
        values: dict[str, NDArray[np.float64]] = {}
        for scalars in self.scalars:
            values |= scalars.real_weights()
        for value in self.flat:
            array = self._views(source)[value.name].cpu().numpy().astype(np.float64)
            if isinstance(value.format, Fixed):
                extra = EXTRA_BITS if self.update is Update.BUFFERED else 0
                array = np.ldexp(array, -value.format.frac - extra)
            values[value.name] = array
        return values

    def prune(self, live: Mapping[str, NDArray[np.bool_]]) -> None:
        """Set the live masks of some parameters; the dead lose weight, master and momentum."""
        views = self.part("live")
        for name, mask in live.items():
            views[name].copy_(torch.from_numpy(np.ascontiguousarray(mask)))
        for group in (self, *self.scalars):
            for tensor in (group.weight, group.master, group.momentum):
                tensor.mul_(group.live)

    def _roles(self) -> dict[str, Tensor]:
        roles = {"weight": self.weight, "momentum": self.momentum, "live": self.live}
        return {**roles, "master": self.master} if self.update is Update.BUFFERED else roles

    def _views(self, flat: Tensor) -> dict[str, Tensor]:
        parts = flat.split([prod(value.shape) for value in self.flat])
        return {value.name: part.view(value.shape) for value, part in zip(self.flat, parts, strict=True)}

    def _spread(self, numbers: Iterable[float]) -> Tensor:
        """One number per parameter, repeated for each of its weights."""
        parts = [np.full(prod(value.shape), number, dtype=np.float64)
                 for value, number in zip(self.flat, numbers, strict=True)]
        return torch.from_numpy(np.concatenate(parts)).to(self.weight)

    def _ends(self, value: Value) -> tuple[int, int, int, int]:
        """Lowest and highest word of a weight and of its master."""
        narrow = self._weight_format(value)
        wide = master_format(narrow)
        return narrow.low, narrow.high, wide.low, wide.high

    def _weight_format(self, value: Value) -> Fixed:
        assert isinstance(value.format, Fixed), f"{value} is not in fixed point"
        if value.format.width > WEIGHT_BITS:
            raise FormatError(f"Weights are updated exactly in at most {WEIGHT_BITS} bits, and {value} has "
                              f"{value.format.width}: take a narrower format")
        return value.format

    def _factors(self, sgd: Sgd) -> tuple[list[float], float, float]:
        make = narrow_rule if self.update is Update.NARROW else buffered_rule
        rates: list[float] = []
        mu = decay = 0.0
        for value in self.flat:
            gradient = self.gradients[value.name]
            assert isinstance(gradient, Fixed), f"the gradient of {value} has no fixed-point format"
            rule = make(sgd, self.batch, self._weight_format(value), gradient)
            rates.append(rule.rate.value)
            mu = rule.momentum.value
            match rule:
                case BufferedSgd():
                    decay = rule.decay.value
                case NarrowSgd():
                    self.scale.fill_(rule.scale.value)
        return rates, mu, decay

    def ahead(self) -> Tensor:
        """The weights of a forward pass whose gradient comes ``delay`` steps late, one parameter behind the other."""
        if not self.delay:
            return self.weight
        if self.update is Update.FLOAT:
            return self.weight - self.delay * self.momentum
        master = (self.master - self.delay * self.momentum).clamp(self.wide_low, self.wide_high)
        return _rounded(master * 2.0 ** -EXTRA_BITS).clamp(self.low, self.high)

    def weights_ahead(self) -> dict[str, Tensor]:
        """:meth:`ahead` by name, the scalars and the statistics."""
        beside = {name: tensor for scalars in self.scalars for name, tensor in scalars.weights_ahead().items()}
        return self.weights | self._views(self.ahead()) | beside

    def _spike(self, gradient: Tensor, weight: Tensor) -> Tensor:
        """What a gradient adds to the momentum; ``weight`` at the scale of a master."""
        return _rounded(gradient * self.rate) + _rounded(weight * self.decay)

    def _velocity(self, spike: Tensor) -> Tensor:
        """The next momentum."""
        return (_rounded(self.momentum * self.mu) + spike).clamp(self.wide_low, self.wide_high)

    def _step_float(self, gradient: Tensor) -> None:
        if not self.delay:
            self.momentum.mul_(self.mu).add_(gradient * self.rate).add_(self.weight * self.decay)
            self.weight.sub_(self.momentum)
            return
        spike = gradient * self.rate + self.weight * self.decay
        self.momentum.mul_(self.mu).add_(spike)
        self.weight.sub_(self.momentum * self.lasting + spike * self.sudden)

    def _step_buffered(self, gradient: Tensor) -> None:
        spike = self._spike(gradient, self.master)
        self.momentum.copy_(self._velocity(spike))
        step = _rounded(self.momentum * self.lasting) + _rounded(spike * self.sudden) if self.delay else self.momentum
        self.master.copy_((self.master - step).clamp(self.wide_low, self.wide_high))
        self.weight.copy_(_rounded(self.master * 2.0 ** -EXTRA_BITS).clamp(self.low, self.high))

    def _step_unbuffered(self, gradient: Tensor) -> None:
        self.momentum.copy_(self._velocity(self._spike(gradient, self.weight * 2.0 ** EXTRA_BITS)))
        step = _rounded(self.momentum * 2.0 ** -EXTRA_BITS).clamp(self.low, self.high)
        self.weight.copy_((self.weight - step).clamp(self.low, self.high))

    def _step_narrow(self, gradient: Tensor) -> None:
        momentum = self._wrap(self.momentum + self._wrap(_rounded(gradient * self.rate)))
        self.weight.copy_(self._wrap(self.weight - self._wrap(_rounded(momentum * self.scale))))
        self.momentum.copy_(self._wrap(_rounded(momentum * self.mu)))

    def _wrap(self, words: Tensor) -> Tensor:
        """Two's complement in the weight's width: the range is ``low..high``, of ``-2*low`` words."""
        turns = ((words - self.low) / (self.low * -2)).floor_()
        return words + turns * (self.low * 2)


class _Scalars(Optimiser):
    """Of the scalars among words: by ``ScalarSgd``, and where gradients come late as ``compensated_scalars``."""

    def ahead(self) -> Tensor:
        return sub(self.weight, mul(self.momentum, number(self.delay))) if self.delay else self.weight

    def _step_float(self, gradient: Tensor) -> None:
        drawn, pulled = mul(gradient, self.rate), mul(self.weight, self.decay)
        self.momentum.copy_(add(add(mul(self.momentum, self.mu), drawn), pulled))
        if not self.delay:
            self.weight.copy_(sub(self.weight, self.momentum))
            return
        spike = mul(add(drawn, pulled), number(self.sudden))
        self.weight.copy_(sub(self.weight, add(mul(self.momentum, number(self.lasting)), spike)))


def _rounded(scaled: Tensor) -> Tensor:
    """Round half up; ``scaled`` is a whole number times a power of two, so no bit is lost here."""
    return scaled.add_(0.5).floor_()
