"""Up to which learning rate training as a pipeline is stable, by scheme, momentum and delay.

    python benchmarks/pipeline_stability.py

A weight in a parabola of curvature k, trained with a rate r by SGD with momentum whose gradients come some steps late,
is a linear recurrence; it comes to rest where all its eigenvalues are smaller than 1. Computed is the largest r·k for
which that is so. Without delay it is 2 (1 + momentum). Compensated is spike compensation with linear weight prediction,
as :mod:`espalier.numerics.compensation` has them.
"""

from __future__ import annotations

import argparse
import sys

import numpy as np
from harness import write_results

from espalier.numerics.compensation import Compensation
from espalier.records import Figure, Provenance

MOMENTA, DELAYS = (0.0, 0.5, 0.9), (0, 2, 4, 6, 8)
SCHEMES = {"stale": (False, False), "spike compensation": (True, False), "weight prediction": (False, True),
           "compensated": (True, True)}
HALVINGS = 40


def radius(product: float, momentum: float, delay: int, spikes: bool, predicts: bool) -> float:
    """The largest eigenvalue of one step, for rate × curvature ``product``.

    State: weight, velocity, and the weights that the last ``delay`` forward passes saw, the newest first.
    """
    how = Compensation.of(momentum, delay if spikes else 0)
    weight, velocity, *seen = np.eye(2 + delay)
    met = weight - (delay if predicts else 0) * velocity
    gradient = product * (seen[-1] if delay else met)
    moved = momentum * velocity + gradient
    after = weight - how.lasting.value * moved - how.sudden.value * gradient
    return float(max(abs(np.linalg.eigvals(np.array([after, moved, *([met, *seen[:-1]] if delay else [])])))))


def limit(momentum: float, delay: int, spikes: bool, predicts: bool) -> float:
    """The largest rate × curvature that is stable."""
    low, high = 0.0, 4.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if radius(middle, momentum, delay, spikes, predicts) < 1 else (low, middle)
    return low


def main() -> int:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    figures = [Figure(f"{scheme}, momentum {momentum:g}, {delay} steps late: largest rate × curvature",
                      round(limit(momentum, delay, *kind), 4), "1", Provenance.ESTIMATED)
               for momentum in MOMENTA for delay in DELAYS for scheme, kind in SCHEMES.items()]
    for figure in figures:
        print(f"{figure.name:80} {figure.value:g}")
    write_results("pipeline_stability", seeds=[], figures=figures, bars=[])
    return 0


if __name__ == "__main__":
    sys.exit(main())
