from dataclasses import dataclass

import numpy as np
import pytest
from bench.simulation import simulate, trace
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from espalier.gateware.loss_unit import LOSS_SUM_BITS, LossUnit
from espalier.gateware.reciprocal import Reciprocal
from espalier.numerics.loss import SoftmaxCrossEntropy, SquareHinge

NO_SHRINK = settings(deadline=None, max_examples=15, derandomize=True, phases=[Phase.explicit, Phase.generate])


@dataclass
class Outcome:
    """What one run of a unit gave: gradients (lanes, classes), counters, and the cycle of each event after start."""

    gradients: np.ndarray
    loss_sum: int
    correct: int
    done: int
    vectors: list[int]


def rule_of(loss, classes):
    return {"classes": classes, "logit_frac": loss.logit_frac, "gradient_frac": loss.grad_frac,
            "gradient_width": loss.grad_width, "hinge": int(isinstance(loss, SquareHinge))}


def run_groups(unit, groups):
    """Run ``(loss, logits (lanes, classes), labels)`` one after the other; the counters go on adding up."""
    outcomes = []

    async def testbench(ctx):
        for loss, logits, labels in groups:
            classes = logits.shape[1]
            ctx.set(unit.rule, rule_of(loss, classes))
            ctx.set(unit.labels, labels.tolist())
            ctx.set(unit.start, 1)
            asked, gradients, vectors = [0] * (unit.read_latency + 1), np.zeros_like(logits), []
            for cycle in range(1, unit.cycles(classes, hinge=bool(rule_of(loss, classes)["hinge"])) + 10):
                await ctx.tick()
                ctx.set(unit.start, 0)
                asked = [ctx.get(unit.logit_class), *asked[:-1]]
                shown = logits[:, asked[-1]] if cycle > unit.read_latency else np.full(unit.lanes, -1)
                ctx.set(unit.logit_vector, shown.tolist())
                assert ctx.get(unit.busy)
                if ctx.get(unit.out_valid):
                    vectors.append(cycle)
                    assert ctx.get(unit.out_class) == len(vectors) - 1
                    gradients[:, len(vectors) - 1] = [ctx.get(unit.out_vector[lane]) for lane in range(unit.lanes)]
                if ctx.get(unit.done):
                    outcomes.append(Outcome(gradients, ctx.get(unit.loss_sum), ctx.get(unit.correct), cycle, vectors))
                    break
            await ctx.tick()
            assert not ctx.get(unit.busy) and not ctx.get(unit.done) and not ctx.get(unit.out_valid)

    simulate(unit, testbench, max_cycles=sum(unit.cycles(logits.shape[1], hinge=False) + 20 for _, logits, _ in groups))
    assert len(outcomes) == len(groups)
    return outcomes


def wrapped(loss_sum):
    half = 1 << LOSS_SUM_BITS - 1
    return (int(loss_sum) + half) % (2 * half) - half


def check_groups(unit, groups):
    loss_sum, correct = 0, 0
    for (loss, logits, labels), outcome in zip(groups, run_groups(unit, groups), strict=True):
        loss_sum += int(loss.loss(logits, labels).sum())
        correct += int((logits.argmax(axis=1) == labels).sum())
        assert np.array_equal(outcome.gradients, loss.grad(logits, labels)), loss
        assert (outcome.loss_sum, outcome.correct) == (wrapped(loss_sum), correct), loss
        assert len(outcome.vectors) == logits.shape[1]
        assert outcome.done == unit.cycles(logits.shape[1], hinge=isinstance(loss, SquareHinge))
        assert outcome.vectors[-1] <= outcome.done


def some_logits(rng, bits, lanes, classes):
    """Logits close together, far apart, equal, and at the ends of their range."""
    low, high = -(1 << bits - 1), (1 << bits - 1) - 1
    spread = rng.integers(low, high, (lanes, classes), endpoint=True) >> rng.integers(0, bits, (lanes, 1))
    ends = rng.choice([low, high, 0], (lanes, classes))
    return np.where(rng.random((lanes, 1)) < 0.2, ends, spread)


def some_loss(rng, word_bits, hinge):
    logit_frac, width = int(rng.integers(0, 17)), int(rng.integers(2, word_bits + 1))
    if hinge:
        return SquareHinge(logit_frac=logit_frac, grad_width=width, grad_frac=int(rng.integers(0, logit_frac + 1)))
    return SoftmaxCrossEntropy(logit_frac=logit_frac, grad_width=width, grad_frac=int(rng.integers(0, 32)))


def some_group(rng, unit, hinge, classes=None):
    classes = classes or int(rng.integers(2, unit.max_classes + 1))
    return (some_loss(rng, unit.word_bits, hinge), some_logits(rng, unit.word_bits, unit.lanes, classes),
            rng.integers(0, classes, unit.lanes))


@NO_SHRINK
@given(lanes=st.integers(1, 5), word_bits=st.integers(2, 16), max_classes=st.integers(2, 9),
       read_latency=st.integers(1, 4), seed=st.integers(0, 1 << 30))
def test_matches_numerics(lanes, word_bits, max_classes, read_latency, seed):
    rng = np.random.default_rng(seed)
    unit = LossUnit(lanes=lanes, word_bits=word_bits, max_classes=max_classes, read_latency=read_latency)
    check_groups(unit, [some_group(rng, unit, hinge) for hinge in (0, 1, 0)])


@pytest.mark.parametrize("hinge", [False, True])
def test_every_number_of_classes(hinge):
    rng = np.random.default_rng(3)
    unit = LossUnit(lanes=4, word_bits=16, max_classes=16)
    check_groups(unit, [some_group(rng, unit, hinge, classes) for classes in (*range(2, 11), 15, 16)])


