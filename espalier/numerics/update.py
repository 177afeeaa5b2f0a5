"""Stochastic gradient descent on words: through the gradient accumulation buffer, and without.

The buffer (system A of the prior work): compute reads a narrow weight; the optimiser moves a wide
*master* word of the same value range with :data:`EXTRA_BITS` more fraction bits, so that a step too
small for the narrow weight is kept and not lost.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from espalier.errors import FormatError
from espalier.numerics.fixed import Fixed
from espalier.numerics.requantize import Requantize
from espalier.numerics.scalar import Scalars, add, mul, sub

EXTRA_BITS = 16      #: fraction bits that a master (and its momentum) has beyond its weight
FACTOR_BITS = 16     #: bits of the unsigned learning-rate, momentum and decay words
GRADIENT_BITS = 32   #: width of a weight gradient after its one rounding
MAX_SHIFT = 47


def _round_shift(words: NDArray[np.int64], shift: int) -> NDArray[np.int64]:
    return (words + ((1 << shift) >> 1)) >> shift


@dataclass(frozen=True, slots=True)
class Factor:
    """A non-negative real as ``word * 2**-shift``, ``word`` in 0..2**16-1: a scaling in hardware.

    Applying it is one multiplication, one shift with rounding half up.
    """

    word: int
    shift: int

    def __post_init__(self) -> None:
        if not (0 <= self.word < 1 << FACTOR_BITS and 0 <= self.shift <= MAX_SHIFT):
            raise FormatError(f"A factor has a word of {FACTOR_BITS} bits and a shift in 0..{MAX_SHIFT}, not {self}")

    @classmethod
    def nearest(cls, value: float) -> Factor:
        """The factor nearest to ``value``. Raises FormatError where none is (2**16 and above, negative, NaN)."""
        if not 0 <= value < 1 << FACTOR_BITS:
            raise FormatError(f"A scaling factor must be in 0..{1 << FACTOR_BITS}, not {value}")
        if value == 0:
            return cls(0, 0)
        shift = min(MAX_SHIFT, FACTOR_BITS - 1 - int(np.floor(np.log2(value))))
        word = round(value * 2.0 ** shift)
        if word >> FACTOR_BITS:  # rounded up to the next power of two
            word, shift = word >> 1, shift - 1
        return cls(word, shift)

    @property
    def value(self) -> float:
        """The real number that this factor stands for."""
        return self.word * 2.0 ** -self.shift

    def __call__(self, words: NDArray[np.int64]) -> NDArray[np.int64]:
        return _round_shift(words * self.word, self.shift)


@dataclass(frozen=True, slots=True, kw_only=True)
class BufferedSgd:
    """SGD with momentum and weight decay through the gradient accumulation buffer.

    ``v' = sat(mu*v + eta*G + lambda*m)``, ``m' = sat(m - v')``, ``w' = round(m')``, each product
    rounded half up. ``G`` is the weight gradient summed over the batch; ``v`` and ``m`` have the
    master format; ``eta`` holds learning rate / batch and the change of format, ``lambda`` holds
    learning rate × weight decay.

    Parameters
    ----------
    weight : Fixed
        Format of the narrow weight.
    momentum, rate, decay : Factor
        ``mu`` (below 1), ``eta`` and ``lambda``, on words.
    """

    weight: Fixed
    momentum: Factor
    rate: Factor
    decay: Factor

    @classmethod
    def of(cls, *, weight: Fixed, grad_frac: int, learning_rate: float, batch: int, momentum: float = 0.0,
           weight_decay: float = 0.0) -> BufferedSgd:
        """The rule for real-valued hyper-parameters and a weight gradient of ``grad_frac`` fraction bits."""
        change = 2.0 ** (master_format(weight).frac - grad_frac)
        return cls(weight=weight, momentum=Factor.nearest(momentum),
                   rate=Factor.nearest(learning_rate / batch * change),
                   decay=Factor.nearest(learning_rate * weight_decay))

    def __call__(self, master: NDArray[np.int64], velocity: NDArray[np.int64], gradient: NDArray[np.int64]
                 ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """New master, velocity (momentum) and weight words."""
        wide = master_format(self.weight)
        velocity = wide.limit(self.momentum(velocity) + self.rate(gradient) + self.decay(master))
        master = wide.limit(master - velocity)
        return master, velocity, narrow(master, self.weight)


def master_format(weight: Fixed) -> Fixed:
    """The format of the master and the momentum of a ``weight``: EXTRA_BITS more fraction bits."""
    return Fixed.of(weight.width + EXTRA_BITS, weight.frac + EXTRA_BITS)


def narrow(master: NDArray[np.int64], weight: Fixed) -> NDArray[np.int64]:
    """The weight words of ``master`` words."""
    return Requantize(acc_bits=weight.width + EXTRA_BITS, out_bits=weight.width, shift=EXTRA_BITS)(master)


@dataclass(frozen=True, slots=True, kw_only=True)
class NarrowSgd:
    """The update of prior work B (arXiv 1908.06724 and its golden model): all words narrow, wrapping.

    ``M += rnd(G*eta)`` per group of images; at the end of the batch ``W -= rnd(s*M)``,
    ``M = rnd(mu*M)``. ``M`` has ``momentum_extra`` more fraction bits than the weight; nothing
    carries what falls below it. Out of range wraps in two's complement.

    Parameters
    ----------
    weight : Fixed
        Format of the weight.
    rate : Factor
        ``eta``: from gradient words to momentum words.
    scale : Factor
        ``s``: from momentum words to weight words.
    momentum : Factor
        ``mu``.
    """

    weight: Fixed
    rate: Factor
    scale: Factor
    momentum: Factor

    @classmethod
    def of(cls, *, weight: Fixed, grad_frac: int, learning_rate: float, batch: int, momentum: float = 0.0,
           momentum_extra: int = 4) -> NarrowSgd:
        """The rule for real-valued hyper-parameters and a weight gradient of ``grad_frac`` fraction bits."""
        return cls(weight=weight, momentum=Factor.nearest(momentum), scale=Factor(1, momentum_extra),
                   rate=Factor.nearest(learning_rate / batch * 2.0 ** (weight.frac + momentum_extra - grad_frac)))

    def _wrap(self, words: NDArray[np.int64]) -> NDArray[np.int64]:
        half = 1 << self.weight.width - 1
        return ((words + half) & (2 * half - 1)) - half

    def __call__(self, weight: NDArray[np.int64], momentum: NDArray[np.int64], gradient: NDArray[np.int64]
                 ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """New weight and momentum words after one batch of one group."""
        momentum = self._wrap(momentum + self._wrap(self.rate(gradient)))
        weight = self._wrap(weight - self._wrap(self.scale(momentum)))
        return weight, self._wrap(self.momentum(momentum))


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalarSgd:
    """SGD with momentum and weight decay on scalars (``scalar.py``): scale and shift of a batch norm.

    ``v' = (mu*v + eta*G) + lambda*w``, ``w' = w - v'``. ``eta`` holds learning rate / batch, ``lambda`` learning rate ×
    weight decay.
    """

    momentum: Scalars
    rate: Scalars
    decay: Scalars

    def __call__(self, weight: Scalars, velocity: Scalars, gradient: Scalars) -> tuple[Scalars, Scalars]:
        """New weight and velocity (momentum)."""
        velocity = add(add(mul(velocity, self.momentum), mul(gradient, self.rate)), mul(weight, self.decay))
        return sub(weight, velocity), velocity
