"""What makes up for gradients that come late: spike compensation and linear weight prediction.

Kosson et al., "Pipelined Backpropagation at Scale" (arXiv 2003.11666): of a gradient that comes ``D`` steps late,
momentum would by then have applied ``(1 - mu**D) / (1 - mu)`` times; spike compensation applies that at once, and the
rest as momentum goes on, so that in all a gradient counts for as much as ever. Weights for a forward pass whose
gradient will come ``D`` steps later are predicted to go on moving as they do.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from espalier.errors import FormatError
from espalier.numerics.fixed import Fixed
from espalier.numerics.scalar import Scalars, add, mul, scalar, sub
from espalier.numerics.update import BufferedSgd, Factor, ScalarSgd, master_format, narrow


@dataclass(frozen=True, slots=True)
class Compensation:
    """How much of the momentum, and of the gradient besides, moves a weight.

    Parameters
    ----------
    lasting, sudden : Factor
        ``a = mu**D`` and ``b = (1 - mu**D) / (1 - mu)``: 1 and 0 without delay.
    """

    lasting: Factor
    sudden: Factor

    @classmethod
    def of(cls, momentum: float, delay: int) -> Compensation:
        """For a ``momentum`` in 0..1, below 1, and gradients that come ``delay`` steps late."""
        if not 0 <= momentum < 1 or delay < 0:
            raise FormatError(f"Momentum is at least 0 and below 1, and a delay at least 0, not {momentum} and {delay}")
        left = momentum ** delay
        return cls(Factor.nearest(left), Factor.nearest((1 - left) / (1 - momentum)))


def compensated(rule: BufferedSgd, how: Compensation, master: NDArray[np.int64], velocity: NDArray[np.int64],
                gradient: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """As ``rule``, but ``m' = sat(m - (a*v' + b*(eta*G + lambda*m)))``, each product rounded half up.

    New master, velocity (momentum) and weight words.
    """
    wide = master_format(rule.weight)
    spike = rule.rate(gradient) + rule.decay(master)
    velocity = wide.limit(rule.momentum(velocity) + spike)
    master = wide.limit(master - how.lasting(velocity) - how.sudden(spike))
    return master, velocity, narrow(master, rule.weight)


def predicted(weight: Fixed, master: NDArray[np.int64], velocity: NDArray[np.int64], delay: int) -> NDArray[np.int64]:
    """The weight words in ``delay`` steps if each is like the last: ``round(sat(m - D*v))``."""
    return narrow(master_format(weight).limit(master - delay * velocity), weight)


def compensated_scalars(rule: ScalarSgd, how: Compensation, weight: Scalars, velocity: Scalars, gradient: Scalars
                        ) -> tuple[Scalars, Scalars]:
    """As ``rule``, but ``w' = w - (a*v' + b*(eta*G + lambda*w))``. New weight and velocity (momentum)."""
    _, velocity = rule(weight, velocity, gradient)
    spike = add(mul(gradient, rule.rate), mul(weight, rule.decay))
    step = add(mul(velocity, scalar(how.lasting.value)), mul(spike, scalar(how.sudden.value)))
    return sub(weight, step), velocity


def predicted_scalars(weight: Scalars, velocity: Scalars, delay: int) -> Scalars:
    """The weight in ``delay`` steps if each is like the last: ``w - D*v``."""
    return sub(weight, mul(velocity, scalar(delay)))
