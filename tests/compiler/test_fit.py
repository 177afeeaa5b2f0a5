import re
from dataclasses import replace

import numpy as np
import pytest
from bench.networks import Chain, Formats, compiled, random_live
from hypothesis import given, settings
from hypothesis import strategies as st

from espalier.arch.machine import ROWS, Machine
from espalier.compiler.fit import required_acc_bits, required_depths
from espalier.compiler.legalise import legalise
from espalier.compiler.lists import layer_blocks
from espalier.compiler.place import place
from espalier.errors import FitError, GraphError
from espalier.numerics.convolution import conv2d, conv2d_input_grad, conv2d_weight_grad
from espalier.numerics.fixed import Fixed
from espalier.numerics.window import Window
from espalier.program.words import command_fields, entry_fields

NARROW = Fixed.of(8, 4)


def chain():
    return Chain((2, 6, 6)).conv(5, (3, 3), (1, 1, 1, 1)).relu().pool().conv(3, (3, 3)).linear(4)


def blocks_of(chain, live, rows):
    found = []
    for layer in chain.layers():
        found.append(layer_blocks(layer, live, rows, found[-1].columns if found else 0))
    return tuple(found)


def exact_machine(chain, live, rows, port_bits=0):
    """The smallest machine of ``rows`` that holds the network."""
    layers, loss = legalise(chain.training_graph())
    blocks = blocks_of(chain, live, rows)
    depths = required_depths(layers, blocks, place(layers, rows, spill=port_bits > 0), rows)
    return Machine(rows=rows, lanes=2, port_bits=port_bits, acc_bits=required_acc_bits(layers, blocks),
                   max_classes=max(2, loss.classes), **{name: max(2, depth) for name, depth in depths.items()})


