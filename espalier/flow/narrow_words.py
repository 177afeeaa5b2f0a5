"""Narrow words without training: real-valued networks in words of a few bits, and a width for each layer's weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from espalier.compress.equalise import ChannelStatistics, equalise, passages, scaled_inside
from espalier.compress.precision import Precision, cheapest_widths
from espalier.data import Split, normalise
from espalier.errors import FormatError
from espalier.flow.checkpoint_state import real_parameters
from espalier.flow.compress_images import Images, least_accuracy, recognised, recognised_of
from espalier.flow.compress_request import CompressRequest
from espalier.flow.source import FULL_BITS, RealNetwork, in_words
from espalier.flow.steps import Steps
from espalier.ir.ops import ClippedRelu
from espalier.train.calibrate import Widths
from espalier.train.channels import channel_statistics, layer_inputs
from espalier.train.checkpoint import Checkpoint
from espalier.train.device_data import DeviceData
from espalier.train.weight_widths import narrowed, weight_bits

PROXY_BITS = 8  #: the width at which equalised channels are tried where that of the weights is yet to be found


@dataclass(frozen=True, slots=True, eq=False)
class Words:
    """A network in fixed point, and whether its channels were equalised."""

    checkpoint: Checkpoint
    equalised: bool


def tries_equalised(network: RealNetwork, request: CompressRequest) -> bool:
    """Whether ``network`` is tried with its channels equalised and as they are."""
    narrow = request.bit_loss is not None or (request.bits or FULL_BITS) < FULL_BITS
    return request.equalise is None and narrow and bool(passages(network.graph))


def to_words(network: RealNetwork, split: Split, images: Images, request: CompressRequest, steps: Steps) -> Words:
    """The network in words of ``request.bits``, its channels equalised if that is asked for or does better."""
    if not tries_equalised(network, request):
        chosen = bool(request.equalise)
        return Words(_rounded(_equalised(network, images) if chosen else network, split, images, request), chosen)
    bits = request.bits or FULL_BITS
    trial = replace(request, bits=min(bits, PROXY_BITS) if bits == FULL_BITS else bits)
    networks = {False: network, True: _equalised(network, images)}
    rounded = {name: _rounded(each, split, images, trial) for name, each in networks.items()}
    assert images.selection is not None, "images to choose by were drawn"
    reached = {name: recognised(each.graph, each.weights, images.selection, request.top)
               for name, each in rounded.items()}
    steps.tell(f"    {trial.bits} bits: {reached[False]:.2%} of {len(images.selection):,} training images, with "
               f"channels equalised {reached[True]:.2%}")
    best = max(networks, key=lambda name: reached[name])
    found = rounded[best] if trial.bits == bits else _rounded(networks[best], split, images, request)
    return Words(found, best)


def _equalised(network: RealNetwork, images: Images) -> RealNetwork:
    clipped = [op.out for op in network.graph.ops if isinstance(op, ClippedRelu)]
    seen = channel_statistics(network.graph, network.parameters, normalise(images.seen.images), clipped)
    return replace(network, parameters=equalise(network.graph, network.parameters, seen))


def _held(network: RealNetwork, images: Images, bits: int) -> RealNetwork:
    """The network scaled down inside where what its layers read is too large for words of ``bits``, if it can be.

    A layer with a bias reads words of at least 0 fraction bits, for one of them stands for the constant one.
    """
    graph = network.graph
    seen = channel_statistics(graph, network.parameters, normalise(images.seen.images), layer_inputs(graph))
    excess = max(float(each.largest.max()) for each in seen.values()) / 2.0 ** (bits - 1)
    if not 1 < 2 * excess < math.inf:  # unseen images have larger numbers, so half of the range is to spare
        return network
    scaled = scaled_inside(graph, network.parameters, 2.0 ** -math.ceil(math.log2(2 * excess)))
    return network if scaled is None else replace(network, parameters=scaled)


def _rounded(network: RealNetwork, split: Split, images: Images, request: CompressRequest) -> Checkpoint:
    """In words: activations by their ranges, then weights, narrower, by what they disturb."""
    bits = request.bits or FULL_BITS
    if bits == FULL_BITS:
        return in_words(network, split, Widths())
    network = _held(network, images, bits)
    found = in_words(network, split, Widths(FULL_BITS, bits, bits))
    widths = dict.fromkeys(weight_bits(found), bits)
    rule = found.config.quantise
    assert rule is not None, "it is in words"
    config = replace(found.config, quantise=replace(rule, widths=Widths(bits, bits, bits)))
    return narrowed(replace(found, config=config), network.parameters, widths, _seen(found, images),
                    bias_width(request, network.published))


def bias_width(request: CompressRequest, published: bool) -> int | None:
    """Bits of a bias, or None for those of its layer's weights.

    Folded batch norms make biases large, which costs narrow weights their fraction bits; the engine, though, takes
    biases in the format of their weights alone, and published networks are none that it runs.
    """
    return FULL_BITS if request.bias_bits is None and published else request.bias_bits


def _seen(checkpoint: Checkpoint, images: Images) -> dict[str, ChannelStatistics]:
    graph = checkpoint.graph
    return channel_statistics(graph, checkpoint.weights, normalise(images.seen.images), layer_inputs(graph))


def with_fewest_bits(checkpoint: Checkpoint, images: Images, request: CompressRequest, bias_bits: int | None,
                     steps: Steps) -> tuple[Checkpoint, Precision]:
    """The network with the fewest weight bits found that loses at most ``request.bit_loss`` points.

    Raises UnsupportedError as :func:`espalier.compress.precision.cheapest_widths` does.
    """
    assert images.selection is not None and request.bit_loss is not None
    data = DeviceData(images.selection, checkpoint.graph.inputs[0].format, "cpu")
    real, seen, widest = real_parameters(checkpoint), _seen(checkpoint, images), weight_bits(checkpoint)
    sizes = {name: int(checkpoint.live[name].sum()) for name in widest}

    def accuracy(widths: Mapping[str, int]) -> float:
        try:
            found = narrowed(checkpoint, real, widths, seen, bias_bits)
        except FormatError:  # weights so coarse that nothing is left of a result
            return 0.0
        reached = recognised_of(found.graph, found.weights, data, request.top)
        steps.tell(f"    {sum(sizes[name] * width for name, width in widths.items()):,} weight bits: {reached:.2%}")
        return reached

    whole = recognised_of(checkpoint.graph, checkpoint.weights, data, request.top)
    floor = least_accuracy(whole, request.bit_loss, len(images.selection))
    steps.tell(f"    widths as they are: {whole:.2%} of {len(images.selection):,} training images; at least "
               f"{floor:.2%} must stay")
    found = cheapest_widths(sizes, accuracy, floor, widest=widest, limit=request.evaluations)
    return narrowed(checkpoint, real, found.widths, seen, bias_bits), found
