"""Recipes side by side: what is counted, what is trained and what is not, and what cannot be compared."""

import json
import signal
from dataclasses import replace
from math import prod
from pathlib import Path

import numpy as np
import pytest
from bench.builds import config
from bench.commands import tree
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from espalier.compress.cgap import Growth, Shedding, Structure, Times
from espalier.compress.group_lasso import GroupLasso
from espalier.compress.magnitude import Magnitude
from espalier.compress.procrustes import Procrustes, Tracking
from espalier.compress.rigl import ExchangeSchedule
from espalier.compress.schedule import CubicSchedule
from espalier.errors import DataError, FitError, GraphError
from espalier.flow import CompareRequest, CompileRequest, TrainingInterrupted, compare, compile_network, parse_seeds
from espalier.flow.comparison import outcome, plan
from espalier.flow.comparison import settings as settings_of
from espalier.flow.work import layer_work, pruned_share, training_macs
from espalier.ir import ops
from espalier.ir.graph import Graph
from espalier.ir.types import FLOAT, TensorType, Value
from espalier.numerics.convolution import conv2d
from espalier.numerics.window import Window
from espalier.report.comparison_page import Column, Comparison, Row, Run, log_ticks, render_comparison, scaled, scatter
from espalier.train.checkpoint import Checkpoint, EpochLog
from espalier.train.config import Prune, TrainConfig
from espalier.train.step import TrainingStep

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))
LATTICE = {"rows": 2, "lanes": 4}
IMAGES = 96  #: to train on, of ``bench.builds``


@pytest.fixture(scope="module")
def recipes(made, tmp_path_factory) -> tuple[Path, Path]:
    """A dense recipe and one that prunes to a half in blocks of 2, of 2 epochs."""
    folder = tmp_path_factory.mktemp("recipes")
    config(made, prune=None).save(folder / "dense.yaml")
    config(made).save(folder / "half.yaml")
    return folder / "dense.yaml", folder / "half.yaml"


@pytest.fixture(scope="module")
def compared(recipes, tmp_path_factory) -> tuple[Path, Comparison]:
    """Both recipes with two seeds."""
    output = tmp_path_factory.mktemp("compared")
    return output, compare(recipes, output, CompareRequest(epochs=1, seeds=(0, 1), **LATTICE))


def trained(made) -> Checkpoint:
    return Checkpoint.load(made / "train" / "checkpoint.safetensors")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_that_comes_with_espalier_is_one(path):
    found = TrainConfig.load(path)
    assert found.data == "digits" and path.read_text().startswith("# ")
    assert plan([path], CompareRequest(epochs=1))[0].configs[0].epochs == 1


def test_recipes_come_for_every_method():
    configs = [TrainConfig.load(path) for path in RECIPES]
    kinds = {config.prune and (config.prune.method.kind, config.prune.method.rows,
                               config.prune.schedule.start == config.prune.schedule.end, config.prune.schedule.end > 0,
                               config.prune.exchange is not None, config.prune.lasso is not None)
             for config in configs if config.structure is config.tracking is None}
    assert len(kinds) == 10 and len(RECIPES) == 14
    assert None in kinds and {kind[0] for kind in kinds if kind} == {"magnitude", "lamp", "balanced"}
    assert {config.structure.growth is None for config in configs if config.structure} == {True, False}
    assert sum(config.tracking is not None for config in configs) == 1


def test_settings_of_every_recipe_differ():
    told = {path.stem: {fact.name: fact.value for fact in settings_of(TrainConfig.load(path))} for path in RECIPES}
    assert len({tuple(facts.items()) for facts in told.values()}) == len(RECIPES)
    assert told["cgap"]["Widths"] == ("from 50% of the units; 60% of the units split 3 times, epochs 0.5 to 1.5, up to "
                                      "100% of the weights; units leave 4 times, epochs 2.5 to 4 until 36% of the "
                                      "weights are left")
    assert told["procrustes"]["Pruning"] == "the 20% that have moved most in the network are tracked (Procrustes)"
    assert told["erdos-renyi"]["Pruning"] == ("single weights by magnitude in each layer, densities Erdős–Rényi, to "
                                              "20%, epochs 0.5 to 4")
    assert "; group lasso of 0.0" in told["group-lasso"]["Pruning"]
    assert (told["dense"]["Widths"], told["dense"]["Frozen"]) == ("as they are", "none")


