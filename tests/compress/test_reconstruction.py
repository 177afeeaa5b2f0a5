"""Layers rebuilt on calibration images: exact where the answer is known, and far better than magnitude.

Weights are solved for in floating point; ``CLOSE`` is what linear algebra in double precision loses here.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from espalier.compress.magnitude import Magnitude
from espalier.compress.moments import Moments, columns, moments
from espalier.compress.reconstruction import Reconstructed, output_error, reconstruct, refit
from espalier.errors import UnsupportedError
from espalier.numerics.convolution import conv2d
from espalier.numerics.live import expand_blocks, live_blocks
from espalier.numerics.window import Window

CLOSE = 1e-8
TINY = 1e-12  #: damping where the images determine every weight


def inputs(seed: int, length: int, count: int = 400) -> np.ndarray:
    """Columns as rectified activations are: positive, correlated, of different sizes."""
    random = np.random.RandomState(seed)
    mixed = random.randn(count, max(1, length // 4)) @ random.randn(max(1, length // 4), length)
    return np.maximum(mixed * 0.5 + random.randn(count, length) * 0.5, 0)


def layer(seed: int, *shape: int) -> np.ndarray:
    return np.random.RandomState(1000 + seed).randn(*shape)


def by_magnitude(weights: np.ndarray, density: float, rows: int) -> Reconstructed:
    live = Magnitude(density=density, rows=rows)({"w": weights})["w"]
    return Reconstructed(np.where(live, weights, 0.0), np.zeros(len(weights)), live)


@settings(deadline=None, max_examples=30, derandomize=True)
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 2), st.integers(0, 1), st.integers(5, 7))
def test_columns_times_weights_are_the_convolution(channels: int, kernel: int, stride: int, pad: int, size: int
                                                   ) -> None:
    random = np.random.RandomState(size)
    images, weights = random.randn(2, channels, size, size + 1), random.randn(4, channels, kernel, kernel)
    window = Window((kernel, kernel), (stride, stride), (pad, pad, pad, pad))
    expected = conv2d(images, weights, window)
    found = columns(images, window) @ weights.reshape(4, -1).T
    assert np.allclose(found.reshape(2, *expected.shape[2:], 4).transpose(0, 3, 1, 2), expected, rtol=0, atol=1e-12)


def test_moments_of_batches_add_up() -> None:
    x, before = inputs(0, 6), inputs(1, 6)
    whole, parts = moments(x, before), moments(x[:100], before[:100]) + moments(x[100:], before[100:])
    assert whole.count == parts.count == 400
    for name in ("total", "total_original", "gram", "cross"):
        assert np.allclose(getattr(whole, name), getattr(parts, name), rtol=1e-12)
    assert np.array_equal(moments(x).cross, moments(x).gram)
    assert np.allclose(whole.gram, x.T @ x) and np.allclose(whole.cross, before.T @ x)
    gram, cross = whole.centred()
    assert np.allclose(gram, 400 * np.cov(x.T, bias=True))
    assert np.allclose(cross, (before - before.mean(0)).T @ (x - x.mean(0)))


def test_refit_by_hand() -> None:
    """Two equal inputs: the one that stays takes the other's weight over."""
    x = np.array([[1.0, 1.0], [-2.0, -2.0], [1.0, 1.0]])
    live = np.array([True, False]).reshape(1, 2, 1, 1)
    found = refit(np.array([3.0, 4.0]).reshape(1, 2, 1, 1), moments(x), live, damping=TINY)
    assert found.weights.reshape(-1) == pytest.approx([7, 0], abs=CLOSE) and found.bias_shift == pytest.approx([0])


def test_the_bias_takes_the_mean_over() -> None:
    """The input that dies is 5 whatever the image."""
    x = np.array([[1.0, 5.0], [2.0, 5.0], [4.0, 5.0]])
    live = np.array([True, False]).reshape(1, 2, 1, 1)
    found = refit(np.array([3.0, 2.0]).reshape(1, 2, 1, 1), moments(x), live, damping=TINY)
    assert found.weights.reshape(-1) == pytest.approx([3, 0]) and found.bias_shift == pytest.approx([10])
    without = refit(np.array([3.0, 2.0]).reshape(1, 2, 1, 1), moments(x), live, bias=False, damping=TINY)
    assert without.bias_shift.tolist() == [0] and without.weights[0, 0, 0, 0] == pytest.approx(3 + 10 * 7 / 21)


