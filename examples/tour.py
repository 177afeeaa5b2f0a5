"""One convolution of a tiny network, followed from torch to the multiplier and back as a gradient.

    python examples/tour.py            print every section
    python examples/tour.py --update   and write them into docs/tour.md

Nothing is simulated here: the definition (``ir.interpret``) gives every tensor of a training step, the
compiler gives the Program, and each number is worked out again from what the Program says and compared
with the tensor.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tour_network import (
    LANES,
    LAYER,
    ROWS,
    WEIGHT,
    Tour,
    Words,
    backward_operands,
    fixed_format,
    forward_operands,
    gradient_base,
    module,
    prepare,
    tile_steps,
    tiles,
)

from espalier.ir.differentiate import gradient_name
from espalier.numerics.fixed import Fixed
from espalier.numerics.loss import EXP_FRAC, LOSS_FRAC, RECIPROCAL_FRAC, SoftmaxCrossEntropy
from espalier.numerics.requantize import Requantize
from espalier.numerics.update import EXTRA_BITS, GRADIENT_BITS, master_format, narrow
from espalier.program.words import Opcode, command_fields

OPERAND_CYCLES = 7  #: from a step to its operands at the lattice (gateware.operands)
PRODUCT_CYCLES = 2  #: from there to the product's register (gateware.lattice)
ROW_HEADINGS = "weight 0  weight 1        acc 0        acc 1"
PAGE = Path(__file__).parents[1] / "docs" / "tour.md"


def section_torch(tour: Tour) -> Iterator[str]:
    yield f"{module()}"
    yield f"images {LANES} (one a lane), labels {tour.labels.tolist()}"
    yield f"followed: {WEIGHT}[{tour.o}, {tour.i}, {tour.ky}, {tour.kx}] of {tour.real.shape}, in image {tour.lane} " \
          f"at output pixel (y, x) = ({tour.y}, {tour.x})"
    yield f"torch weight: {tour.real[tour.o, tour.i, tour.ky, tour.kx]:.9f}"


def section_formats(tour: Tour) -> Iterator[str]:
    layer = tour.layer
    named = {"input": layer.x_format, "weight": layer.weight_format, "result": layer.out_format,
             "gradient of the result": layer.gradient_format, "gradient of the input": layer.input_gradient_format,
             "gradient of the weight": layer.weight_gradient_format,
             "master and momentum": master_format(layer.weight_format)}
    for what, format_ in named.items():
        assert isinstance(format_, Fixed)
        yield f"{what:23} {format_!s:32} one unit is 2^{-format_.frac}"


def section_word(tour: Tour) -> Iterator[str]:
    index, weight = tour.index, tour.layer.weight_format
    real, wide = tour.real[index], master_format(weight)
    master = wide.quantise(real)
    word = int(narrow(master, weight))
    yield f"torch weight          {real:.9f}"
    yield f"master, {wide.width} bits       {int(master)} = round(torch weight * 2^{wide.frac})"
    yield f"weight, {weight.width} bits       {word} = (master + 2^{EXTRA_BITS - 1}) >> {EXTRA_BITS}"
    yield f"which means           {float(weight.values(word)):.9f}"
    yield f"one training step on  master {int(tour.before[f'{WEIGHT}.master'][index])}, " \
          f"weight {int(tour.before[WEIGHT][index])}"


def section_blocks(tour: Tour) -> Iterator[str]:
    live = tour.network.live[WEIGHT]
    blocks = live[::ROWS, ::ROWS]
    yield f"{int(blocks.sum())} of {blocks.size} blocks of {ROWS}x{ROWS} weights live"
    for o, i in np.ndindex(blocks.shape[:2]):
        yield f"output channels {o * ROWS}..{o * ROWS + ROWS - 1}, input channels {i * ROWS}..{i * ROWS + ROWS - 1}:"
        yield from ("    " + " ".join("#" if alive else "." for alive in row) for row in blocks[o, i])


def section_list(tour: Tour) -> Iterator[str]:
    program, command = tour.program, tour.command(Opcode.FORWARD)
    taps = command.kernel_y * command.kernel_x
    start = command.table + tour.o // ROWS * (taps + 1)
    yield f"FP list of output block {tour.o // ROWS}: segment pointers {list(program.table[start: start + taps + 2])}"
    yield "entry  column  channel  ky  kx  count  one"
    column, _ = tour.block
    for number in range(program.table[start], program.table[start + taps + 1]):
        e = program.entries[number]
        mark = "  <- holds the followed weight" if e.column == column else ""
        yield f"{number:5}  {e.column:6}  {e.channel:7}  {e.ky:2}  {e.kx:2}  {e.count:5}  {e.one:3}{mark}"


def section_banks(tour: Tour) -> Iterator[str]:
    weights = tour.program.memory_images(tour.before)["weights"]
    column, bank = tour.place
    first, term = tour.block
    row = tour.o % ROWS
    yield f"place {column * ROWS + bank} = column {column} * {ROWS} + bank {bank}; in its block: row i = {row}, " \
          f"column j = {term}, bank = (i + j) mod {ROWS}"
    yield "address  " + "  ".join(f"bank {b}          " for b in range(ROWS)).rstrip()
    for j in range(ROWS):
        cells = [f"({(b - j) % ROWS}, {j}) = {weights[(first + j) * ROWS + b]:6}" for b in range(ROWS)]
        yield f"{first + j:7}  " + "   ".join(cells)
    yield f"FP reads column j = {term}: address {first + term} in every bank"
    reads = ", ".join(f"address {first + (b - row) % ROWS} in bank {b}" for b in range(ROWS))
    yield f"BP reads row i = {row}: {reads}"


def section_command(tour: Tour) -> Iterator[str]:
    command, layout = tour.command(Opcode.FORWARD), command_fields(tour.program.machine)
    number, count = tour.program.commands.index(command), len(tour.program.commands)
    yield f"command {number} of {count}: {sum(layout.values())} bits, {len(layout)} fields; those that are not zero:"
    given = [f"{name}={int(getattr(command, name))}" for name in layout if getattr(command, name)]
    for k in range(0, len(given), 6):
        yield "    " + " ".join(given[k: k + 6])
    yield f"word 0x{command.encode(tour.program.machine):x}"


def section_lattice(tour: Tour) -> Iterator[str]:
    program, command = tour.program, tour.command(Opcode.FORWARD)
    order, here = list(tiles(command)), (tour.o // ROWS, tour.y, tour.x)
    earlier = order.index(here)
    number = sum(len(list(tile_steps(program, command, *tile))) for tile in order[:earlier])
    steps = sum(len(list(tile_steps(program, command, *tile))) for tile in order)
    yield f"tile {earlier} of {len(order)}: output block {here[0]}, pixel ({here[1]}, {here[2]}); " \
          f"{number} of the phase's {steps} steps come before it"
    yield f"step  column  source word  {ROW_HEADINGS}"
    acc, mine = np.zeros(ROWS, dtype=np.int64), number
    for k, step in enumerate(tile_steps(program, command, *here), start=number):
        x, b = forward_operands(tour, step)
        acc = acc + x * np.array(b)
        column, mark = step.entry.column + step.term, ""
        if column == tour.place[0]:
            mine, mark = k, f"  <- {x} * {b[tour.o % ROWS]}"
        yield f"{k:4}  {column:6}  {x:11}  {_rows(b, acc)}{mark}"
    yield f"step {mine}: operands at the lattice {OPERAND_CYCLES} cycles later, the product {PRODUCT_CYCLES} after that"


def _rows(b: list[int], acc: Words) -> str:
    """The columns of :data:`ROW_HEADINGS`."""
    return "  ".join([*(f"{word:8}" for word in b), *(f"{word:11}" for word in acc)])


def accumulator(tour: Tour, y: int, x: int) -> int:
    """The sum of the followed output channel and image at pixel (y, x), from the lists and banks."""
    total = 0
    for step in tile_steps(tour.program, tour.command(Opcode.FORWARD), tour.o // ROWS, y, x):
        source, b = forward_operands(tour, step)
        total += source * b[tour.o % ROWS]
    return total


def section_drain(tour: Tour) -> Iterator[str]:
    command, layer = tour.command(Opcode.FORWARD), tour.layer
    top, left = tour.y // 2 * 2, tour.x // 2 * 2
    narrowing = Requantize(acc_bits=tour.program.machine.acc_bits, out_bits=layer.out_format.width, shift=command.shift)
    yield f"code  pixel   accumulator  (acc + 2^{command.shift - 1}) >> {command.shift}  after ReLU"
    words = []
    for code in range(4):
        y, x = top + code // 2, left + code % 2
        acc = accumulator(tour, y, x)
        word = int(narrowing(np.array(acc)))
        assert word == tour.step[LAYER][tour.lane, tour.o, y, x], "the drain is not the definition"
        words.append(max(word, 0))
        yield f"{code:4}  ({y}, {x})  {acc:11}  {word:20}  {words[-1]:10}"
    winner = words.index(max(words))
    assert winner == tour.step[f"{layer.out}.code"][tour.lane, tour.o, top // 2, left // 2]
    base = next(p.base for p in tour.program.placements if p.value == layer.out)
    address = base + (tour.o * layer.out_shape[1] + top // 2) * layer.out_shape[2] + left // 2
    yield f"stored: word {words[winner]} with code {winner} in lane {tour.lane} of activation vector {address}"


def section_loss(tour: Tour) -> Iterator[str]:
    graph, lane = tour.network.graph, tour.lane
    logits_format, gradient_format = (fixed_format(graph.value(name)) for name in ("fc", gradient_name("fc")))
    rule = SoftmaxCrossEntropy(logit_frac=logits_format.frac, grad_width=gradient_format.width,
                               grad_frac=gradient_format.frac)
    logits, labels = tour.step["fc"][[lane]], tour.labels[[lane]]
    exponentials = rule.exponentials(logits)[0]
    total = int(exponentials.sum())
    gradient = rule.grad(logits, labels)[0]
    assert np.array_equal(gradient, tour.step[gradient_name("fc")][lane]), "the loss unit is not the definition"
    yield f"label            {int(labels[0])}"
    yield f"logits           {' '.join(map(str, logits[0]))}   (one unit is 2^{-logits_format.frac})"
    yield f"exponentials     {' '.join(map(str, exponentials))}   ({1 << EXP_FRAC} is one)"
    yield f"their sum        {total}"
    yield f"reciprocal       {(1 << RECIPROCAL_FRAC) // total} = 2^{RECIPROCAL_FRAC} // {total}"
    yield f"gradient         {' '.join(map(str, gradient))}   (one unit is 2^{-gradient_format.frac})"
    loss = int(rule.loss(logits, labels)[0])
    yield f"image's loss     {loss} * 2^-{LOSS_FRAC} = {loss / (1 << LOSS_FRAC):.6f}"


def section_backward(tour: Tour) -> Iterator[str]:
    program, command, layer = tour.program, tour.command(Opcode.BACKWARD), tour.layer
    y, x = tour.source
    block, row = divmod(tour.i, ROWS)
    yield f"the weight met input pixel ({y}, {x}) of channel {tour.i}: BP gathers the gradient there"
    yield f"mirrored tap  entry column  channel  gradient word  {ROW_HEADINGS}"
    acc, plane = np.zeros(ROWS, dtype=np.int64), layer.out_shape[1] * layer.out_shape[2]
    for step in tile_steps(program, command, block, y, x):
        g, b = backward_operands(tour, step)
        acc = acc + g * np.array(b)
        channel = (step.entry.channel - gradient_base(tour)) // plane * ROWS + step.term
        mine = (step.entry.column, channel) == (tour.block[0], tour.o)
        mark = f"  <- {g} * {b[row]}" if mine else ""
        tap = f"({step.entry.ky}, {step.entry.kx})"
        yield f"{tap:>12}  {step.entry.column:12}  {channel:7}  {g:13}  {_rows(b, acc)}{mark}"
    fmt = layer.input_gradient_format
    assert fmt is not None, "the followed layer is not the first"
    word = int(Requantize(acc_bits=program.machine.acc_bits, out_bits=fmt.width, shift=command.shift)(acc[row]))
    assert word == tour.step[gradient_name(layer.x)][tour.lane, tour.i, y, x], "BP is not the definition"
    seen = int(tour.step[layer.x][tour.lane, tour.i, y, x])
    yield f"requantised  {word} = (acc {row} + 2^{command.shift - 1}) >> {command.shift}"
    yield f"rectifier    the activation there is {seen}: {'the gradient passes' if seen > 0 else 'zero is stored'}"


def section_update_sums(tour: Tour) -> Iterator[str]:
    command, layer = tour.command(Opcode.UPDATE), tour.layer
    source, gradient = tour.step[layer.x], tour.gradient()
    sums = []
    for lane in range(LANES):
        products = []
        for y, x in np.ndindex(layer.conv_shape[1:]):
            here = (y + tour.ky - layer.pad[0], x + tour.kx - layer.pad[1])
            if 0 <= here[0] < command.source_y and 0 <= here[1] < command.source_x:
                products.append((int(source[lane, tour.i, *here]), int(gradient[lane, tour.o, y, x])))
        sums.append(sum(a * b for a, b in products))
        told = [f"{a}*{b}" for a, b in products if a * b]
        yield f"lane {lane}: {len(products)} products, {len(told)} of them not zero" + (
            f": {' + '.join(told)} = {sums[-1]}" if told else "")
    total = sum(sums)
    word = int(Requantize(acc_bits=62, out_bits=GRADIENT_BITS, shift=command.gradient_shift)(np.array(total)))
    assert word == tour.step[gradient_name(WEIGHT)][tour.index], "WU is not the definition"
    yield f"lane tree: {total}; shifted by {command.gradient_shift} and rounded: gradient {word}, which means " \
          f"{float(layer.weight_gradient_format.values(word)):.9f}"


def section_update(tour: Tour) -> Iterator[str]:
    rule, index = tour.network.rules[WEIGHT], tour.index
    master, momentum = (int(tour.before[f"{WEIGHT}.{kind}"][index]) for kind in ("master", "momentum"))
    gradient = int(tour.step[gradient_name(WEIGHT)][index])
    for name, factor, meaning in (("mu", rule.momentum, "momentum"), ("lambda", rule.decay, "learning rate * decay"),
                                  ("eta", rule.rate, "learning rate / batch, and the change of format")):
        yield f"{name:6}    {factor.word} * 2^{-factor.shift}: {meaning}"
    parts = [int(factor(np.array(word))) for factor, word in ((rule.momentum, momentum), (rule.rate, gradient),
                                                              (rule.decay, master))]
    after = [int(word) for word in rule(*(np.array(word) for word in (master, momentum, gradient)))]
    assert after == [int(tour.step[name][index]) for name in (f"{WEIGHT}.master", f"{WEIGHT}.momentum", WEIGHT)]
    yield f"momentum  {momentum} -> {after[1]} = mu*{momentum} + eta*{gradient} + lambda*{master} = " \
          f"{parts[0]} + {parts[1]} + {parts[2]}"
    yield f"master    {master} -> {after[0]} = {master} - {after[1]}"
    old = int(tour.before[WEIGHT][index])
    yield f"weight    {old} -> {after[2]} = ({after[0]} + 2^{EXTRA_BITS - 1}) >> {EXTRA_BITS}"
    yield f"in units of the weight, the step was {-after[1] / (1 << EXTRA_BITS):.4f}"


SECTIONS = {"torch": section_torch, "formats": section_formats, "word": section_word, "blocks": section_blocks,
            "list": section_list, "banks": section_banks, "command": section_command, "lattice": section_lattice,
            "drain": section_drain, "loss": section_loss, "backward": section_backward,
            "sums": section_update_sums, "update": section_update}


def sections() -> dict[str, str]:
    """The text of each section by name."""
    tour = prepare()
    return {name: "\n".join(section(tour)) for name, section in SECTIONS.items()}


def updated(page: str, texts: dict[str, str]) -> str:
    """``page`` with the block after each comment ``<!-- tour: NAME -->`` replaced by that section."""
    pattern = r"(<!-- tour: (\w+) -->\n```text\n).*?(?=\n```)"
    return re.sub(pattern, lambda found: found[1] + texts[found[2]], page, flags=re.DOTALL)


def main(arguments: list[str]) -> None:
    texts = sections()
    for name, text in texts.items():
        print(f"== {name} ==\n{text}\n")
    if arguments == ["--update"]:
        PAGE.write_text(updated(PAGE.read_text(encoding="utf-8"), texts), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
