"""What a training step on the lattice would cost in energy: an estimate, to compare block sizes with each other.

Energies of single operations are those of Horowitz, "Computing's Energy Problem (and what we can do about it)", ISSCC
2014, 45 nm, 0.9 V: 32-bit integer add 0.1 pJ; 32-bit integer multiply 3.1 pJ, 8-bit 0.2 pJ; 64 bits from a cache of
8 KB 10 pJ; 64 bits from DRAM 1.3 to 2.6 nJ. Taken from these:

- a 16-bit multiply: 0.8 pJ, a quarter of the 32-bit one and four times the 8-bit one, which agree;
- the accumulator's add: 0.1 pJ; a 16-bit word of an on-chip memory: a quarter of 10 pJ, whatever the memory's depth;
- a 16-bit word of DRAM: a quarter of 1.95 nJ, the middle of the range.

Activity is counted from the engine's own lists, for one group of images (one a lane):

- FP takes a step for each live column of a block at each output pixel where its tap lies in the image, BP one for each
  row of a block, WU one for each column, as FP. Each is ``rows × lanes`` multiply-adds, the padding of blocks at the
  edge of a layer included.
- A step of FP and BP reads ``lanes`` words of activations (or gradients) and ``rows`` weights; one of WU ``lanes``
  activations and ``rows × lanes`` gradients. Each live block is an index entry, read once a pixel.
- Each result of FP and BP is written once, ``lanes`` words. Each live weight is updated once a step: 32-bit master and
  momentum are read and written, the weight is written.
- Images come from DRAM, 8 bits a pixel; weights and lists stay on chip. Idle cycles, clock, control and leakage are not
  counted, and no FPGA is like an ASIC: the ratios mean something, the joules little.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from espalier.arch.machine import Machine
from espalier.compiler.lists import LayerBlocks
from espalier.cost.macs import ConvolutionSize
from espalier.program.words import entry_fields

MULTIPLY_PJ, ADD_PJ = 0.8, 0.1
WORD_PJ = 10 / 4
DRAM_WORD_PJ = 1950 / 4
WORD_BITS = 16


@dataclass(frozen=True, slots=True)
class Activity:
    """Multiply-adds, and 16-bit words moved, of a training step. They add up.

    Members
    -------
    macs : float
    operands : float
        Words read for them.
    index : float
        Words of index entries read.
    others : float
        Words of results and updates, read or written.
    dram : float
        Words from off chip.
    """

    macs: float = 0.0
    operands: float = 0.0
    index: float = 0.0
    others: float = 0.0
    dram: float = 0.0

    def __add__(self, other: Activity) -> Activity:
        return Activity(self.macs + other.macs, self.operands + other.operands, self.index + other.index,
                        self.others + other.others, self.dram + other.dram)

    def __mul__(self, times: float) -> Activity:
        return Activity(*(times * number for number in (self.macs, self.operands, self.index, self.others, self.dram)))

    def microjoules(self) -> dict[str, float]:
        """Energy by what it is spent on."""
        return {"multiply-adds": self.macs * (MULTIPLY_PJ + ADD_PJ) / 1e6, "operands": self.operands * WORD_PJ / 1e6,
                "index": self.index * WORD_PJ / 1e6, "results and updates": self.others * WORD_PJ / 1e6,
                "images": self.dram * DRAM_WORD_PJ / 1e6}


def step_activity(blocks: Sequence[LayerBlocks], machine: Machine, lanes: int, groups: int) -> Activity:
    """That of a step of ``groups`` groups of ``lanes`` images."""
    entry_words = sum(entry_fields(machine).values()) / WORD_BITS
    total = Activity()
    for number, item in enumerate(blocks):
        total += _group(item, lanes, entry_words, first=number == 0) * groups + _update(item)
    channels, height, width = blocks[0].layer.in_shape
    return total + Activity(dram=channels * height * width * lanes * groups / 2)


def _group(item: LayerBlocks, lanes: int, entry_words: float, *, first: bool) -> Activity:
    """FP, BP and WU of a layer for one group; the first layer has no BP."""
    layer, rows = item.layer, item.rows
    outputs, inputs, *kernel = layer.weight_shape
    size = ConvolutionSize(in_shape=layer.in_shape, out_shape=layer.conv_shape, kernel=(kernel[0], kernel[1]),
                           pad=layer.pad, stride=layer.stride)
    pixels = layer.conv_shape[1] * layer.conv_shape[2]
    columns = len(item.bias_columns) * pixels
    row_steps, entries = 0, len(item.bias_columns) * pixels
    for block in item.blocks:
        inside = size.positions(block.ky, block.kx)
        columns += block.columns * inside
        row_steps += 0 if first else min(rows, outputs - block.out * rows) * inside
        entries += inside * (1 if first else 2)
    walked = columns + row_steps
    results = _words(layer.out_shape) + (0 if first else _words(layer.in_shape))
    return Activity(macs=(walked + columns) * rows * lanes, index=entries * entry_words, others=results * lanes,
                    operands=walked * (lanes + rows) + columns * (lanes + rows * lanes))


def _update(item: LayerBlocks) -> Activity:
    """Of all live weights of a layer: two words of 32 bits read and written, and one of 16 written."""
    live = sum(block.columns for block in item.blocks) + len(item.bias_columns)
    return Activity(others=9.0 * live * item.rows)


def _words(shape: tuple[int, int, int]) -> int:
    return shape[0] * shape[1] * shape[2]