def test_the_table_of_two_recipes(compared, made):
    output, found = compared
    lines = found.table()
    assert [line.split()[0] for line in lines] == ["Recipe", "dense", "half"]
    assert lines[0].split("  ")[-1] == "Cycles an image, own rows" and "Cycles a step, 2×4" in lines[0]
    dense, half = found.rows
    log = [json.loads((output / name / "log.jsonl").read_text()) for name in ("half-0", "half-1")]
    accuracies = [entry["test_accuracy"] for entry in log]
    assert half.values(Column.ACCURACY) == tuple(accuracies)
    assert half.mean(Column.LIVE) == sum(log[0]["live"].values())
    low, high = (f"{100 * end(accuracies):.2f}" for end in (min, max))
    assert f"{50 * sum(accuracies):.2f}\u00a0% ({low}–{high})" in lines[2]
    assert dense.mean(Column.LIVE) == 4 * 9 + 640
    assert dense.mean(Column.FP) == 4 * 22 * 22 + 640 and dense.mean(Column.BP) == 640  # 3×3 on 8×8: 22 = 3·8 - 2
    assert dense.mean(Column.TRAINING) == IMAGES * (2 * 4 * 22 * 22 + 3 * 640)
    assert half.mean(Column.TRAINING) < dense.mean(Column.TRAINING)
    assert half.mean(Column.CYCLES) < dense.mean(Column.CYCLES)


def test_the_record_says_where_each_figure_comes_from(compared):
    output, found = compared
    record = json.loads((output / "compare.json").read_text())
    assert record == found.to_json() and (record["machine_rows"], record["machine_lanes"]) == (2, 4)
    runs = [run for row in record["rows"] for run in row["runs"]]
    assert [run["folder"] for run in runs] == ["dense-0", "dense-1", "half-0", "half-1"]
    for run in runs:
        assert {figure["name"]: figure["provenance"] for figure in run["figures"]} == {
            column.value: "measured" if column in (Column.ACCURACY, Column.LIVE) else "estimated" for column in Column}


def test_the_page_holds_everything_itself(compared):
    output, found = compared
    page = (output / "compare.html").read_text()
    assert not any(outside in page for outside in ("http", "src=", "href=", "<script", "@import", "url("))
    assert page.count("<circle") == 4 and "Test accuracy (%) against training MACs".lower() in page.lower()
    assert str(output) not in page and page == render_comparison(found)


def test_what_is_trained_is_not_trained_again(compared, recipes, monkeypatch):
    output, found = compared
    before, times = tree(output), {path: path.stat().st_mtime_ns for path in output.glob("*/*")}
    monkeypatch.setattr(TrainingStep, "__call__", None)
    assert compare(recipes, output, CompareRequest(epochs=1, seeds=(0, 1), **LATTICE)) == found
    assert tree(output) == before and {path: path.stat().st_mtime_ns for path in output.glob("*/*")} == times


def test_an_interrupted_comparison_is_kept_and_goes_on(compared, recipes, tmp_path, monkeypatch):
    expected, seen, take_step = compared[1].rows[0], [], TrainingStep.__call__

    def interrupted(self, *step):
        seen.append(step)
        take_step(self, *step)
        if len(seen) == 5 + 6 + 5 + 2:  # probe and epoch of the first seed, probe of the second, two steps
            signal.raise_signal(signal.SIGINT)

    request = CompareRequest(epochs=1, seeds=(0, 1), **LATTICE)
    monkeypatch.setattr(TrainingStep, "__call__", interrupted)
    with pytest.raises(TrainingInterrupted, match=r"^Training was interrupted in epoch 1 and is saved in .*dense-1: "):
        compare(recipes[:1], tmp_path, request)
    assert not (tmp_path / "compare.json").exists()
    monkeypatch.setattr(TrainingStep, "__call__", take_step)
    assert compare(recipes[:1], tmp_path, request).rows == (expected,)