def test_refit_is_least_squares() -> None:
    """Equal to numpy's solver, on inputs that differ from the original ones, with a mask of mixed rows."""
    x, before, weights = inputs(2, 18), inputs(3, 18), layer(2, 5, 2, 3, 3)
    live = layer(3, 5, 2, 3, 3) > 0
    found = refit(weights, moments(x, before), live, damping=TINY)
    for output in range(5):
        kept = np.flatnonzero(live[output])
        design = np.column_stack([x[:, kept], np.ones(len(x))])
        expected = np.linalg.lstsq(design, before @ weights[output].reshape(-1), rcond=None)[0]
        assert np.allclose(found.weights[output].reshape(-1)[kept], expected[:-1], rtol=0, atol=1e-6)
        assert found.bias_shift[output] == pytest.approx(expected[-1], abs=1e-6)
    assert np.array_equal(found.live, live) and not found.weights[~live].any()


def test_error_is_what_the_outputs_lose() -> None:
    x, weights = inputs(4, 12), layer(4, 6, 12, 1, 1)
    found = reconstruct(weights, moments(x), 0.3)
    old, new = (w.reshape(6, -1) @ x.T for w in (weights, found.weights))
    lost = ((new + found.bias_shift[:, None] - old) ** 2).sum() / (old ** 2).sum()
    assert output_error(weights, found, moments(x)) == pytest.approx(lost)


@settings(deadline=None, max_examples=40, derandomize=True)
@given(st.integers(1, 9), st.integers(1, 5), st.sampled_from([1, 3]), st.sampled_from([1, 2, 4]), st.floats(0.05, 1),
       st.integers(0, 99))
def test_whole_blocks_to_the_density_and_no_worse_than_magnitude(
        outputs: int, channels: int, kernel: int, rows: int, density: float, seed: int) -> None:
    weights, seen = layer(seed, outputs, channels, kernel, kernel), moments(inputs(seed, channels * kernel ** 2))
    found = reconstruct(weights, seen, density, rows)
    live = found.live
    assert live.any() and np.array_equal(live, expand_blocks(live_blocks(live, rows), rows, live.shape))
    assert live.sum() <= max(density * live.size + 0.5, rows * rows)
    assert live.sum() >= density * live.size - rows * rows
    assert found.weights.shape == weights.shape and not found.weights[~live].any()
    kept = by_magnitude(weights, density, rows)
    rebuilt = refit(weights, seen, kept.live)
    assert output_error(weights, rebuilt, seen) <= output_error(weights, kept, seen) + 1e-3
    again = reconstruct(weights, seen, density, rows)
    assert np.array_equal(found.weights, again.weights) and np.array_equal(found.live, again.live)


@pytest.mark.parametrize(("rows", "density", "part"), [(1, 0.5, 0.3), (1, 0.27, 0.35), (1, 0.1, 0.5), (4, 0.5, 0.35),
                                                       (4, 0.27, 0.45)])
def test_far_better_than_magnitude(rows: int, density: float, part: float) -> None:
    """The error is below ``part`` of magnitude's, and clearly below that of magnitude's mask with the same refit."""
    weights, seen = layer(0, 32, 16, 3, 3), moments(inputs(0, 144, 1500))
    found, kept = reconstruct(weights, seen, density, rows), by_magnitude(weights, density, rows)
    error = output_error(weights, found, seen)
    assert error < part * output_error(weights, kept, seen)
    assert error < 0.95 * output_error(weights, refit(weights, seen, kept.live), seen)


def sparse_gpt(weights: np.ndarray, gram: np.ndarray, density: float, chunk: int = 64) -> np.ndarray:
    """The weights (O, K) after SparseGPT's sweep over the inputs: saliency w²/[H⁻¹]ⱼⱼ within chunks of inputs."""
    held = gram + 0.01 * np.trace(gram) / len(gram) * np.eye(len(gram))
    upper = np.linalg.cholesky(np.linalg.inv(held)).T
    new = weights.copy()
    for first in range(0, len(gram), chunk):
        part = slice(first, first + chunk)
        saliency = new[:, part] ** 2 / np.diag(upper)[part] ** 2
        live = saliency >= np.quantile(saliency, 1 - density)
        for index in range(first, min(first + chunk, len(gram))):
            dead = np.where(live[:, index - first], 0.0, new[:, index])
            new[:, index:] -= np.outer(dead / upper[index, index], upper[index, index:])
            new[:, index] = np.where(live[:, index - first], new[:, index], 0.0)
    return new


