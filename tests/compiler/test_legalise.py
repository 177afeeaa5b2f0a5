import re

import numpy as np
import pytest
from bench.networks import ACTIVATION, GRADIENT, POOL, Chain, Formats

from espalier.compiler.legalise import legalise
from espalier.compiler.lists import weight_numbers
from espalier.errors import UnsupportedError
from espalier.ir.differentiate import differentiate, gradient_name
from espalier.ir.ops import Add, Conv2d, Relu, Reshape
from espalier.ir.types import FLOAT
from espalier.numerics.activation import average_reciprocal
from espalier.numerics.fixed import Fixed
from espalier.numerics.window import Window


def refused(chain, sentence, loss="softmax_cross_entropy"):
    with pytest.raises(UnsupportedError, match=f"^{re.escape(sentence)}$"):
        legalise(chain.training_graph(loss))


def image(height=8, width=8):
    return Chain((3, height, width))


def test_layers_of_a_chain():
    chain = image().conv(5, (3, 2), (1, 0, 1, 1)).relu().pool().conv(7, (1, 1), bias=False).linear(11).relu().linear(4)
    layers, loss = legalise(chain.training_graph())
    assert [(layer.x, layer.out) for layer in layers] == [
        ("image", "conv0.relu.pool"), ("conv0.relu.pool", "conv3"), ("conv3", "linear5.relu"),
        ("linear5.relu", "linear7")]
    assert [layer.weight_shape for layer in layers] == [(5, 3, 3, 2), (7, 5, 1, 1), (11, 7, 4, 4), (4, 11, 1, 1)]
    assert [(layer.rectify, layer.pool, layer.bias) for layer in layers] == [
        (True, True, "conv0.bias"), (False, False, None), (True, False, "linear5.bias"), (False, False, "linear7.bias")]
    assert (layers[0].pad, layers[0].conv_shape, layers[0].out_shape) == ((1, 0), (5, 8, 8), (5, 4, 4))
    assert [layer.input_gradient_format for layer in layers] == [None, GRADIENT, GRADIENT, GRADIENT]
    assert (loss.hinge, loss.classes, loss.logit_format, loss.gradient_format) == (False, 4, ACTIVATION, GRADIENT)


def test_pool_before_rectifier_is_the_same_layer():
    first, = image().conv(4, (3, 3)).relu().pool().linear(2).layers()[:1]
    second, = image().conv(4, (3, 3)).pool().relu().linear(2).layers()[:1]
    assert (first.rectify, first.pool, first.out_shape) == (second.rectify, second.pool, second.out_shape)


def test_hinge():
    chain = image().linear(3, formats=Formats(gradient=Fixed.of(16, 9)))
    assert legalise(chain.training_graph("square_hinge"))[1].hinge


def test_no_loss_wrong():
    with pytest.raises(UnsupportedError, match="^Graph 'net' has no loss: differentiate it before compiling$"):
        legalise(image().linear(3).graph())


def test_input_shape_wrong():
    refused(Chain((9,)).linear(3),
            "The input 'image' has shape (9,): this engine takes images (channels, height, width)")


def test_operation_wrong():
    chain = image().conv(4, (1, 1))
    chain.append(Add(chain.value("sum", chain.x.shape, ACTIVATION, GRADIENT), chain.x, chain.x)).linear(3)
    refused(chain, "Layer 'sum' (Add) must add the results of two layers, and the later of them must have no "
                   "rectifier, pool or sum of its own")


def test_branch_wrong():
    chain = image().conv(3, (1, 1))
    before = chain.x
    chain.relu()
    chain.append(Relu(chain.value("other", before.shape, ACTIVATION, GRADIENT), before)).linear(3)
    refused(chain, "Layers 'conv0.relu' and 'other' both read 'conv0', which this engine does not keep, for it is "
                   "fused to the first of them")


def test_reshape_wrong():
    chain = image().conv(4, (1, 1))
    chain.append(Reshape(chain.value("view", (2, 16, 8), ACTIVATION, GRADIENT), chain.x)).linear(3)
    refused(chain, "Layer 'view' reshapes to (2, 16, 8): this engine only flattens before a linear layer")


