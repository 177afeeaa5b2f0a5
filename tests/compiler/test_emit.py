from itertools import pairwise

import numpy as np
import pytest
from bench.networks import ACTIVATION, Chain, Formats, compiled, random_live, rules_of
from hypothesis import given, settings
from hypothesis import strategies as st

from espalier.arch.machine import ROWS, Machine
from espalier.numerics.live import live_blocks
from espalier.numerics.update import Factor
from espalier.program.words import Opcode, command_fields, entry_fields

DEPTHS = {"activation_depth": 2048, "gradient_depth": 1024, "weight_depth": 4096, "index_depth": 8192,
          "table_depth": 1024}


def chain():
    return (Chain((3, 6, 8)).conv(5, (3, 2), (1, 0, 1, 1)).relu().pool().conv(4, (3, 3), (1, 1, 1, 1), bias=False)
            .linear(6).relu().linear(4))


def network(rows=2, density=1.0, seed=0, rules=None, loss="softmax_cross_entropy"):
    live = random_live(np.random.default_rng(seed), chain(), rows, density)
    machine = Machine(rows=rows, lanes=2, acc_bits=44, **DEPTHS)
    return compiled(chain(), machine, live=live, rules=rules, loss=loss)


def decoded(word, fields):
    """The fields of a packed word."""
    values = {}
    for name, width in fields.items():
        values[name] = word & (1 << width) - 1
        word >>= width
    assert word == 0
    return values


def test_order_of_commands():
    program = network().program
    names = [(command.opcode.name, command.layer) for command in program.commands]
    forward = [("FORWARD", name) for name in ("conv0", "conv3", "linear5", "linear7")] + [("LOSS", "loss")]
    backward = [("BACKWARD", "linear7"), ("UPDATE", "linear7"), ("BACKWARD", "linear5"), ("UPDATE", "linear5"),
                ("BACKWARD", "conv3"), ("UPDATE", "conv3"), ("UPDATE", "conv0")]
    assert names == [*forward, *backward, ("END", "end"), *forward, ("END", "end")]
    assert program.entries_at == {"train": 0, "infer": len(forward + backward) + 1}


def test_encoding_loses_nothing():
    program = network().program
    machine = program.machine
    for command in program.commands:
        fields = decoded(command.encode(machine), command_fields(machine))
        assert fields == {name: int(getattr(command, name)) for name in fields}
    for entry in program.entries:
        fields = decoded(entry.encode(machine), entry_fields(machine))
        assert fields == {name: getattr(entry, name) for name in fields}


def test_rules_are_encoded():
    factors = {"momentum": Factor(3, 4), "rate": Factor(50000, 30), "decay": Factor(7, 20)}
    rules = rules_of(chain(), {"linear7": factors})
    commands = [c for c in network(rules=rules).program.commands if c.opcode == Opcode.UPDATE]
    last = commands[0]
    assert (last.layer, last.momentum, last.momentum_shift, last.rate, last.rate_shift, last.decay,
            last.decay_shift) == ("linear7", 3, 4, 50000, 30, 7, 20)
    assert commands[1].rate != 50000


@pytest.mark.parametrize(("loss", "hinge"), [("softmax_cross_entropy", 0), ("square_hinge", 1)])
def test_loss_command(loss, hinge):
    if hinge:
        coarse = Chain((1, 2, 2)).linear(3, formats=Formats(gradient=ACTIVATION))
        program = compiled(coarse, Machine(rows=2, lanes=2, **DEPTHS), loss=loss).program
    else:
        program = network().program
    command = next(c for c in program.commands if c.opcode == Opcode.LOSS)
    assert (command.hinge, command.logit_frac, command.gradient_width) == (hinge, 12, 16)


def segments(program, command):
    """The entries of a command's list, by its segments: one for biases and one for each tap, by block."""
    slots = command.kernel_y * command.kernel_x + 1
    for block in range(command.blocks):
        low, *taps = program.table[command.table + block * slots: command.table + (block + 1) * slots + 1]
        yield block, None, program.entries[low: taps[0]]
        for tap, (start, end) in enumerate(pairwise(taps)):
            yield block, divmod(tap, command.kernel_x), program.entries[start: end]


@settings(deadline=None, derandomize=True, max_examples=25)
@given(rows=st.sampled_from(ROWS), density=st.sampled_from([0.0, 0.3, 1.0]), seed=st.integers(0, 2**32 - 1))
def test_forward_and_backward_lists_hold_the_same_blocks(rows, density, seed):
    found = network(rows, density, seed)
    program, layers = found.program, {layer.name: layer for layer in chain().layers()}
    forward, backward = {}, {}
    for command in program.commands[: program.entries_at["infer"]]:
        if command.opcode not in (Opcode.FORWARD, Opcode.BACKWARD):
            continue
        for block, tap, entries in segments(program, command):
            if tap is None:
                assert [entry.one for entry in entries] == [1] * command.bias
                continue
            assert all((entry.ky, entry.kx) == tap and not entry.one for entry in entries)
            into = forward if command.opcode == Opcode.FORWARD else backward
            into.setdefault(command.layer, []).extend((block, tap, entry) for entry in entries)
    for name, layer in layers.items():
        alive = int(live_blocks(found.live[layer.weight].reshape(layer.weight_shape), rows).sum())
        columns = [entry.column for _, _, entry in forward.get(name, [])]
        assert len(columns) == len(set(columns)) == alive
        if name != "conv0":
            assert sorted(columns) == sorted(entry.column for _, _, entry in backward.get(name, []))
            taps = {entry.column: tap for _, tap, entry in forward.get(name, [])}
            height, width = layer.weight_shape[2:]
            assert all(taps[entry.column] == (height - 1 - ky, width - 1 - kx)
                       for _, (ky, kx), entry in backward.get(name, []))


def test_placements_name_what_is_stored():
    program = network().program
    assert [(p.value, p.memory, p.command, p.pooled) for p in program.placements] == [
        ("conv0.relu.pool", "activations", 0, True), ("conv3", "activations", 1, False),
        ("linear5.relu", "activations", 2, False), ("linear7", "activations", 3, False),
        ("linear7.grad", "gradients", 4, False), ("linear5.grad", "gradients", 5, False),
        ("conv3.grad", "gradients", 7, False), ("conv0.grad", "gradients", 9, True)]


def test_only_block_takes_no_step():
    """A block's step past the end of the only block would need an address that no memory has."""
    program = network(rows=16).program
    assert {c.out_block for c in program.commands if c.opcode == Opcode.FORWARD} == {0}