def test_what_the_machine_does_not_take_is_said_in_its_place(recipes, made, compared, tmp_path):
    found = outcome(trained(made), "half-0", IMAGES, CompareRequest(rows=4, lanes=8))
    assert [fact.name for fact in found.missing] == ["Cycles a step"]
    assert found.missing[0].value.startswith("The live weights of 'conv.weight' are not whole 4×4 blocks: ")
    assert found.value(Column.OWN_CYCLES) is not None and found.lattice == "2×16"
    odd = outcome(trained(made), "half-0", IMAGES, CompareRequest(rows=2, lanes=3))
    assert odd.missing[0].value == ("A batch must be whole groups of lanes, and 16 images are not whole groups of 3")
    one = Comparison(machine_rows=4, machine_lanes=8, rows=(Row(name="half", settings=(), runs=(found,)),))
    table = one.table()
    assert "– [1]" in table[1] and table[2] == f"[1] {found.missing[0].value}"
    assert "are not whole 4×4 blocks" in render_comparison(one)


def test_networks_and_trainings_that_the_engine_does_not_run(made, tmp_path):
    for name, changes in {"float": {"quantise": None}, "narrow": {"quantise": {"update": "narrow", "probe_steps": 4}},
                          "strided": {"network": f"{made / 'net.py'}:strided"}}.items():
        config(made, epochs=1, prune=None, **changes).save(tmp_path / f"{name}.yaml")
    found = compare(sorted(tmp_path.glob("*.yaml")), tmp_path / "out", CompareRequest())
    reasons = {row.name: row.reason(Column.CYCLES) for row in found.rows}
    assert "not fixed-point: quantise the network first" in reasons["float"]
    assert reasons["narrow"].startswith("The machine trains in fixed point through the accumulation buffer")
    assert "stride of (3, 3)" in reasons["strided"]
    assert all(row.reason(Column.INDEX) and row.mean(Column.FP) for row in found.rows)
    assert found.rows[2].mean(Column.FP) == 4 * 9 * 4 + 160  # a 3×3 kernel at 2×2 places, then 16×10


def test_index_bytes_and_cycles_are_those_of_compile(made, tmp_path):
    found = outcome(trained(made), "half-0", IMAGES, CompareRequest(rows=2, lanes=16))
    design = compile_network(made / "train", tmp_path, CompileRequest(rows=2, lanes=16, batch=16), dry_run=True)
    assert found.value(Column.INDEX) == design.network().program.index_bytes
    assert found.value(Column.CYCLES) == 16 * found.value(Column.OWN_CYCLES) and found.lattice == "2×16"


def network(window: Window, channels: tuple[int, int], groups: int, size: tuple[int, int]) -> Graph:
    """A convolution and a linear layer, in float."""
    def value(name: str, *shape: int) -> Value:
        return Value(name, TensorType(shape, FLOAT))
    result = (channels[1], *window.out_size(*size))
    image, conv, flat, logits = (value("image", channels[0], *size), value("conv", *result),
                                 value("flat", prod(result)), value("fc", 3))
    w, v = value("w", channels[1], channels[0] // groups, *window.kernel), value("v", 3, prod(result))
    return Graph("net", (image,), (w, v), (ops.Conv2d(conv, image, w, None, window, groups), ops.Reshape(flat, conv),
                                           ops.Linear(logits, flat, v, None)), (logits,))


@settings(deadline=None, max_examples=60)
@given(kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)), stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
       pad=st.tuples(*[st.integers(0, 3)] * 4), dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
       groups=st.sampled_from([1, 2]), size=st.tuples(st.integers(1, 9), st.integers(1, 9)), seed=st.integers(0, 99))
