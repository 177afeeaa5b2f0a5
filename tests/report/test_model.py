"""Report data: what it refuses, its ratios, and its JSON."""

import json
import math

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from espalier.errors import DataError
from espalier.records import Figure, Provenance
from espalier.report.charts import accuracy_chart, cycle_chart, live_chart, loss_chart, round_ticks
from espalier.report.cycles import Cycles, LayerCycles, Phase
from espalier.report.model import Epoch, Layer, Memory, Network, Report, SaturationCount, Section, TensorCheck
from espalier.report.render import percent, quantity


def test_ratios_by_hand():
    cycles = Cycles(multipliers=4, images=1, step_cycles=100, dense_step_cycles=250, layers=(
        LayerCycles(layer="a", phase=Phase.FP, cycles=30, useful_macs=90, dense_cycles=60),
        LayerCycles(layer="b", phase=Phase.FP, cycles=10, useful_macs=40, dense_cycles=40),
        LayerCycles(layer="b", phase=Phase.WU, cycles=20, useful_macs=40)))
    assert cycles.layer_names == ("a", "b")
    assert cycles.phase_total(Phase.FP).speedup == 2.5
    assert cycles.phase_total(Phase.BP) is None and cycles.phase_total(Phase.WU).speedup is None
    assert cycles.utilisation(cycles.of("a", Phase.FP)) == 0.75
    assert (cycles.step_utilisation, cycles.step_speedup) == (170 / 400, 2.5)


@pytest.mark.parametrize(("make", "text"), [
    (lambda: Layer(name="a", op="Linear", shape=(1,), weights=3, live=4), "Live weights of a must be in 0..3, not 4"),
    (lambda: TensorCheck(name="a", words=3, differing=-1), "Differing words of a must be in 0..3, not -1"),
    (lambda: Memory(name="a", holds="", words=3, bits=8, used=4), "Used words of a must be in 0..3, not 4"),
    (lambda: SaturationCount(tensor="a", saturated=4, words=3), "Saturated words of a must be in 0..3, not 4"),
    (lambda: Cycles(multipliers=2, images=1, step_cycles=9, dense_step_cycles=None, layers=(
        LayerCycles(layer="a", phase=Phase.BP, cycles=3, useful_macs=7),)),
     "Useful MACs of a BP must be in 0..6, not 7"),
    (lambda: Cycles(multipliers=2, images=1, step_cycles=3, dense_step_cycles=None, layers=(
        LayerCycles(layer="a", phase=Phase.BP, cycles=4, useful_macs=7),)),
     "Useful MACs of the step must be in 0..6, not 7")])
def test_impossible_counts_wrong(make, text):
    with pytest.raises(DataError) as caught:
        make()
    assert str(caught.value) == text


@pytest.mark.parametrize(("change", "text"), [
    (lambda d: d.pop("title"), "The field report.title must be there and is missing"),
    (lambda d: d.update(colour=1), "The field report.colour is not known; it must be one of title, network"),
    (lambda d: d.update(title=3), "The field report.title must be text, not 3"),
    (lambda d: d.update(network=[]), "The field report.network must be an object, not []"),
    (lambda d: d.update(machine={}), "The field report.machine must be a list, not {}"),
    (lambda d: d.update(machine=[{"name": "a"}]), "The field report.machine[0].value must be there and is missing"),
    (lambda d: d["figures"][0].update(provenance="guessed"),
     "The field report.figures[0].provenance must be one of estimated, simulated, synthesised, measured"),
    (lambda d: d["figures"][0].update(value=True), "The field report.figures[0].value must be a number, not True"),
    (lambda d: d.update(verifications=[{"engines": ["a"], "steps": 1, "tensors": []}]),
     "The field report.verifications[0].engines must be a list of 2, not ['a']"),
    (lambda d: d.update(verifications=[{"engines": ["a", "b"], "steps": 1.5, "tensors": []}]),
     "The field report.verifications[0].steps must be a whole number, not 1.5"),
    (lambda d: d.update(report_format=2), "A report must be a JSON object with report_format 1")])
