"""What kernels would take on an FPGA, by count: an estimate, so that schedules can be compared without its tools.

A high-level synthesis makes a pipeline of a kernel's innermost loop (``loops.py``), one for each kernel. Of it:

- its initiation interval is 1, unless an iteration adds to a sum that one shortly before added to. That takes as long
  as an addition does: a cycle for integers and in Arria 10, whose multipliers accumulate float32 in one ("Single-Cycle
  Floating-Point Accumulator", Intel FPGA SDK for OpenCL Programming Guide, 683846), and ``float_add`` cycles
  elsewhere; through memory, ``memory`` cycles;
- its multipliers are those of an iteration: a DSP block multiplies two float32 numbers, or twice two of 18 bits;
- on chip are the sums of a work-group, and nothing else: caches and buffers of loads are not counted;
- memory gives the part's bandwidth, and every load and store goes there.

Blocks and bits of memory are of the maker's tables (Intel S10-OVERVIEW for Stratix 10, A10-OVERVIEW for Arria 10). The
bandwidth (four, and two, channels of DDR4-2400), the clock, and the cycles of an addition and of memory are assumed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from espalier.errors import UnsupportedError
from espalier.opencl.loops import Loop


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """An FPGA on a card.

    Parameters
    ----------
    dsp_blocks, memory_bits : int
        Of the part.
    bandwidth : float
        Bytes a second of external memory: assumed.
    clock : float
        Hz that kernels run at: assumed.
    float_add, memory : int
        Cycles until a sum in registers, or in memory, can be added to again: assumed.
    """

    name: str
    dsp_blocks: int
    memory_bits: int
    bandwidth: float
    clock: float = 250e6
    float_add: int = 4
    memory: int = 200


PARTS = {part.name: part for part in (
    Part(name="stratix10-2800", dsp_blocks=5760, memory_bits=11721 * 20480, bandwidth=76.8e9),
    Part(name="arria10-1150", dsp_blocks=1518, memory_bits=2713 * 20480, bandwidth=38.4e9, float_add=1),
)}


def find_part(name: str) -> Part:
    """Raises UnsupportedError for a part that is not known."""
    if name not in PARTS:
        raise UnsupportedError(f"There is no estimate for part {name!r}: choose of {', '.join(PARTS)}")
    return PARTS[name]


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """Of one kernel, for an image.

    Parameters
    ----------
    interval : int
        Initiation interval, cycles.
    cycles : int
        Of all iterations, if memory keeps up.
    multipliers : int
        At a time.
    dsp_blocks : float
    held_words, held_bits : int
        On chip.
    bytes_moved : int
        Loaded and stored.
    bytes_per_second : float
        That memory would have to give for no iteration to wait.
    seconds : float
        Whichever is longer: the iterations, or the bytes at the part's bandwidth.
    limit : str
        ``"sums"``: the interval; ``"memory"``; ``"iterations"``: neither, more at a time would be faster.
    """

    interval: int
    cycles: int
    multipliers: int
    dsp_blocks: float
    held_words: int
    held_bits: int
    bytes_moved: int
    bytes_per_second: float
    seconds: float
    limit: str


def estimate(loop: Loop, part: Part) -> Estimate:
    """What a kernel would take on a part."""
    real = loop.sum_type.startswith("float")
    again = part.memory if loop.in_memory else part.float_add if real else 1
    interval = max(1, -(-again // loop.distance)) if loop.distance else 1
    cycles, moved = loop.iterations * interval, loop.iterations * loop.loaded + loop.stored
    busy, waiting = cycles / part.clock, moved / part.bandwidth
    held = 0 if loop.in_memory else loop.sums
    return Estimate(
        interval=interval, cycles=cycles, multipliers=loop.products, dsp_blocks=loop.products * (1 if real else 0.5),
        held_words=held, held_bits=held * 8 * np.dtype(loop.sum_type).itemsize, bytes_moved=moved,
        bytes_per_second=moved / busy, seconds=max(busy, waiting),
        limit="memory" if waiting > busy else "sums" if interval > 1 else "iterations")


@dataclass(frozen=True, slots=True, kw_only=True)
class Total:
    """Of a network: its kernels one after another, each with hardware of its own.

    ``pipelined`` is the time of its slowest kernel, which is that of an image when every kernel works on another one.
    """

    seconds: float
    pipelined: float
    dsp_blocks: float
    held_bits: int
    fits: bool


def total(estimates: Sequence[Estimate], part: Part) -> Total:
    """The sum over a network's kernels, and whether the part holds them all."""
    blocks, bits = sum(one.dsp_blocks for one in estimates), sum(one.held_bits for one in estimates)
    return Total(seconds=sum(one.seconds for one in estimates), pipelined=max(one.seconds for one in estimates),
                 dsp_blocks=blocks, held_bits=bits, fits=blocks <= part.dsp_blocks and bits <= part.memory_bits)