@pytest.mark.parametrize(("chain", "name", "kind"), [
    (image().relu().linear(3), "image.relu", "Relu"), (image().pool().linear(3), "image.pool", "MaxPool"),
    (image().conv(4, (1, 1)).flatten().relu().linear(3), "conv0.flat.relu", "Relu")])
def test_nothing_to_follow_wrong(chain, name, kind):
    refused(chain, f"Layer '{name}' ({kind}) must follow a convolution or linear layer directly")


def test_a_clipped_rectifier_clips_at_a_word():
    """At the least of several; ``ACTIVATION`` has 12 fraction bits."""
    layers = image().conv(4, (3, 3)).clip(6).pool().conv(4, (1, 1)).clip(3).relu().clip(5).linear(2).layers()
    assert [(layer.rectify, layer.clip) for layer in layers] == [(True, 6 << 12), (True, 3 << 12), (False, 0)]


def test_a_clip_of_less_than_a_unit_wrong():
    coarse = Formats(result=Fixed.of(16, -3))
    refused(image().conv(4, (3, 3), formats=coarse).clip(6).linear(3),
            f"Layer 'conv0.clip' clips at 6, which is less than one unit of {coarse.result}: give it a finer format")


def test_end_wrong():
    refused(image().linear(3).relu(), "Network 'net' must end in a layer whose result is the logits")


def test_logits_of_a_flattened_convolution():
    layer, = image().conv(3, (8, 8)).flatten().layers()
    assert (layer.name, layer.conv_shape) == ("conv0", (3, 1, 1))
    refused(image().conv(3, (7, 8)).flatten(), "Network 'net' must end in a layer whose result is the logits")


def changed(chain, name, *, format_=None, gradient=None):
    """The chain's training graph with other formats for one value."""
    formats = {name: format_} if format_ else {gradient_name(name): gradient}
    return chain.training_graph().with_formats(formats)


@pytest.mark.parametrize("name", ["conv0.relu", "conv0.relu.pool", "conv0.relu.pool.flat"])
def test_format_changes_wrong(name):
    other = Fixed.of(8, 4)
    graph = changed(image().conv(4, (3, 3), (1, 1, 1, 1)).relu().pool().linear(3), name, format_=other)
    with pytest.raises(UnsupportedError, match=f"^Layer '{name}' changes the format from .* to .*: the engine rounds "
                                               "once, behind the accumulator$"):
        legalise(graph)


@pytest.mark.parametrize("name", ["conv0", "conv0.relu", "conv0.relu.pool", "conv0.relu.pool.flat"])
def test_gradient_format_changes_wrong(name):
    """Also in the middle of the chain, where both ends are the same."""
    graph = changed(image().conv(4, (3, 3), (1, 1, 1, 1)).relu().pool().linear(3), name, gradient=Fixed.of(8, 4))
    with pytest.raises(UnsupportedError, match=r"^The gradient of 'conv0.*' must have one format through rectifier, "
                                               r"pool, sum and reshape, and has fixed<.*> and then fixed<.*>$"):
        legalise(graph)


def test_float_wrong():
    chain = image().linear(3)
    graph = chain.training_graph().with_formats({"linear1.weight": FLOAT})
    with pytest.raises(UnsupportedError, match="^Value 'linear1.weight' is float, not fixed-point: quantise the "
                                               "network first$"):
        legalise(graph)


def test_weight_gradient_width_wrong():
    refused(image().linear(3, formats=Formats(weight_gradient=Fixed.of(20, 10))),
            "The weight gradient of 'linear1' must have 32 bits, not fixed<20,10,AP_RND,AP_SAT>")


@pytest.mark.parametrize("graph", [
    image().linear(3).training_graph().with_formats({"linear1.bias": Fixed.of(16, 5)}),
    image().linear(3).training_graph().with_formats({"linear1.bias.grad": Fixed.of(32, 5)})])
def test_bias_format_wrong(graph):
    with pytest.raises(UnsupportedError, match=r"^The bias of 'linear1' must have the formats of its weight \(fixed<"
                                               r"16,3,.*>, gradient fixed<32,12,.*>\), not fixed<.*> and fixed<.*>$"):
        legalise(graph)