def test_from_json_wrong(change, text):
    data = Report(title="t", figures=(Figure("f", 1, "u", Provenance.MEASURED),)).to_json()
    change(data)
    with pytest.raises(DataError) as caught:
        Report.from_json(data)
    assert str(caught.value).startswith(text)


def test_from_json_of_a_list_wrong():
    with pytest.raises(DataError, match="^A report must be a JSON object"):
        Report.from_json([])


numbers = st.none() | st.floats(allow_nan=False)
epochs = st.builds(Epoch, epoch=st.integers(0, 999), loss=numbers, train_accuracy=st.none() | st.floats(0, 1),
                   test_accuracy=st.none() | st.floats(0, 1), live_weights=st.none() | st.integers(0, 10**9))


@settings(deadline=None)
@given(st.lists(st.builds(Figure, st.text(), st.integers() | st.floats(allow_nan=False), st.text(),
                          st.sampled_from(Provenance)), max_size=4).map(tuple), st.text())
def test_json_round_trip(figures, title):
    report = Report(title=title, figures=figures)
    assert Report.from_json(json.loads(json.dumps(report.to_json(), allow_nan=False))) == report


@settings(deadline=None)
@given(st.lists(epochs, max_size=6), st.none() | st.floats(0, 1))
def test_line_charts_stay_inside_their_frame(some, baseline):
    for chart in (accuracy_chart(some, baseline), loss_chart([e for e in some if e.loss is None or abs(e.loss) < 1e9])):
        if chart is None:
            continue
        for line in chart.lines:
            assert all(chart.left <= point.x <= chart.right and chart.top <= point.y <= chart.bottom
                       for point in line.points)
        assert all(chart.top <= tick.at <= chart.bottom for tick in chart.y_ticks)


def test_bar_charts_by_hand():
    network = Network(name="n", input_shape=(1,), layers=(
        Layer(name="a", op="Linear", shape=(1,), weights=480, live=240),
        Layer(name="b", op="Linear", shape=(1,), weights=0, live=0),
        Layer(name="c", op="Linear", shape=(1,), weights=48, live=0)))
    bars = live_chart(network).bars
    assert [(bar.label, bar.length, bar.outline) for bar in bars] == [("a", 240.0, 480.0), ("c", 0.0, 48.0)]
    assert live_chart(Network(name="n", input_shape=(1,), layers=())) is None
    empty = Cycles(multipliers=1, images=1, step_cycles=0, dense_step_cycles=None, layers=())
    assert cycle_chart(empty) is None


@settings(deadline=None)
@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))
@example(1e6, 2.0 ** -9)
def test_ticks_span_the_range(low, extent):
    ticks = round_ticks(low, low + extent, 5)
    assert 2 <= len(ticks) <= 8 and list(ticks) == sorted(set(ticks))
    slack = 1e-3 * extent  # ends within a thousandth of the range are not worth a tick
    assert ticks[0] <= low + slack and ticks[-1] >= low + extent - slack


@pytest.mark.parametrize(("ratio", "digits", "text"), [
    (None, 1, "–"), (0.0, 1, "0.0 %"), (1.0, 1, "100.0 %"), (0.99999, 1, "99.9 %"), (0.00001, 1, "< 0.1 %"),
    (0.93456, 2, "93.46 %"), (1.2, 1, "120.0 %"), (math.inf, 1, "inf")])
def test_percent_never_rounds_to_all_or_nothing(ratio, digits, text):
    assert percent(ratio, digits).replace("\u00a0", " ") == text


def test_quantities():
    make = [Figure("a", value, unit, Provenance.MEASURED) for value, unit in
            ((1234567, "cells"), (1234.5, ""), (0.0123456, "mJ"), (math.nan, "x"))]
    assert [quantity(figure) for figure in make] == ["1,234,567 cells", "1,234", "0.01235 mJ", "nan x"]


def test_section_headings_are_distinct():
    assert len({section.value for section in Section}) == len(Section)
