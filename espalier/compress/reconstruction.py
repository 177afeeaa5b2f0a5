"""One-shot pruning with reconstruction: the weights that stay make up for those that die, on calibration images.

Layer by layer, ``W'`` with few live blocks is sought that minimises ``|W x0 - W' x|²`` over the layer's input columns
(``moments.py``). Which blocks die is settled by the alternating direction method of multipliers, after Boža, "Fast
and Effective Weight Update for Pruned Large Language Models" (TMLR 2024): a dense weight that reconstructs and a
sparse one that obeys the density are drawn together while the density falls, so that blocks die with a view of what
the others can take over. What the live weights become is then solved exactly, by least squares.

The problem is that of Optimal Brain Surgeon and of SparseGPT (Frantar and Alistarh, ICML 2023), whose single sweep
leaves about twice the error (see the tests). For blocks (ours) the mean square decides which live.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from espalier.compress.moments import Moments
from espalier.compress.ranking import check_density, check_rows, keep_layer, mean_saliency, rank
from espalier.compress.schedule import CubicSchedule
from espalier.errors import UnsupportedError

DAMPING = 0.01  #: of the mean diagonal of the gram: what weights that the images do not determine are held with
COUPLING = 1.0  #: over the unit diagonal: how strongly the dense and the sparse weights are drawn together
STEPS = 24      #: rounds in which blocks die


@dataclass(frozen=True, slots=True, eq=False)
class Reconstructed:
    """A pruned layer.

    Parameters
    ----------
    weights : ndarray
        (O, I, KH, KW), zero where dead.
    bias_shift : ndarray
        What to add to the bias (O,); zero where the layer has none to move.
    live : ndarray
        The live mask of the weights' shape.
    """

    weights: NDArray[np.float64]
    bias_shift: NDArray[np.float64]
    live: NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class _Problem:
    """Minimise over ``v`` (O, K): ``v gram vᵀ / 2 - wanted vᵀ``, summed over outputs."""

    gram: NDArray[np.float64]
    wanted: NDArray[np.float64]


def reconstruct(weights: NDArray, moments: Moments, density: float, rows: int = 1, *,
                live: NDArray[np.bool_] | None = None, bias: bool = True, damping: float = DAMPING) -> Reconstructed:
    """Prune a layer to ``density`` and rebuild it.

    With O outputs of K inputs the choice takes about ``2 K³ + 48 O K²`` operations, the rebuilding ``2/3 d³ K³`` for
    each different row of the mask.

    Parameters
    ----------
    weights : ndarray
        (O, I, KH, KW) in real values. Of a convolution in groups: one group at a time.
    moments : Moments
        Of the layer's input columns, I · KH · KW long.
    density : float
        Fraction of the weights that stay, above 0, at most 1.
    rows : int
        Edge of a block. Dead blocks stay dead.
    live : ndarray
        What lives now, of the weights' shape; by default everything.
    bias : bool
        Whether the layer has a bias, which then takes up the change of the mean output.
    damping : float
        Of the mean diagonal of the gram, above 0: the pull back towards the old weights.

    Raises UnsupportedError where moments and weights do not belong together, or a number is out of range.
    """
    check_density(density, "a layer")
    check_rows(rows)
    problem = _problem(weights, moments, bias, damping)
    now = np.ones(weights.shape, dtype=np.bool_) if live is None else live
    chosen = _settle(problem, weights.astype(np.float64), now, density, rows)
    return _rebuilt(problem, weights, moments, chosen, bias)


def refit(weights: NDArray, moments: Moments, live: NDArray[np.bool_], *, bias: bool = True,
          damping: float = DAMPING) -> Reconstructed:
    """Rebuild a layer on the live mask that another method chose: the least-squares weights, row by row.

    The parameters are those of :func:`reconstruct`. Costs one solution of a linear system, as large as the number of
    live weights of an output, for each different row of the mask.
    """
    return _rebuilt(_problem(weights, moments, bias, damping), weights, moments, live, bias)


def output_error(weights: NDArray, rebuilt: Reconstructed, moments: Moments) -> float:
    """The part of the energy of a layer's outputs (bias apart) that is lost, on inputs with those moments.

    The original inputs are taken to be the same as the pruned network's.
    """
    old = weights.reshape(len(weights), -1).astype(np.float64)
    change = rebuilt.weights.reshape(old.shape) - old
    shift, mean = rebuilt.bias_shift, change @ moments.total
    lost = _energy(change, moments.gram) + 2 * shift @ mean + moments.count * shift @ shift
    return float(lost / _energy(old, moments.gram))


def _energy(weights: NDArray[np.float64], gram: NDArray[np.float64]) -> float:
    return float(((weights @ gram) * weights).sum())


def _problem(weights: NDArray, moments: Moments, bias: bool, damping: float) -> _Problem:
    matrix = weights.reshape(len(weights), -1).astype(np.float64)
    if len(moments.total) != matrix.shape[1]:
        raise UnsupportedError(f"Weights of shape {weights.shape} read columns of {matrix.shape[1]}, and the moments "
                               f"are of columns of {len(moments.total)}: rebuild a convolution in groups one at a time")
    if not damping > 0:
        raise UnsupportedError(f"The damping of a reconstruction is above 0, not {damping}")
    gram, cross = moments.centred() if bias else (moments.gram, moments.cross)
    held = damping * (np.trace(gram) / len(gram) or 1.0)
    return _Problem(gram + held * np.eye(len(gram)), matrix @ cross + held * matrix)


def _settle(problem: _Problem, weights: NDArray[np.float64], live: NDArray[np.bool_], density: float, rows: int
            ) -> NDArray[np.bool_]:
    """The live mask: rounds of a dense weight that reconstructs against a sparse one of falling density.

    Each input is scaled to a unit diagonal of the gram, where magnitude is what a weight adds to the output.
    """
    scale = np.sqrt(np.diag(problem.gram))
    inverse = np.linalg.inv(problem.gram / np.outer(scale, scale) + COUPLING * np.eye(len(scale)))
    wanted = problem.wanted / scale
    falling = CubicSchedule(0, STEPS)
    dense = weights.reshape(len(weights), -1) * scale
    debt = np.zeros(dense.shape)
    for step in range(1, STEPS + 1):
        pulled = dense + debt
        saliency = mean_saliency(pulled.reshape(weights.shape) ** 2, rows)
        chosen = keep_layer(rank(saliency, live, rows), falling.density(step, density) * weights.size)
        sparse = np.where(chosen.reshape(dense.shape), pulled, 0.0)
        debt = pulled - sparse
        dense = (wanted + COUPLING * (sparse - debt)) @ inverse
    return chosen


def _rebuilt(problem: _Problem, weights: NDArray, moments: Moments, live: NDArray[np.bool_], bias: bool
             ) -> Reconstructed:
    rebuilt = _least_squares(problem, live.reshape(len(live), -1))
    old = weights.reshape(rebuilt.shape).astype(np.float64)
    shift = (old @ moments.total_original - rebuilt @ moments.total) / moments.count
    return Reconstructed(rebuilt.reshape(weights.shape), shift if bias else np.zeros(len(old)), live)


def _least_squares(problem: _Problem, live: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The minimum of the problem with weights (O, K) on their support; outputs of one support are solved at once."""
    outputs: dict[bytes, list[int]] = {}
    for index, row in enumerate(live):
        outputs.setdefault(row.tobytes(), []).append(index)
    found = np.zeros(live.shape)
    for members in outputs.values():
        rows, support = np.array(members), np.flatnonzero(live[members[0]])
        solved = np.linalg.solve(problem.gram[np.ix_(support, support)], problem.wanted[np.ix_(rows, support)].T)
        found[np.ix_(rows, support)] = solved.T
    return found