def test_macs_are_the_live_products_inside_the_image(kernel, stride, pad, dilation, groups, size, seed):
    window = Window(kernel, stride, pad, dilation)
    try:
        graph = network(window, (2, 4), groups, size)
    except GraphError:
        assume(False)
    random = np.random.RandomState(seed)
    live = {value.name: random.rand(*value.shape) < 0.5 for value in graph.parameters}
    checkpoint = Checkpoint(graph, {}, {f"{name}.live": mask for name, mask in live.items()}, TrainConfig())
    work = layer_work(checkpoint)
    ones = np.ones((1, 2, *size), dtype=np.int64)
    assert work["w"].live == conv2d(ones, live["w"].astype(np.int64), window, groups).sum()
    assert work["w"].dense == conv2d(ones, np.ones_like(live["w"], dtype=np.int64), window, groups).sum()
    assert (work["v"].live, work["v"].dense) == (live["v"].sum(), live["v"].size)
    assert (work["w"].backward, work["v"].backward) == (False, True)


@pytest.mark.parametrize(("schedule", "shares"), [
    (CubicSchedule(0, 0), [1.0, 1.0]), (CubicSchedule(1, 1), [1.0, 1.0]), (CubicSchedule(1.5, 1.5), [1.0, 0.5]),
    (CubicSchedule(0, 1, 2), [0.5, 1.0]),  # three quarters and an eighth of it before step 2, the rest before step 4
])
def test_the_share_of_an_epochs_pruning(schedule, shares):
    assert [pruned_share(schedule, epoch, 4) for epoch in range(2)] == shares