def test_every_logit_frac_of_softmax():
    rng = np.random.default_rng(4)
    unit = LossUnit(lanes=5, word_bits=16, max_classes=3)
    check_groups(unit, [(SoftmaxCrossEntropy(logit_frac=frac, grad_width=16, grad_frac=14),
                         some_logits(rng, 16, 5, 3), rng.integers(0, 3, 5)) for frac in range(17)])


def test_every_gradient_format_of_softmax():
    rng = np.random.default_rng(5)
    unit = LossUnit(lanes=4, word_bits=16, max_classes=3)
    check_groups(unit, [(SoftmaxCrossEntropy(logit_frac=12, grad_width=2 + frac % 15, grad_frac=frac),
                         some_logits(rng, 16, 4, 3) >> 2, rng.integers(0, 3, 4)) for frac in range(32)])


def test_every_format_of_hinge():
    rng = np.random.default_rng(6)
    unit = LossUnit(lanes=5, word_bits=16, max_classes=2)
    check_groups(unit, [(SquareHinge(logit_frac=logit_frac, grad_width=16 - grad_frac % 3, grad_frac=grad_frac),
                         some_logits(rng, 16, 5, 2), rng.integers(0, 2, 5))
                        for logit_frac in range(17) for grad_frac in {0, logit_frac // 2, logit_frac}])


@pytest.mark.parametrize("hinge", [False, True])
def test_ends_of_the_range(hinge):
    """Every class at the lowest or highest logit: all equal, label apart, label alone on top."""
    low, high = -(1 << 15), (1 << 15) - 1
    logits = np.array([[low] * 4, [high] * 4, [low, high, high, high], [high, low, low, low], [low, low, low, high]])
    labels = np.array([0, 3, 0, 0, 3])
    unit = LossUnit(lanes=5, word_bits=16, max_classes=4)
    make = SquareHinge if hinge else SoftmaxCrossEntropy
    check_groups(unit, [(make(logit_frac=frac, grad_width=16, grad_frac=min(frac, 15)), logits, labels)
                        for frac in (0, 8, 15, 16)])


def test_first_of_equal_logits_is_the_answer():
    logits = np.array([[5, 5, 1], [5, 5, 1], [1, 5, 5], [1, 5, 5]])
    loss = SoftmaxCrossEntropy(logit_frac=4, grad_width=16, grad_frac=14)
    unit = LossUnit(lanes=4, word_bits=16, max_classes=3)
    outcome, = run_groups(unit, [(loss, logits, np.array([0, 1, 1, 2]))])
    assert outcome.correct == 2


def test_two_equal_logits_by_hand():
    """Probability one half each; the loss is ln 2 = 45426 · 2^-16."""
    loss = SoftmaxCrossEntropy(logit_frac=8, grad_width=16, grad_frac=14)
    outcome, = run_groups(LossUnit(lanes=1, word_bits=16, max_classes=2), [(loss, np.array([[7, 7]]), np.array([1]))])
    assert outcome.gradients.tolist() == [[8192, -8192]]
    assert (outcome.loss_sum, outcome.correct) == (45426, 0)


def test_vectors_follow_each_other_every_lanes_cycles():
    rng = np.random.default_rng(8)
    unit = LossUnit(lanes=6, word_bits=8, max_classes=8)
    outcome, = run_groups(unit, [some_group(rng, unit, False, classes=8)])
    assert set(np.diff(outcome.vectors)) == {6}


def test_cycles_of_a_group_of_16():
    unit = LossUnit(lanes=16, word_bits=16, max_classes=16)
    rng = np.random.default_rng(9)
    groups = [some_group(rng, unit, False, classes=10), some_group(rng, unit, True, classes=10)]
    assert [outcome.done for outcome in run_groups(unit, groups)] == [772, 345]


def test_clear_counters():
    unit = LossUnit(lanes=2, word_bits=8, max_classes=2)
    rule = rule_of(SoftmaxCrossEntropy(logit_frac=4, grad_width=8, grad_frac=6), 2)
    length = unit.cycles(2, hinge=False) + 1
    rows = [{"rule": rule, "start": 1}] + [{"rule": rule}] * length + [{"rule": rule, "clear_counters": 1}, {}]
    seen = trace(unit, rows, ["loss_sum", "correct"])
    assert seen[-2] == (2 * 45426, 2)  # all logits and labels are 0
    assert seen[-1] == (0, 0)


def test_reciprocal():
    rng = np.random.default_rng(10)
    unit = Reciprocal(exponent=40, least=15, divisor_bits=20)
    divisors = [1 << 15, (1 << 15) + 1, (1 << 20) - 1, 3 << 15, *rng.integers(1 << 15, 1 << 20, 40).tolist()]
    rows = [row for divisor in divisors for row in [{"start": 1, "divisor": divisor}] + [{}] * unit.latency_cycles]
    seen = trace(unit, rows, ["done", "quotient", "held"])
    ends = [k for k, (done, *_) in enumerate(seen) if done]
    assert ends == [k * (unit.latency_cycles + 1) + unit.latency_cycles for k in range(len(divisors))]
    assert [seen[k][1:] for k in ends] == [((1 << 40) // divisor, divisor) for divisor in divisors]


@pytest.mark.parametrize("exponent, least", [(9, 4), (8, 4), (6, 6)])
def test_reciprocal_of_every_divisor(exponent, least):
    unit = Reciprocal(exponent=exponent, least=least, divisor_bits=8)
    divisors = range(1 << least, 256)
    rows = [row for divisor in divisors for row in [{"start": 1, "divisor": divisor}] + [{}] * unit.latency_cycles]
    seen = trace(unit, rows, ["done", "quotient"])
    assert [quotient for done, quotient in seen if done] == [(1 << exponent) // divisor for divisor in divisors]