def test_better_than_sparse_gpt() -> None:
    weights, seen = layer(0, 32, 16, 3, 3), moments(inputs(0, 144, 1500))
    found = output_error(weights, reconstruct(weights, seen, 0.27, bias=False), seen)
    swept = sparse_gpt(weights.reshape(32, -1), seen.gram, 0.27).reshape(weights.shape)
    assert np.count_nonzero(swept) == pytest.approx(0.27 * swept.size, abs=20)
    sweep = output_error(weights, Reconstructed(swept, np.zeros(32), swept != 0), seen)
    solved = output_error(weights, refit(weights, seen, swept != 0, bias=False), seen)
    assert solved < sweep and found < 0.6 * sweep and found < 0.85 * solved


def test_close_to_the_best_of_all_masks() -> None:
    """Nine weights, of which three stay: all 84 masks are tried."""
    for seed in range(5):
        weights, seen = layer(seed, 1, 1, 3, 3), moments(inputs(seed, 9))
        errors = []
        for chosen in combinations(range(9), 3):
            live = np.isin(np.arange(9), chosen).reshape(1, 1, 3, 3)
            errors.append(output_error(weights, refit(weights, seen, live), seen))
        found = output_error(weights, reconstruct(weights, seen, 1 / 3), seen)
        assert found <= 1.3 * min(errors) and found <= np.quantile(errors, 0.05)


def test_better_on_images_it_has_not_seen() -> None:
    weights, x = layer(6, 16, 8, 3, 3), inputs(6, 72, 2000)
    seen, unseen = moments(x[:1000]), moments(x[1000:])
    found, kept = reconstruct(weights, seen, 0.25), by_magnitude(weights, 0.25, 1)
    assert output_error(weights, found, unseen) < 0.5 * output_error(weights, kept, unseen)


def test_a_layer_makes_up_for_the_layers_before_it() -> None:
    """What the pruned network feeds it is half of what it was: twice the weights give the old outputs."""
    before, weights = inputs(7, 8), layer(7, 4, 8, 1, 1)
    found = reconstruct(weights, moments(before / 2, before), 1.0, damping=TINY)
    assert np.allclose(found.weights, 2 * weights, rtol=0, atol=1e-6)


def test_nothing_changes_at_full_density() -> None:
    weights = layer(8, 4, 2, 3, 3)
    found = reconstruct(weights, moments(inputs(8, 18)), 1.0)
    assert found.live.all() and np.allclose(found.weights, weights, rtol=0, atol=CLOSE)
    assert np.allclose(found.bias_shift, 0, atol=CLOSE)


def test_inputs_that_are_always_zero_keep_their_weights_out_of_the_way() -> None:
    x = inputs(9, 6)
    x[:, :3] = 0
    weights = layer(9, 4, 6, 1, 1)
    found = reconstruct(weights, moments(x), 0.5)
    assert not found.live[:, :3].any() and output_error(weights, found, moments(x)) < 1e-12
    silent = reconstruct(weights, moments(np.zeros((10, 6))), 0.5)
    assert np.array_equal(silent.weights, np.where(silent.live, weights, 0.0))


def test_the_dead_stay_dead() -> None:
    weights, seen = layer(10, 8, 4, 3, 3), moments(inputs(10, 36))
    first = reconstruct(weights, seen, 0.5, 2)
    second = reconstruct(first.weights, seen, 0.25, 2, live=first.live)
    assert not (second.live & ~first.live).any() and second.live.sum() == 72


def test_moments_of_another_layer_wrong() -> None:
    with pytest.raises(UnsupportedError, match=r"^Weights of shape \(4, 2, 3, 3\) read columns of 18, and the moments "
                                               r"are of columns of 9: rebuild a convolution in groups one at a time$"):
        reconstruct(layer(0, 4, 2, 3, 3), moments(inputs(0, 9)), 0.5)


def test_columns_of_other_pixels_wrong() -> None:
    with pytest.raises(UnsupportedError, match=r"^The columns of the pruned and of the original network belong to the "
                                               r"same pixels, and their shapes are \(5, 2\) and \(4, 2\)$"):
        moments(np.zeros((5, 2)), np.zeros((4, 2)))


@pytest.mark.parametrize(("density", "rows", "damping", "sentence"), [
    (0.0, 1, 0.01, r"^A density is above 0 and at most 1, and that of a layer is 0.0$"),
    (0.5, 0, 0.01, r"^The edge of a block is at least 1, not 0$"),
    (0.5, 1, 0.0, r"^The damping of a reconstruction is above 0, not 0.0$"),
])
def test_numbers_of_a_reconstruction_wrong(density: float, rows: int, damping: float, sentence: str) -> None:
    seen: Moments = moments(inputs(0, 4))
    with pytest.raises(UnsupportedError, match=sentence):
        reconstruct(layer(0, 2, 4, 1, 1), seen, density, rows, damping=damping)
