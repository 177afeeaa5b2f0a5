import json
import re
from dataclasses import replace

import numpy as np
import pytest
from bench.machines import TWO_BY_FOUR
from bench.networks import ACTIVATION, Chain, Formats, compiled, random_live, random_state, random_words

from espalier.engines import host
from espalier.engines.bundle import read_bundle, undifferentiated, write_bundle
from espalier.engines.interpreter import InterpreterEngine
from espalier.engines.rtl import RtlEngine
from espalier.engines.verify import Verification, compare, execution_order, main, rerun, verify_step
from espalier.errors import DataError, MismatchError
from espalier.ir.differentiate import differentiate
from espalier.program.words import Space


class Step:
    """A small network with pruned weights, a state and one group of images."""

    def __init__(self):
        chain = Chain((2, 6, 6)).conv(5, (3, 3), (1, 1, 1, 1)).relu().pool().linear(3)
        rng = np.random.default_rng(7)
        self.live = random_live(rng, chain, 2, 0.7)
        self.chain, self.network = chain, compiled(chain, TWO_BY_FOUR, live=self.live)
        self.state = random_state(rng, chain, self.live)
        self.images = random_words(rng, self.network.program.image_format, (4, 2, 6, 6), 0.3)
        self.labels = rng.integers(0, 3, 4)

    def trace(self):
        """Every tensor of the step, by the definition."""
        engine = InterpreterEngine(self.network)
        engine.load(self.state)
        return engine.traced_step(self.images, self.labels)

    def verify(self, candidate, **options):
        return verify_step(self.network, self.state, self.images, self.labels,
                           reference=InterpreterEngine(self.network), candidate=candidate, **options)


@pytest.fixture(scope="module")
def step():
    return Step()


class WithFault(RtlEngine):
    """The RTL with one weight altered in its memory, behind the back of the loader."""

    def load(self, state):
        name = "linear4.weight"
        index = (2, int(np.flatnonzero(self.network.live[name][2])[-1]))
        super().load(state)
        place = self.program.addresses[name][index]
        self.simulation.write(host.address(Space.WEIGHTS, place), np.array([9999], dtype=np.uint32), 10)


class Silent(InterpreterEngine):
    """An engine that tells nothing."""

    def traced_step(self, images, labels):
        return {}


class Wrong(InterpreterEngine):
    """The interpreter with one word of one tensor of its trace altered."""

    fault = ("conv0.weight.momentum", (4, 1, 2, 0))

    def traced_step(self, images, labels):
        found = super().traced_step(images, labels)
        name, index = self.fault
        found[name] = np.array(found[name])
        found[name][index] += 1
        return found


def test_rtl_agrees(step):
    found = step.verify(RtlEngine(step.network)).check()
    assert found.agrees and found.first is None and found.differing_words == 0
    stored = {placement.value for placement in step.network.program.placements}
    assert stored <= set(found.compared)
    kinds = [name for parameter in step.chain.parameters for name in (
        parameter.name, f"{parameter.name}.grad", f"{parameter.name}.master", f"{parameter.name}.momentum")]
    assert {*kinds, "loss", "correct", "conv0.relu.pool.code"} <= set(found.compared)
    assert set(found.one_sided) == {"image", "labels", "conv0", "conv0.relu", "conv0.relu.pool.flat",
                                    "conv0.relu.pool.flat.grad", "conv0.relu.pool.grad", "conv0.relu.grad"}
    trace = step.trace()
    assert found.words == sum(np.size(trace[name]) for name in found.compared)
    assert str(found) == f"{found.words} of {found.words} words in {len(found.compared)} tensors are equal"


def test_planted_fault_is_named(step, tmp_path):
    """One weight altered: the first tensor that its layer makes is the first that differs."""
    found = step.verify(WithFault(step.network), bundle=tmp_path / "bundle")
    assert not found.agrees and found.first is not None
    assert (found.first.tensor, found.first.index[1]) == ("linear4", 2)
    reference = step.trace()["linear4"]
    assert found.first.reference == reference[found.first.index] != found.first.candidate
    with pytest.raises(MismatchError, match=(
            rf"^{found.differing_words} of {found.words} words differ; in order of execution the first is linear4\[\d, "
            r"2\] is -?\d+ \(-?[\d.e-]+ in fixed<16,4,AP_RND,AP_SAT>\) by the reference and -?\d+ \(-?[\d.e-]+ in "
            r"fixed<16,4,AP_RND,AP_SAT>\) by the candidate$")):
        found.check()
    assert rerun(tmp_path / "bundle", candidate=WithFault) == found
    assert rerun(tmp_path / "bundle").check().agrees


@pytest.mark.parametrize(("fault", "sentence"), [
    (("conv0.weight.momentum", (4, 1, 2, 0)), "conv0.weight.momentum[4, 1, 2, 0] is "),
    (("conv0.relu.pool.code", (3, 4, 2, 1)), "conv0.relu.pool.code[3, 4, 2, 1] is "), (("loss", ()), "loss is "),
    (("correct", ()), "correct is ")])
def test_one_word_is_found(step, fault, sentence):
    candidate = Wrong(step.network)
    candidate.fault = fault
    with pytest.raises(MismatchError, match=rf"^1 of \d+ words differ; .* the first is {re.escape(sentence)}"):
        step.verify(candidate).check()