@pytest.mark.parametrize("frac", [15, 16, -1])
def test_no_room_for_one_wrong(frac):
    chain = Chain((3, 2, 2), Fixed.of(16, frac)).linear(3)
    refused(chain, f"The input format {Fixed.of(16, frac)} of 'linear1' cannot hold the one that its bias is "
                   f"multiplied by: use at least 2 integer bits")


def test_flattened_convolution_wrong():
    chain = image().conv(4, (1, 1)).flatten()
    weight = chain.value("late.weight", (4, 256, 1, 1), ACTIVATION, Fixed.of(32, 20))
    chain.parameters.append(weight)
    out = chain.value("late", (4, 1, 1), ACTIVATION, GRADIENT)
    chain.append(Conv2d(out, chain.x, weight, None, Window((1, 1)))).linear(3)
    refused(chain, "Layer 'late' reads a flattened map, as only linear layers can")


@pytest.mark.parametrize(("window", "size"), [
    (Window((1, 1), (3, 1)), (8, 8)), (Window((1, 1), (1, 16)), (8, 40)),
    (Window((3, 1), (4, 1), (2, 0, 2, 0)), (3, 8))])
def test_stride_wrong(window, size):
    refused(image(*size).conv(6, window.kernel, window=window).linear(3),
            f"Layer 'conv0' has a stride of {window.stride} on a {size} map: this engine takes strides that are powers "
            f"of two up to 8, and no larger than the map")


def test_stride_does_not_matter_to_a_single_result():
    first, = image(2, 8).conv(4, (2, 2), window=Window((2, 2), (3, 2))).linear(3).layers()[:1]
    assert first.stride == (1, 2)


