"""What kernels would take on an FPGA, by count: an estimate, so that schedules can be compared without its tools.

A high-level synthesis makes a pipeline of a kernel's innermost loop (``loops.py``), one for each kernel. Of it:

- its initiation interval is 1, unless an iteration adds to a sum that one shortly before added to. That takes as long
  as an addition does: a cycle for integers and in Arria 10, whose multipliers accumulate float32 in one ("Single-Cycle
  Floating-Point Accumulator", Intel FPGA SDK for OpenCL Programming Guide, 683846), and ``float_add`` cycles
  elsewhere; through memory, ``memory`` cycles;
- its multipliers are those of an iteration: a DSP block multiplies two float32 numbers, or twice two of 18 bits;
- on chip are the sums of a work-group, and nothing else: caches and buffers of loads are not counted;
- memory gives the part's bandwidth, and every load and store goes there.

In the pipelined style (``pipelined.py``) a kernel's maps and its channels are on chip, too. To memory go image, weights
and result alone, and a sum in a map waits as one in registers does. A cycle each take the words of the maps that the
kernel receives, and twice those of its own, which it clears and sends.

Blocks and bits of memory are of the maker's tables (Intel S10-OVERVIEW for Stratix 10, A10-OVERVIEW for Arria 10). The
bandwidth (four, and two, channels of DDR4-2400), the clock, and the cycles of an addition and of memory are assumed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from espalier.errors import UnsupportedError
from espalier.opencl.bundle import Buffer, Bundle, Launch
from espalier.opencl.loops import Loop

CHANNEL_WORDS = 16  #: that a channel holds, as ``prelude.cl`` says


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
        Of all iterations, and of what goes through channels, if memory keeps up.
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
        ``"sums"``: the interval; ``"memory"``; ``"channels"``; ``"iterations"``: none of these, more at a time would be
        faster.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class OnChip:
    """What a kernel of the pipelined style has of its own, besides sums.

    Parameters
    ----------
    words, bits : int
        Of maps and channels.
    cycles : int
        To receive, clear and send maps.
    """

    words: int = 0
    bits: int = 0
    cycles: int = 0


def estimate(loop: Loop, part: Part, own: OnChip | None = None) -> Estimate:
    """What a kernel would take on a part."""
    own = own or OnChip()
    real = loop.sum_type.startswith("float")
    again = part.memory if loop.in_memory else part.float_add if real else 1
    interval = max(1, -(-again // loop.distance)) if loop.distance else 1
    computing, moved = loop.iterations * interval, loop.iterations * loop.loaded + loop.stored
    cycles = computing + own.cycles
    busy, waiting = cycles / part.clock, moved / part.bandwidth
    held = 0 if loop.in_memory else loop.sums
    return Estimate(
        interval=interval, cycles=cycles, multipliers=loop.products, dsp_blocks=loop.products * (1 if real else 0.5),
        held_words=held + own.words, held_bits=held * 8 * np.dtype(loop.sum_type).itemsize + own.bits,
        bytes_moved=moved, bytes_per_second=moved / busy, seconds=max(busy, waiting),
        limit="memory" if waiting > busy else "channels" if own.cycles > computing else "sums" if interval > 1
        else "iterations")


def estimates(bundle: Bundle, part: Part) -> list[Estimate]:
    """Of each launch, in the style of the kernels."""
    buffers = {buffer.name: buffer for buffer in bundle.buffers}
    there = {image.buffer for image in bundle.images}
    found = []
    for launch in bundle.launches:
        if launch.task is None:
            found.append(estimate(launch.loop, part))
            continue
        maps = [buffers[name] for name in launch.arguments if not buffers[name].loaded]
        out, = (buffer for buffer in maps if buffer.name not in there)  # whoever writes a map runs before its readers
        there.add(out.name)
        received = [buffer for buffer in maps if buffer != out and buffer.name not in launch.task.arguments]
        loop = _as_task(launch, [buffers[name] for name in launch.task.arguments], received, out)
        found.append(estimate(loop, part, _on_chip(received, out)))
    return found


def _on_chip(received: Sequence[Buffer], out: Buffer) -> OnChip:
    """Maps whole, and a channel for each that is received."""
    words = [(buffer, buffer.elements + CHANNEL_WORDS) for buffer in received] + [(out, out.elements)]
    return OnChip(words=sum(count for _, count in words),
                  bits=sum(8 * np.dtype(buffer.type).itemsize * count for buffer, count in words),
                  cycles=sum(buffer.elements for buffer in received) + 2 * out.elements)


def _as_task(launch: Launch, taken: Sequence[Buffer], received: Sequence[Buffer], out: Buffer) -> Loop:
    """The loop of a kernel whose maps are on chip: in memory is what it has ``taken``."""
    loop = launch.loop
    loaded = loop.loaded - (2 * loop.products * np.dtype(out.type).itemsize if loop.in_memory else 0)
    if not any(buffer.loaded or buffer != out for buffer in taken):
        loaded = 0
    elif all(buffer.loaded or buffer == out for buffer in taken):  # no image
        loaded = _of_weights(loop, loaded, max((buffer for buffer in taken if buffer.loaded),
                                               key=lambda buffer: buffer.size_bytes), received)
    return replace(loop, loaded=loaded, stored=loop.stored if out in taken else 0, in_memory=False,
                   sums=0 if loop.in_memory else loop.sums)


def _of_weights(loop: Loop, loaded: int, weights: Buffer, maps: Sequence[Buffer]) -> int:
    """Those of the ``loaded`` bytes of an iteration that are of weights, at most.

    A tile of p pixels and q outputs loads p elements of a map and q weights for its p q products; that of a layer whose
    outputs read a channel each, one of both for each product. Of lists that says nothing: all that they load counts.
    """
    wide, pixels = np.dtype(weights.type).itemsize, loop.iterations * loop.products // weights.elements
    sizes = [(count, loop.products // count) for count in range(1, loop.products + 1)
             if loop.products % count == 0 and pixels % count == 0] + [(loop.products, loop.products)]
    return max((outputs * wide for buffer in maps for count, outputs in sizes
                if count * np.dtype(buffer.type).itemsize + outputs * wide == loaded), default=loaded)


@dataclass(frozen=True, slots=True, kw_only=True)
class Total:
    """Of a network.

    Parameters
    ----------
    pipelined : bool
        The style.
    seconds : float
        From one image to the next: of the folded style its kernels one after another; of the pipelined one the slowest
        kernel, as each works on another image, or memory that all of them share.
    dsp_blocks, held_bits
        Of all kernels, each counted once however many layers run on it.
    fits : bool
        Whether the part holds them all.
    """

    pipelined: bool
    seconds: float
    dsp_blocks: float
    held_bits: int
    fits: bool


def total(launches: Sequence[Launch], found: Sequence[Estimate], part: Part) -> Total:
    """Of a network's ``launches``, which take what was ``found``."""
    kernels: dict[str, list[Estimate]] = {}
    for launch, one in zip(launches, found, strict=True):
        kernels.setdefault(launch.kernel, []).append(one)
    blocks = sum(max(one.dsp_blocks for one in same) for same in kernels.values())
    bits = sum(max(one.held_bits for one in same) for same in kernels.values())
    seconds = [one.seconds for one in found]
    shared = sum(one.bytes_moved for one in found) / part.bandwidth
    pipelined = any(launch.task is not None for launch in launches)
    return Total(pipelined=pipelined, seconds=max(*seconds, shared) if pipelined else sum(seconds), dsp_blocks=blocks,
                 held_bits=bits, fits=blocks <= part.dsp_blocks and bits <= part.memory_bits)