def test_both_formats_are_told(step):
    """What the graph says of a word, and what the Program says."""
    placements = tuple(replace(p, format=type(p.format).of(8, 3)) if p.value == "linear4" else p
                       for p in step.network.program.placements)
    network = replace(step.network, program=replace(step.network.program, placements=placements))
    ours = {"linear4": np.array([[1, 24]])}
    first = compare(network, ours, {"linear4": np.array([[1, 16]])}).first
    assert str(first) == ("linear4[0, 1] is 24 (0.00585938 in fixed<16,4,AP_RND,AP_SAT>) by the reference and "
                          "16 (2 in fixed<8,5,AP_RND,AP_SAT>) by the candidate")


def test_nothing_compared_is_no_pass(step):
    found = step.verify(Silent(step.network))
    assert not found.agrees
    with pytest.raises(MismatchError, match="^Nothing was compared: the two engines know no tensor in common$"):
        found.check()


def test_order_of_execution(step):
    order = list(execution_order(step.network.graph))
    places = [order.index(name) for name in (
        "image", "conv0", "conv0.relu.pool", "conv0.relu.pool.code", "linear4", "loss", "correct", "linear4.grad",
        "linear4.weight.grad", "linear4.weight.momentum", "linear4.weight.master", "linear4.weight", "conv0.grad",
        "conv0.weight.grad", "conv0.weight")]
    assert places == sorted(places)
    assert len(order) == len(set(order))


@pytest.mark.parametrize("loss", ["softmax_cross_entropy", "square_hinge"])
def test_undifferentiated(loss):
    chain = Chain((2, 4, 4)).conv(3, (3, 3)).relu().pool().linear(3, formats=Formats(gradient=ACTIVATION))
    graph = differentiate(chain.graph(), loss, chain.gradient_formats)
    inference, found, formats = undifferentiated(graph)
    assert (inference, found) == (chain.graph(), loss)
    assert differentiate(inference, found, formats) == graph


def test_bundle_comes_back(step, tmp_path):
    write_bundle(tmp_path, step.network, step.state, step.images, step.labels)
    bundle = read_bundle(tmp_path)
    assert bundle.network.graph == step.network.graph
    assert bundle.network.rules == step.network.rules
    assert bundle.network.program.commands == step.network.program.commands
    assert bundle.network.program.entries == step.network.program.entries
    assert bundle.network.program.machine == TWO_BY_FOUR
    assert bundle.state.keys() == step.state.keys()
    assert all(np.array_equal(bundle.state[name], step.state[name]) for name in step.state)
    assert all(np.array_equal(bundle.network.live[name], step.live[name]) for name in step.live)
    assert np.array_equal(bundle.images, step.images) and np.array_equal(bundle.labels, step.labels)


def test_bundle_is_the_same_bytes(step, tmp_path):
    for name in ("a", "b"):
        write_bundle(tmp_path / name, step.network, step.state, step.images, step.labels)
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == ["machine.json", "rules.json", "step.graph", "tensors.safetensors"]
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in files)


@pytest.mark.parametrize(("name", "content"), [
    ("machine.json", b"{"), ("machine.json", None), ("rules.json", b"[]"),
    ("rules.json", b'{"conv0.weight": {"weight": "fixed<8,4>"}}'), ("tensors.safetensors", b"not tensors"),
    ("step.graph", None), ("step.graph", b"\xff\xfe")])
def test_bundle_wrong(step, tmp_path, name, content):
    write_bundle(tmp_path, step.network, step.state, step.images, step.labels)
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=f"^{re.escape(str(tmp_path))} is not a whole verification bundle: "):
        read_bundle(tmp_path)


def test_bundle_without_a_tensor_wrong(step, tmp_path):
    write_bundle(tmp_path, step.network, step.state, step.images, step.labels)
    text = (tmp_path / "step.graph").read_text().replace("%conv0.bias", "%conv0.offset")
    (tmp_path / "step.graph").write_text(text)
    with pytest.raises(DataError, match=r"tensors.safetensors has no 'live/conv0.offset'$"):
        read_bundle(tmp_path)


def test_bundle_with_another_graph_wrong(step, tmp_path):
    write_bundle(tmp_path, step.network, step.state, step.images, step.labels)
    text = (tmp_path / "step.graph").read_text()
    (tmp_path / "step.graph").write_text(text.replace("relu_grad(g=%conv0.relu.grad, y=%conv0.relu)",
                                                      "relu_grad(g=%conv0.relu.grad, y=%conv0)"))
    with pytest.raises(DataError, match="^The training graph 'net' is not what differentiating its network gives: it "
                                        "was changed, or another version wrote it$"):
        read_bundle(tmp_path)


def test_bundle_of_an_inference_graph_wrong(step):
    with pytest.raises(DataError, match="^Graph 'net' has no loss: it is not a training graph$"):
        undifferentiated(step.chain.graph())


def test_command_line(step, tmp_path, capsys):
    write_bundle(tmp_path, step.network, step.state, step.images, step.labels)
    assert main([str(tmp_path)]) == 0
    assert re.fullmatch(r"(\d+) of \1 words in \d+ tensors are equal\n", capsys.readouterr().out)
    (tmp_path / "machine.json").write_text(json.dumps({"rows": 3}))
    assert main([str(tmp_path)]) == 1
    assert "machine" in capsys.readouterr().err
    assert main([]) == 2


def test_verification_of_equal_traces():
    found = Verification(compared=("a",), one_sided=(), words=3, differing_words=0, first=None)
    assert found.check() is found
