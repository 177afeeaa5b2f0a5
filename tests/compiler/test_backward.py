"""The order of BP and WU, and whose gradients are stored together."""

import re

import pytest
from bench.networks import Chain

from espalier.compiler.backward import backward
from espalier.compiler.place import place
from espalier.errors import UnsupportedError
from espalier.numerics.window import Window
from espalier.program.words import Opcode

BP, WU = Opcode.BACKWARD, Opcode.UPDATE


def planned(chain):
    layers = chain.layers()
    plan = backward(layers)
    return [(step.opcode, layers[step.layer].name, step.add) for step in plan.steps], plan


def test_chain():
    steps, plan = planned(Chain((3, 8, 8)).conv(4, (1, 1)).average(Window((2, 2), (2, 2))).linear(3))
    assert steps == [(BP, "linear3", None), (WU, "linear3", None), (BP, "mean1", None), (WU, "conv0", None)]
    assert plan.complete == {"linear3": -1, "mean1": 0, "conv0": 2} and plan.shared == {}


def test_identity():
    """The gradient of the sum passes to what is added: the block's BP adds it, and nothing is copied."""
    chain = Chain((3, 8, 8)).conv(4, (1, 1)).relu()
    start = chain.x
    chain.conv(4, (3, 3), (1, 1, 1, 1)).relu().conv(4, (3, 3), (1, 1, 1, 1)).add(start).relu().linear(3)
    steps, plan = planned(chain)
    assert [step for step in steps if step[0] == BP] == [
        (BP, "linear8", None), (BP, "conv4", None), (BP, "conv2", "conv4.sum.relu")]
    assert plan.shared == {} and plan.complete["conv0.relu"] == 4
    layers = chain.layers()
    gradients = place(layers, 2).gradients
    spans = sorted((gradients[name], gradients[name] + 2 * 64) for name in ("conv0.relu", "conv2.relu",
                                                                           "conv4.sum.relu"))
    assert all(end <= start for (_, end), (start, _) in zip(spans, spans[1:], strict=False))  # all three at once


def projection(rectified):
    chain = Chain((3, 8, 8)).conv(4, (1, 1)).relu()
    start = chain.x
    chain.conv(6, (3, 3), window=Window((3, 3), (2, 2), (1, 1, 1, 1)))
    if rectified:
        chain.relu()
    inner, chain.x = chain.x, start
    return chain.conv(6, (1, 1), window=Window((1, 1), (2, 2))).add(inner).relu().linear(3)


def test_projection():
    """Both parts of the sum share its gradient; the second BP into the block's source adds to the first."""
    steps, plan = planned(projection(False))
    assert [step for step in steps if step[0] == BP] == [
        (BP, "linear7", None), (BP, "conv3", None), (BP, "conv2", "conv0.relu")]
    assert plan.shared == {"conv2": "conv3.sum.relu"}
    assert plan.complete["conv2"] == plan.complete["conv3.sum.relu"] == 0
    gradients = place(projection(False).layers(), 2).gradients
    assert gradients["conv2"] == gradients["conv3.sum.relu"]


def refused(chain, sentence):
    with pytest.raises(UnsupportedError, match=f"^{re.escape(sentence)}$"):
        backward(chain.layers())


def test_rectified_part_wrong():
    refused(projection(True), "Layer 'conv2' has a rectifier or a pool before a sum, and nothing else reads it: this "
                              "engine has no step that makes its gradient")


def test_two_sums_wrong():
    chain = Chain((3, 8, 8)).conv(4, (1, 1)).relu()
    start = chain.x
    chain.conv(4, (1, 1)).add(start).relu().conv(4, (1, 1)).add(start).linear(3)
    refused(chain, "The gradient of 'conv0.relu' is a sum whose parts this engine has no step to add: it may go into "
                   "one sum only, which comes after what else reads it")