def test_training_macs_by_hand(made):
    """Two epochs of 6 batches of 16; the convolution has 1,936 MACs for 36 weights, the linear layer 1 for each."""
    start = trained(made)
    log = [EpochLog(at, 0.1, 0.0, 0.0, 0.0, {"conv.weight": conv, "fc.weight": fc}, {})
           for at, (conv, fc) in enumerate([(36, 640), (18, 320)], 1)]
    work, images = layer_work(start), IMAGES

    def macs(**prune: object) -> int:
        told = replace(start.config, prune=replace(start.config.prune, **prune))
        return training_macs(replace(start, config=told, log=tuple(log)), work, images + 5)

    dense, half = 2 * 1936 + 3 * 640, 2 * 968 + 3 * 320
    assert macs(schedule=CubicSchedule(1, 1)) == images * (dense + half)
    assert macs(schedule=CubicSchedule(1.5, 1.5)) == images * (dense + (dense + half) // 2)
    exchange = ExchangeSchedule(1, 1.5, frequency=2)  # at steps 6, of 6..8
    assert macs(schedule=CubicSchedule(1, 1), exchange=exchange) == (
        images * (dense + half) + 16 * (968 + 1936 + 2 * 320 + 640))


def test_training_macs_of_changing_widths_and_tracked_weights(made):
    start = trained(made)
    log = [EpochLog(at, 0.1, 0.0, 0.0, 0.0, {"conv.weight": conv, "fc.weight": fc}, {})
           for at, (conv, fc) in enumerate([(36, 640), (18, 320)], 1)]
    work, dense, half = layer_work(start), 2 * 1936 + 3 * 640, 2 * 968 + 3 * 320

    def macs(**told: object) -> int:
        config = replace(start.config, prune=None, **told)
        return training_macs(replace(start, config=config, log=tuple(log)), work, IMAGES)

    shed = Structure(shedding=Shedding(Times(1.5, 1.5), 0.5), looks=2)  # before step 9, of 6..11, after 2 looks
    assert macs(structure=shed) == IMAGES * dense + IMAGES // 2 * (dense + half) + 2 * 16 * dense
    rule = Tracking(Procrustes(density=0.5, decay=0.0), 2)  # after steps 0, 1, 3, 6, 9
    assert macs(tracking=rule) == IMAGES * dense + 16 * (2 * dense + 4 * half)


def test_another_length_keeps_the_place_of_times(made, tmp_path):
    config(made, epochs=10, quantise={"start": 4}, rate={"kind": "step", "milestones": [5, 8], "warm_up": 3}, prune={
        "method": {"kind": "magnitude", "density": 0.5}, "schedule": {"start": 2, "end": 6},
        "exchange": {"start": 2, "end": 8}}).save(tmp_path / "r.yaml")
    found = plan([tmp_path / "r.yaml"], CompareRequest(epochs=5, seeds=(3,), network="net", data="d"))[0].configs[0]
    assert (found.epochs, found.seed, found.network, found.data) == (5, 3, "net", "d")
    assert (found.quantise.start, found.rate.milestones, found.rate.warm_up) == (2, (2, 4), 2)
    assert (found.prune.schedule.start, found.prune.schedule.end, found.prune.exchange.end) == (1, 3, 4)
    lasso = Prune(Magnitude(density=0.5), CubicSchedule(8, 8), None, GroupLasso(0.1, 2, 8))
    structure = Structure(0.5, Growth(Times(1, 2, 0.5)), Shedding(Times(3, 4), 0.5))
    replace(config(made, epochs=10), prune=lasso, structure=structure).save(tmp_path / "s.yaml")
    found = plan([tmp_path / "s.yaml"], CompareRequest(epochs=5))[0].configs[0]
    assert found.prune.lasso == GroupLasso(0.1, 1, 4)
    assert found.structure == Structure(0.5, Growth(Times(0.5, 1, 0.25)), Shedding(Times(1.5, 2, 0.5), 0.5))


def test_a_recipe_has_its_own_seed_and_length(made, tmp_path):
    config(made, seed=5).save(tmp_path / "r.yaml")
    found = plan([tmp_path / "r.yaml"], CompareRequest())
    assert found[0].configs == (config(made, seed=5),) and found[0].folder(found[0].configs[0]) == "r-5"


@pytest.mark.parametrize(("fields", "error", "sentence"), [
    ({"rows": 3}, FitError, r"^Rows must be one of 1, 2, 4, 8, 16, 32, 64, not 3$"),
    ({"lanes": 0}, FitError, r"^Lanes must be in 1\.\.1024, not 0$"),
    ({"epochs": 0}, DataError, r"^Recipes are compared over at least one epoch, not 0$"),
    ({"seeds": (1, 2, 1)}, DataError, r"^Each seed is trained once, and one of 1, 2, 1 is there twice: give different"),
])
def test_a_request_wrong(fields, error, sentence):
    with pytest.raises(error, match=sentence):
        CompareRequest(**fields)


def test_seeds():
    assert (parse_seeds(None), parse_seeds("7"), parse_seeds("0,1, 2")) == ((), (7,), (0, 1, 2))


@pytest.mark.parametrize("text", ["", "0,", "a", "1;2"])
def test_seeds_wrong(text):
    with pytest.raises(DataError, match=r"^Seeds are whole numbers with commas between them, such as 0,1,2, not '"):
        parse_seeds(text)


@pytest.mark.parametrize(("value", "text"), [(0, "0"), (999, "999"), (1936, "1.94\u00a0k"), (2.5e9, "2.5\u00a0G"),
                                             (3e22, "3e+04\u00a0E")])
def test_numbers_with_a_prefix(value, text):
    assert scaled(value).strip("\u00a0") == text


@given(low=st.floats(1, 1e12), factor=st.floats(1, 1e6))
def test_ticks_of_a_logarithmic_axis_span_it(low, factor):
    ticks = log_ticks(low, low * factor)
    assert len(ticks) >= 2 and ticks[0] <= low and low * factor <= ticks[-1] and list(ticks) == sorted(set(ticks))


def test_recipes_of_equal_outcome_have_numbers_apart():
    run = Run(seed=0, folder="a-0", figures=(Column.ACCURACY.figure(1.0), Column.LIVE.figure(10)))
    rows = tuple(Row(name=name, settings=(), runs=(run,)) for name in "abc")
    chart = scatter(Comparison(machine_rows=1, machine_lanes=1, rows=rows), Column.LIVE)
    ys = [mark.label_y for mark in chart.marks]
    assert [b - a for a, b in zip(ys, ys[1:], strict=False)] == [11, 11]
    assert all(chart.left <= mark.x <= chart.right and 0 <= mark.y <= chart.bottom for mark in chart.marks)
