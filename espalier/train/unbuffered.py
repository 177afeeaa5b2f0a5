"""The update without a gradient accumulation buffer, to show what the buffer is worth."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from espalier.numerics.fixed import Fixed
from espalier.numerics.update import EXTRA_BITS, BufferedSgd, master_format, narrow


@dataclass(frozen=True, slots=True, kw_only=True)
class UnbufferedSgd:
    """SGD like :class:`BufferedSgd` whose weight has no fraction bits beyond the narrow word.

    ``v' = sat(mu*v + eta*G + lambda*w)``, ``w' = sat(w - round(v'))``: momentum is as wide as with the
    buffer, but a step of less than half a unit of the weight is lost.

    Parameters
    ----------
    rule : BufferedSgd
        Formats and factors.
    """

    rule: BufferedSgd

    @property
    def weight(self) -> Fixed:
        """Format of the weight."""
        return self.rule.weight

    def __call__(self, weight: NDArray[np.int64], velocity: NDArray[np.int64], gradient: NDArray[np.int64]
                 ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """New weight and velocity (momentum) words."""
        rule = self.rule
        velocity = master_format(rule.weight).limit(
            rule.momentum(velocity) + rule.rate(gradient) + rule.decay(weight << EXTRA_BITS))
        return rule.weight.limit(weight - narrow(velocity, rule.weight)), velocity
