"""The page: every section there, nothing from outside, nothing green that was not run."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from espalier.records import Figure, Provenance
from espalier.report import Report, render
from espalier.report.cycles import Cycles, LayerCycles, OtherCycles, Phase
from espalier.report.model import (
    Area,
    ClockResult,
    Epoch,
    Estimate,
    Fact,
    Layer,
    Memories,
    Memory,
    Network,
    Resource,
    SaturationCount,
    Section,
    Skipped,
    TensorCheck,
    TensorFormat,
    ToolVersion,
    Training,
    Verification,
)
from espalier.report.render import NOT_RUN, headline

VOID = {"meta", "br"}
EQUAL = Verification(engines=("RTL simulation", "interpreter"), steps=2,
                     tensors=(TensorCheck(name="loss", words=16, differing=0),
                              TensorCheck(name="conv1.out", words=1234567, differing=0)))
SAMPLE = Report(
    title="LeNet-5 on <digits>",
    network=Network(name="lenet5", input_shape=(1, 28, 28), layers=(
        Layer(name="conv1", op="Conv2d", shape=(6, 28, 28), weights=156, live=156),
        Layer(name="fc1", op="Linear", shape=(120,), weights=48_120, live=3_100))),
    training=Training(dataset="digits", recipe=(Fact("batch", "64"),), baseline_accuracy=0.99, epochs=tuple(
        Epoch(epoch=at, loss=2 / at, train_accuracy=1 - 0.2 / at, test_accuracy=1 - 0.3 / at, live_weights=5000 - at)
        for at in range(1, 5))),
    verifications=(EQUAL,),
    cycles=Cycles(multipliers=128, images=16, step_cycles=5000, dense_step_cycles=40_000, layers=(
        LayerCycles(layer="conv1", phase=Phase.FP, cycles=1000, useful_macs=120_000, dense_cycles=1000),
        LayerCycles(layer="conv1", phase=Phase.WU, cycles=1000, useful_macs=110_000, dense_cycles=2000),
        LayerCycles(layer="fc1", phase=Phase.FP, cycles=500, useful_macs=64_000, dense_cycles=5000),
        LayerCycles(layer="fc1", phase=Phase.BP, cycles=500, useful_macs=32_000, dense_cycles=5000)),
        others=(OtherCycles(name="update", cycles=321, dense_cycles=4321),),
        figures=(Figure("Peak GOPS", 25.6, "GOPS", Provenance.ESTIMATED),)),
    memories=Memories(memories=(Memory(name="weights", holds="live blocks", words=1024, bits=16, used=512,
                                       block_rams=8),)),
    area=Area(device="ecp5-85f (LFE5U-85F)", source="nextpnr-ecp5 0.11",
              resources=(Resource(name="MULT18X18D", used=128, available=156),
                         Resource(name="TRELLIS_IO", used=400, available=365)),
              clocks=(ClockResult(name="clk", achieved_mhz=94.25, wanted_mhz=80),), limit="7.47 ns from ra to p",
              cells_per_mac=(Figure("LUT4 per MAC", 83.2, "cells/MAC", Provenance.SYNTHESISED),)),
    estimates=(Estimate(name="Cycles", unit="cycles", estimated=4900, actual=5000, provenance=Provenance.SIMULATED),),
    figures=(Figure("Energy of a step", 1.25, "mJ", Provenance.ESTIMATED),),
    machine=(Fact("rows", "8"),),
    formats=(TensorFormat(tensor="conv1.weight", role="parameter", format="fixed<16,2>"),),
    saturation=(SaturationCount(tensor="conv1.out", saturated=1, words=4000),),
    tools=(ToolVersion("yosys", "0.70"),),
)


class Page(HTMLParser):
    """Reads a page: its tags balanced, the text of each section, and every attribute."""

    def __init__(self, text):
        super().__init__()
        self.open, self.sections, self.attributes, self.tags, self.section = [], {}, [], [], None
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *attr) for attr in attrs]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "section":
            self.section = dict(attrs)["id"]
            self.sections[self.section] = ""

    def handle_startendtag(self, tag, attrs):
        self.attributes += [(tag, *attr) for attr in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        if tag == "section":
            self.section = None

    def handle_data(self, data):
        if self.section:
            self.sections[self.section] += data


def words(text):
    return re.sub(r"\s+", " ", text)


@pytest.mark.parametrize("report", [SAMPLE, Report(title="empty")], ids=["full", "empty"])
def test_every_section_is_there_in_order(report):
    page = Page(render(report))
    assert list(page.sections) == [section.name.lower() for section in Section]
    links = [value for tag, name, value in page.attributes if (tag, name) == ("a", "href")]
    assert links == [f"#{section.name.lower()}" for section in Section]


@pytest.mark.parametrize("report", [SAMPLE, Report(title="empty")], ids=["full", "empty"])
def test_nothing_comes_from_outside(report):
    text = render(report)
    page = Page(text)
    assert not {"script", "link", "img", "iframe", "object"} & set(page.tags)
    assert not [value for _, name, value in page.attributes if name == "src" or name.startswith("on")]
    assert "://" not in text and "url(" not in text and "@import" not in text


def test_an_empty_report_says_what_was_not_run_and_is_not_green():
    text = render(Report(title="empty"))
    page = Page(text)
    for section in Section:
        said = words(page.sections[section.name.lower()])
        assert words(NOT_RUN[section].replace("`", "")) in said
    classes = [value for _, name, value in page.attributes if name == "class"]
    assert classes.count("notrun") == len(Section) and not [c for c in classes if "good" in c]
    assert [card.provenance for card in headline(Report(title="empty"))] == [None] * 6


def test_a_reason_given_replaces_the_general_one():
    report = Report(title="x", skipped=(Skipped(Section.AREA, "Synthesis took over 60 s, see `yosys.log`."),))
    assert "Synthesis took over 60 s, see yosys.log." in words(Page(render(report)).sections["area"])


def test_equal_reports_give_equal_pages_through_json():
    again = Report.from_json(json.loads(json.dumps(SAMPLE.to_json())))
    assert again == SAMPLE
    assert render(again) == render(SAMPLE)


def test_figures_are_on_the_page():
    page = {name: words(text).replace("\u00a0", " ") for name, text in Page(render(SAMPLE)).sections.items()}
    assert "fc1Linear12048,1203,1006.4 %" in page["network"].replace("> ", ">")
    assert "0.5000" in page["training"] and "92.50 %" in page["training"]
    assert "Equal: 2 tensors, 1,234,583 words in 2 steps, 0 differ." in page["verification"]
    assert "1,00093.8 %1.00×–––1,00085.9 %2.00×" in page["cycles"]
    assert "All layers1,50095.8 %4.00×50050.0 %10.00×1,00085.9 %2.00×" in page["cycles"]
    assert "8.00× as long" in page["cycles"]
    assert "weightslive blocks1,0241616.0851250.0 %" in page["memories"]
    assert "94.2 MHz80 MHzyes" in page["area"] and "109.6 %" in page["area"]
    assert "7.47 ns from ra to p" in page["area"]
    assert "-2.00 %" in page["estimates"] and "1.25 mJ" in page["figures"]
    assert "fixed<16,2>" in page["formats"] and "0.025 %" in page["saturation"]


def test_every_table_of_figures_names_its_provenance():
    text = render(SAMPLE)
    for name in ("network", "training", "verification", "cycles", "memories", "area", "estimates", "figures",
                 "saturation"):
        section = text[text.index(f'<section id="{name}"'):]
        section = section[:section.index("</section>")]
        for table in re.findall(r"<table.*?</table>", section, re.S):
            assert 'class="badge' in table or "Recipe" in table


def test_text_is_escaped():
    text = render(SAMPLE)
    assert "LeNet-5 on &lt;digits&gt;" in text and "<digits>" not in text


@pytest.mark.parametrize(("check", "said", "alarm"), [
    (replace(EQUAL, tensors=(TensorCheck(name="x", words=5, differing=2),), mismatch="tensor `x`, index (3,)"),
     "Not equal: 2 of 5 words differ.", True),
    (replace(EQUAL, tensors=()), "Nothing was compared, so nothing is shown to be equal.", True),
    (replace(EQUAL, steps=0), "Nothing was compared", True),
    (replace(EQUAL, tensors=(TensorCheck(name="x", words=0, differing=0),)), "Nothing was compared", True),
    (EQUAL, "Equal: 2 tensors", False)])
def test_verdicts(check, said, alarm):
    report = replace(SAMPLE, verifications=(check,))
    text = render(report)
    assert said in words(Page(text).sections["verification"])
    assert ('class="verdict good"' in text) is not alarm
    assert headline(report)[2].alarm is alarm


def test_partial_sections_say_what_is_missing():
    report = replace(SAMPLE, area=replace(SAMPLE.area, clocks=()),
                     cycles=replace(SAMPLE.cycles, dense_step_cycles=None),
                     training=replace(SAMPLE.training, baseline_accuracy=None))
    page = Page(render(report)).sections
    assert "Place and route was not run" in page["area"]
    assert "The dense network was not run" in page["cycles"]
    assert "No float32 dense baseline" in page["training"]
    assert [card.text for card in headline(report)[3:]] == ["not run", "50.9\u00a0%", "not run"]


def test_a_training_log_that_is_empty_or_diverged_still_renders():
    nan = float("nan")
    for epochs in ((), (Epoch(epoch=1, loss=nan, test_accuracy=None),), (Epoch(epoch=7, loss=1.0),)):
        report = Report(title="x", training=Training(dataset="d", recipe=(), epochs=epochs))
        assert render(report) == render(Report.from_json(json.loads(json.dumps(report.to_json()))))


def test_a_missed_clock_raises_an_alarm():
    slow = replace(SAMPLE.area, clocks=(ClockResult(name="clk", achieved_mhz=70.0, wanted_mhz=80),))
    assert headline(replace(SAMPLE, area=slow))[5].alarm
