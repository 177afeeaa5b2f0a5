"""Placing activations where some leave the chip: who is there when, and what is asked back when."""

import pytest
from bench.networks import Chain

from espalier.compiler.backward import backward
from espalier.compiler.legalise import legalise
from espalier.compiler.place import place, vectors
from espalier.compiler.spill import stack
from espalier.program.words import Opcode


def residual():
    chain = Chain((3, 8, 8)).conv(5, (3, 3), (1, 1, 1, 1)).relu()
    start = chain.x
    chain.conv(5, (3, 3), (1, 1, 1, 1)).relu().conv(5, (3, 3), (1, 1, 1, 1))
    return chain.add(start).relu().conv(7, (3, 3), (1, 1, 1, 1)).relu().pool().linear(4)


def deep(widths=(4,) * 6):
    chain = Chain((2, 6, 6))
    for width in widths:
        chain.conv(width, (3, 3), (1, 1, 1, 1)).relu()
    return chain.linear(3)


CHAINS = [deep, residual]


def layers_of(chain):
    return legalise(chain.training_graph(), frozenset())[0]


def on_chip(layers, found):
    """For each time, which values must lie in the memory: made or asked back, and read then or later."""
    plan, loss = backward(layers), len(layers)
    reads = {layers[0].x: [0]}
    for k, layer in enumerate(layers):
        reads[layer.out] = [k]
        reads[layer.x].append(k)
    reads[layers[-1].out].append(loss)
    for number, step in enumerate(plan.steps):
        reads[layers[step.layer].x].append(loss + 1 + number)
    back = {name: time for time, names in found.refetches.items() for name in names if time >= 0}
    for time in range(loss + 1 + len(plan.steps)):
        yield {name for name, times in reads.items() if min(times) <= time <= max(times)
               and (name not in back or time >= back[name] or any(time <= t < back[name] for t in times))}


@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("part", [1.0, 0.8, 0.6, 0.4, None])
def test_no_two_values_share_a_place_at_a_time(chain, part):
    layers = layers_of(chain())
    shapes = {layers[0].x: layers[0].in_shape, **{layer.out: layer.out_shape for layer in layers}}
    sizes = {name: vectors(shape) for name, shape in shapes.items()}
    found = stack(layers, backward(layers), None if part is None else int(part * sum(sizes.values())))
    if layers[0].x not in found.spilled:
        sizes[layers[0].x] *= 2
    for present in on_chip(layers, found):
        spans = sorted((found.places[name], found.places[name] + sizes[name]) for name in present)
        assert all(end <= start for (_, end), (start, _) in zip(spans, spans[1:], strict=False))
        assert not spans or spans[-1][1] <= found.depth


@pytest.mark.parametrize("chain", CHAINS)
def test_with_more_room_less_leaves_and_at_last_nothing(chain):
    layers = layers_of(chain())
    order = [layers[0].x, *(layer.out for layer in layers)]
    least, whole = stack(layers, backward(layers), None), place(layers, 2).activation_depth
    found = [stack(layers, backward(layers), depth) for depth in range(least.depth, whole + 1)]
    assert [one.depth for one in found] == list(range(least.depth, whole + 1)) and found[0] == least
    assert all(list(one.spilled) == sorted(one.spilled, key=order.index) for one in found)
    assert len(found[0].spilled) > 1 and len(found[-2].spilled) == 1 and not found[-1].spilled


def test_what_takes_the_most_products_leaves_first_and_nothing_without_need():
    layers = layers_of(deep(widths=(2, 3, 4, 5, 6, 7)))
    outs = [layer.out for layer in layers]
    whole = place(layers, 2).activation_depth
    for room, leaving in ((0, []), (3, outs[4:5]), (180, outs[3:4]), (324, outs[2:4]), (432, outs[1:4])):
        assert list(stack(layers, backward(layers), whole - room).spilled) == leaving
    assert [vectors(layer.out_shape) for layer in layers[1:4]] == [108, 144, 180]  # the next one is soon back again


def test_of_layers_whose_weights_stream_what_takes_the_fewest_leaves_first_and_after_the_others():
    layers = layers_of(deep(widths=(2, 3, 4, 5, 6, 7)))
    outs = [layer.out for layer in layers]
    whole = place(layers, 2).activation_depth
    for room, streamed, leaving in ((1, range(7), [layers[0].x]), (145, range(7), [layers[0].x, outs[0]]),
                                    (180, range(2, 7), outs[:2]), (181, range(2, 7), [layers[0].x, outs[0]]),
                                    (144, (3, 4), outs[2:3]), (145, (3, 4), [outs[0], outs[2]])):
        assert list(stack(layers, backward(layers), whole - room, streamed=streamed).spilled) == leaving


def test_what_comes_back_is_asked_for_a_step_before_it_is_read():
    layers = layers_of(deep())
    plan, found = backward(layers), stack(layers_of(deep()), backward(layers_of(deep())), None)
    assert found.refetches[-1] == (layers[0].x,) and 0 in found.fences
    for time, names in found.refetches.items():
        assert time + 1 in found.fences
        if time >= 0:
            step = plan.steps[time - len(layers)]
            assert [layers[step.layer].x] == list(names)
            assert step.opcode == (Opcode.UPDATE if names == (layers[0].x,) else Opcode.BACKWARD)


def test_without_external_memory_or_with_room_all_stay():
    layers = layers_of(deep())
    whole = place(layers, 2)
    assert not whole.spilled and place(layers, 2, whole.activation_depth, spill=True) == whole
    assert place(layers, 2, 10) == whole  # what is too deep is refused later, with the numbers