@st.composite
def networks(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    chain = Chain((draw(st.integers(1, 9)), draw(st.integers(3, 17)), draw(st.integers(3, 17))))
    for _ in range(draw(st.integers(0, 2))):
        chain.conv(draw(st.integers(1, 9)), (3, 3), (1, 1, 1, 1), bias=draw(st.booleans()))
    for _ in range(draw(st.integers(1, 2))):
        if max(chain.x.shape[1:], default=1) > 16:
            chain.conv(2, tuple(2 if size > 16 else 1 for size in chain.x.shape[1:]))
        chain.linear(draw(st.integers(2, 20)), bias=draw(st.booleans()))
    rows = draw(st.sampled_from(ROWS))
    return chain, random_live(rng, chain, rows, draw(st.sampled_from([0.0, 0.3, 1.0]))), rows


@settings(deadline=None, derandomize=True, max_examples=60)
@given(network=networks())
def test_exact_fit_compiles_and_every_field_holds_its_value(network):
    chain, live, rows = network
    machine = exact_machine(chain, live, rows)
    program = compiled(chain, machine, live=live).program
    assert len(program.commands) <= machine.program_depth
    assert len(program.entries) <= machine.index_depth
    assert len(program.table) <= machine.table_depth
    assert all(0 <= pointer <= len(program.entries) for pointer in program.table)
    assert max(int(places.max(initial=-1)) for places in program.addresses.values()) < machine.master_depth
    for command in program.commands:
        assert command.encode(machine) < 1 << sum(command_fields(machine).values())
    for entry in program.entries:
        assert entry.encode(machine) < 1 << sum(entry_fields(machine).values())


def test_what_spills_on_the_least_machine_fits_one_with_more_room_for_activations():
    """Which activations are spilled, and how many, depends on the room; there are commands for all of them."""
    net = Chain((2, 6, 6))
    for width in (2, 3, 4, 5, 6, 7):
        net.conv(width, (3, 3), (1, 1, 1, 1)).relu()
    net.linear(3)
    live = random_live(np.random.default_rng(0), net, 2, 1.0)
    least, whole = exact_machine(net, live, 2, 32), exact_machine(net, live, 2).activation_depth
    spilled = set()
    for depth in (*range(least.activation_depth, whole, 4), whole):
        program = compiled(net, replace(least, activation_depth=depth), live=live).program
        spilled.add(sum(command.spill for command in program.commands))
    assert spilled == {0, 1, 2, 3, 4, 5}


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("name", ["activation_depth", "gradient_depth", "weight_depth", "index_depth", "table_depth",
                                  "program_depth"])
def test_depth_wrong(name, rows):
    live = random_live(np.random.default_rng(0), chain(), rows, 1.0)
    machine = exact_machine(chain(), live, rows)
    needed = getattr(machine, name)
    sentence = (f"The network needs {name} = {needed} and the machine has {needed - 1}: enlarge it, prune more, or "
                f"shrink the network")
    with pytest.raises(FitError, match=f"^{re.escape(sentence)}$"):
        compiled(chain(), replace(machine, **{name: needed - 1}), live=live)


def test_acc_bits_wrong():
    machine = exact_machine(chain(), random_live(np.random.default_rng(0), chain(), 2, 1.0), 2)
    needed = machine.acc_bits
    with pytest.raises(FitError, match=f"^Sums of this network need accumulators of {needed} bits and the machine has "
                                       f"{needed - 1}$"):
        compiled(chain(), replace(machine, acc_bits=needed - 1))


def test_classes_wrong():
    machine = exact_machine(chain(), random_live(np.random.default_rng(0), chain(), 2, 1.0), 2)
    with pytest.raises(FitError, match="^The network has 4 classes and the machine's loss unit takes 3$"):
        compiled(chain(), replace(machine, max_classes=3))


def test_a_machine_that_does_not_clip_wrong():
    clipped = Chain((2, 6, 6)).conv(5, (3, 3)).clip(6).linear(4)
    machine = exact_machine(clipped, random_live(np.random.default_rng(0), clipped, 2, 1.0), 2)
    with pytest.raises(FitError, match="^The rectifier of 'conv0' has an upper end and the machine's have none: build "
                                       "one with clips$"):
        compiled(clipped, machine)
    assert compiled(clipped, replace(machine, clips=True)).program


def test_a_machine_that_does_not_add_wrong():
    residual = Chain((2, 6, 6)).conv(2, (3, 3), (1, 1, 1, 1)).relu()
    start = residual.x
    residual.conv(2, (3, 3), (1, 1, 1, 1)).add(start).linear(4)
    machine = replace(exact_machine(residual, random_live(np.random.default_rng(0), residual, 2, 1.0), 2), sums=False)
    with pytest.raises(FitError, match="^The network adds up layers, or gradients of a value with several readers, "
                                       "which the machine cannot: build one with sums$"):
        compiled(residual, machine)
    plain = Chain((2, 6, 6)).conv(2, (3, 3)).linear(4)
    assert compiled(plain, replace(machine, acc_bits=48)).program


@pytest.mark.parametrize(("what", "formats", "image"), [
    ("input", Formats(weight=NARROW, result=NARROW, gradient=NARROW), Fixed.of(9, 4)),
    ("weight", Formats(weight=Fixed.of(9, 4), result=NARROW, gradient=NARROW), NARROW),
    ("output", Formats(weight=NARROW, result=Fixed.of(9, 4), gradient=NARROW), NARROW),
    ("gradient", Formats(weight=NARROW, result=NARROW, gradient=Fixed.of(9, 4)), NARROW)])
def test_word_width_wrong(what, formats, image):
    machine = Machine(rows=1, lanes=1, word_bits=8, activation_depth=64, gradient_depth=64, weight_depth=64,
                      index_depth=64, table_depth=64)
    formats = replace(formats, weight_gradient=Fixed.of(32, 8))
    with pytest.raises(FitError, match=f"^The {what} of 'linear1' has 9 bits and the machine's words have 8$"):
        compiled(Chain((1, 2, 2), image).linear(3, formats=formats), machine)


@pytest.mark.parametrize("formats", [Formats(result=Fixed.of(16, 16), weight=Fixed.of(16, 3)),
                                     Formats(weight_gradient=Fixed.of(32, 27))], ids=["FP", "WU"])
def test_result_finer_than_products_wrong(formats):
    chain = Chain((1, 2, 2)).linear(3, formats=formats)
    machine = exact_machine(chain, random_live(np.random.default_rng(0), chain, 1, 1.0), 1)
    with pytest.raises(GraphError, match="the result may have at most the .* fraction bits of the product"):
        compiled(chain, machine)


def brute_force(layer, live):
    """The largest accumulators of a layer when every word is the least of its format."""
    def full(format_, *shape):
        return np.full(shape, format_.low, dtype=np.int64)

    window = Window(layer.weight_shape[2:], (1, 1), (*layer.pad, 2, 2))
    x = full(layer.x_format, 1, *layer.in_shape)
    w = np.where(live.reshape(layer.weight_shape), full(layer.weight_format, *layer.weight_shape), 0)
    g = full(layer.gradient_format, 1, *layer.conv_shape)
    one = np.full((layer.weight_shape[0], 1, 1), (1 << layer.x_format.frac) * layer.weight_format.low)
    forward = conv2d(x, w, window)
    return [forward, forward + one, forward - one, conv2d_weight_grad(x, g, window),
            conv2d_input_grad(g, w, window, layer.in_shape[1:])]


@settings(deadline=None, derandomize=True, max_examples=60)
@given(seed=st.integers(0, 2**32 - 1), rows=st.sampled_from(ROWS), density=st.sampled_from([0.0, 0.3, 1.0]),
       widths=st.tuples(*[st.integers(3, 16)] * 3))
def test_acc_bits_hold_the_extremes(seed, rows, density, widths):
    rng = np.random.default_rng(seed)
    out, source, size = (int(n) for n in rng.integers(1, 12, 3))
    x, w, g = (Fixed.of(width, width - 2) for width in widths)
    formats = Formats(weight=w, gradient=g, weight_gradient=Fixed.of(32, 1), result=Fixed.of(16, 1))
    chain = Chain((source, size, size), x).conv(out, (3, 3), (1, 2, 2, 2), formats=formats)
    chain.linear(2, formats=Formats(result=Fixed.of(16, 0), weight_gradient=Fixed.of(32, 1)))
    live = random_live(rng, chain, rows, density)
    layers, blocks = chain.layers()[:1], blocks_of(chain, live, rows)[:1]
    bits = required_acc_bits(layers, blocks)
    for accumulators in brute_force(layers[0], live["conv0.weight"])[:4]:
        assert np.abs(accumulators).max() < 1 << bits - 1


def test_acc_bits_are_not_wasteful():
    """Two more than the sum of 128 products of the least 16-bit words takes, at most."""
    chain = Chain((128, 1, 1)).linear(64).linear(2)
    live = random_live(np.random.default_rng(0), chain, 4, 1.0)
    bits = required_acc_bits(chain.layers(), blocks_of(chain, live, 4))
    largest = 128 * (1 << 15) ** 2 + (1 << 12 + 15)
    assert bits - 2 <= largest.bit_length() + 1 <= bits