def test_dilation_and_groups():
    """Taps and groups that are not there are weights without an element."""
    chain = image().conv(6, (3, 2), window=Window((3, 2), dilation=(2, 1)), groups=3).linear(3)
    layer, = chain.layers()[:1]
    assert (layer.weight_shape, layer.groups, layer.depthwise) == ((6, 3, 5, 2), 3, False)
    numbers = weight_numbers(layer)
    weights = np.random.default_rng(0).normal(size=(6, 1, 3, 2))
    expected = np.zeros(layer.weight_shape)
    for out in range(6):
        expected[out, out // 2, ::2] = weights[out, 0]
    np.testing.assert_array_equal(np.where(numbers >= 0, weights.reshape(-1)[numbers], 0), expected)


def residual(*, before=(), after=()):
    """A block with an identity around it; ``before`` and ``after`` the sum, methods of the chain."""
    chain = image().conv(4, (1, 1)).relu()
    start = chain.x
    chain.conv(4, (3, 3), (1, 1, 1, 1))
    for name in before:
        getattr(chain, name)()
    chain.add(start)
    for name in after:
        getattr(chain, name)()
    return chain.linear(3)


def test_sum_is_fused_to_the_later_of_its_layers():
    layers = residual(after=["relu"]).layers()
    assert [(layer.x, layer.addend, layer.out, layer.rectify) for layer in layers] == [
        ("image", None, "conv0.relu", True), ("conv0.relu", "conv0.relu", "conv2.sum.relu", True),
        ("conv2.sum.relu", None, "linear6", False)]


@pytest.mark.parametrize("chain", [residual(before=["relu"]), image().conv(3, (1, 1)).add(image().image).linear(3)])
def test_sum_wrong(chain):
    name = next(op.out.name for op in chain.ops if isinstance(op, Add))
    refused(chain, f"Layer '{name}' (Add) must add the results of two layers, and the later of them must have no "
                   f"rectifier, pool or sum of its own")


def test_pool_of_a_sum_wrong():
    refused(residual(after=["pool"]), "Layer 'conv2.sum.pool' pools (2, 2) with stride (2, 2) on a 8×8 map: this "
                                      "engine pools 2×2 with stride 2 on even maps, once a layer, not behind a sum")


def test_what_is_fused_is_not_kept_wrong():
    chain = image().conv(3, (1, 1))
    inner = chain.x
    chain.relu()
    chain.x = inner
    refused(chain.conv(3, (1, 1)).linear(3), "Layers 'conv0.relu' and 'conv2' both read 'conv0', which this engine "
                                             "does not keep, for it is fused to the first of them")


def test_layer_that_leads_nowhere_wrong():
    chain = image().conv(4, (1, 1))
    start = chain.x
    chain.average()
    chain.x = start
    refused(chain.linear(3), "Layer 'mean1' does not lead to the logits: remove it")


def test_average_is_a_depthwise_convolution_by_a_constant():
    """Without the zeros at the end of its word, as long as no result is finer than the products."""
    chain = image().conv(4, (1, 1)).average(Window((2, 2), (2, 2))).average().linear(3)
    layers = chain.layers()
    assert [(layer.weight, layer.constant, layer.weight_format.frac, layer.weight_shape, layer.groups, layer.stride)
            for layer in layers[1:3]] == [(None, 1, 2, (4, 4, 2, 2), 4, (2, 2)), (None, 1, 4, (4, 4, 4, 4), 4, (1, 1))]
    fine = Formats(result=Fixed.of(16, ACTIVATION.frac + 3))
    layer = image().conv(4, (1, 1)).average(Window((2, 2), (2, 2)), fine).linear(3, bias=False).layers()[1]
    assert (layer.constant, layer.weight_format.frac) == (2, 3)
    assert image(3, 3).conv(4, (1, 1)).average().linear(3).layers()[1].constant == average_reciprocal(9) >> 1


@pytest.mark.parametrize("axis", range(4))
def test_padding_wrong(axis):
    pad = tuple(3 if k == axis else 0 for k in range(4))
    refused(image().conv(2, (3, 3), pad).linear(3),
            f"Layer 'conv0' has padding {pad}: it must be smaller than the kernel (3, 3)")


def test_kernel_size_wrong():
    refused(image(20, 4).conv(2, (17, 1)).linear(3),
            "Layer 'conv0' has a (17, 1) kernel on a (20, 4) map: this engine takes kernels up to 16 and maps below "
            "256")


def test_map_size_wrong():
    refused(Chain((1, 256, 1)).conv(1, (1, 1)).linear(2),
            "Layer 'conv0' has a (1, 1) kernel on a (256, 1) map: this engine takes kernels up to 16 and maps below "
            "256")


@pytest.mark.parametrize(("window", "size", "told"), [
    (Window((3, 3), (2, 2)), (8, 8), "pools (3, 3) with stride (2, 2) on a 8×8 map"),
    (Window((2, 2), (1, 1)), (8, 8), "pools (2, 2) with stride (1, 1) on a 8×8 map"),
    (POOL, (7, 8), "pools (2, 2) with stride (2, 2) on a 7×8 map"),
    (POOL, (8, 7), "pools (2, 2) with stride (2, 2) on a 8×7 map")])
def test_pool_wrong(window, size, told):
    refused(image(*size).conv(2, (1, 1)).pool(window).linear(3),
            f"Layer 'conv0.pool' {told}: this engine pools 2×2 with stride 2 on even maps, once a layer, not behind a "
            f"sum")


def test_second_pool_wrong():
    refused(image().conv(2, (1, 1)).pool().pool().linear(3),
            "Layer 'conv0.pool.pool' pools (2, 2) with stride (2, 2) on a 8×8 map: this engine pools 2×2 with stride 2 "
            "on even maps, once a layer, not behind a sum")


@pytest.mark.parametrize(("logits", "gradient", "loss"), [
    (Fixed.of(16, 17), Fixed.of(16, 9), "softmax_cross_entropy"), (Fixed.of(16, -1), GRADIENT, "softmax_cross_entropy"),
    (ACTIVATION, Fixed.of(16, -1), "softmax_cross_entropy"), (ACTIVATION, Fixed.of(16, 32), "softmax_cross_entropy"),
    (Fixed.of(16, 9), Fixed.of(16, 10), "square_hinge")])
def test_loss_formats_wrong(logits, gradient, loss):
    refused(image().linear(3, formats=Formats(result=logits, gradient=gradient)),
            f"The loss unit takes logits with 0..16 fraction bits and a gradient with 0..31, for the square hinge no "
            f"finer than the logits, not {logits} and {gradient}", loss)


def test_float_gradient_wrong():
    chain = image().linear(3)
    graph = differentiate(chain.graph(), formats={**chain.gradient_formats, "linear1.grad": FLOAT})
    with pytest.raises(UnsupportedError, match="^Value 'linear1.grad' is float, not fixed-point"):
        legalise(graph)
