"""Schedules: TensorIR functions as they are to run, one optimisation after another."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any

import numpy as np
import tvm
from tvm.s_tir import Schedule

from espalier.opencl.choice import Choice, Choose, first
from espalier.opencl.kernels import OUT, SUM, Kernel
from espalier.opencl.loops import Loop
from espalier.opencl.optimisations import Optimisations

Tile = Choice  #: blocks, rows and columns of results at a time
ONE: Tile = (1, 1, 1)
REGISTERS = 28     #: sums of a tile, as vectors; a few registers stay for what is loaded
LATENCY = 4        #: cycles from one sum of a register to its next
UNROLLED_TERMS = 9  #: terms of a window whose loops are unrolled


@dataclass(frozen=True, slots=True)
class Scheduled:
    """A kernel as it is to run: the module of its one function, how many work-groups run it, and its loop."""

    kernel: Kernel
    module: Any
    groups: int
    loop: Loop


def scheduled(kernel: Kernel, options: Optimisations, choose: Choose = first) -> Scheduled:
    """A kernel as the optimisations say, with a tile of those that it can have."""
    module = tvm.IRModule({kernel.name: kernel.function})
    if kernel.kind == "list":
        assert kernel.loop is not None, "who made it knows"
        return Scheduled(kernel, module, kernel.groups, kernel.loop)
    schedule = Schedule(module)
    schedule.work_on(kernel.name)
    writes = OUT in kernel.blocks
    side_by_side = writes and kernel.kind != "gather" and kernel.result.block > 1
    chosen = choose(kernel.name, f"{_signature(kernel)} {options}", tiles(kernel, options))
    unrolled = options.unrolling and prod(chosen) <= REGISTERS
    *outer, vector = _tiled(schedule, schedule.get_sblock(kernel.blocks[-1]), chosen)
    groups, inner = outer[:3], outer[3:]
    terms = _sum_inside(schedule, groups[-1], kernel, options, unrolled) if kernel.blocks == (SUM, OUT) else []
    if options.vectorisation and side_by_side:
        schedule.vectorize(vector)
    if unrolled and writes:
        for loop in inner:
            schedule.unroll(loop)
    _bind(schedule, groups, options)
    if terms:
        schedule.decompose_reduction(schedule.get_sblock(SUM), terms[0])
    size = kernel.result.blocks, *kernel.result.shape[1:]
    count = prod(size) // prod(chosen)
    return Scheduled(kernel, schedule.mod, count if _side_by_side(options) else 1,
                     _loop(kernel, options, chosen, count, unrolled))


def _loop(kernel: Kernel, options: Optimisations, tile: Tile, count: int, unrolled: bool) -> Loop:
    """The innermost loop that is left, of ``count`` tiles: over terms where they are unrolled, else over vectors."""
    lanes = kernel.result.block if options.vectorisation else 1
    each, at_a_time = prod(tile) * kernel.result.block // lanes, lanes
    if unrolled:
        each, at_a_time = 1, prod(tile) * lanes
    sizes = [np.dtype(argument.type).itemsize for argument in kernel.arguments]
    added, in_memory = kernel.blocks != (OUT,), kernel.blocks == (SUM,)
    loaded = at_a_time * sizes[0]
    if kernel.multiplications and kernel.kind == "dense":  # a vector of weights meets an element of each pixel
        pixels, blocks = (tile[1] * tile[2], tile[0]) if unrolled else (1, 1)
        loaded = pixels * sizes[0] + blocks * lanes * sizes[1]
    elif kernel.multiplications:
        loaded = at_a_time * (sizes[0] + sizes[1])
    if in_memory:  # each term reads the sum and writes it
        loaded += 2 * at_a_time * sizes[-1]
    return Loop(iterations=count * each * (kernel.terms if added else 1), loaded=loaded,
                products=at_a_time if kernel.multiplications else 0, stored=kernel.result.elements * sizes[-1],
                sums=prod(tile) * kernel.result.block if added else 0, sum_type=kernel.sums,
                distance=each if added else 0, in_memory=in_memory)


def _signature(kernel: Kernel) -> str:
    """What of a function its name and its arguments' names do not change."""
    text = str(kernel.function.script())
    for number, name in enumerate((kernel.name, *(argument.name for argument in kernel.arguments))):
        text = re.sub(rf"\b{name}\b", f"name{number}", text)
    return text


def _tiled(schedule: Any, block: Any, tile: Tile) -> list[Any]:
    """The loops of a block's element: over tiles, in the tile, over the vector."""
    axes = schedule.get_loops(block)[:4]
    split = [schedule.split(axis, [None, size]) for axis, size in zip(axes[:3], tile, strict=True)]
    loops = [pair[0] for pair in split] + [pair[1] for pair in split] + [axes[3]]
    schedule.reorder(*loops)
    return loops


def _sum_inside(schedule: Any, at: Any, kernel: Kernel, options: Optimisations, unrolled: bool) -> list[Any]:
    """The sums of a tile in registers, terms outside and the tile inside; returns the loops over terms."""
    block = schedule.get_sblock(SUM)
    schedule.compute_at(block, at, preserve_unit_loops=True)
    schedule.set_scope(block, 0, "local")
    loops = schedule.get_loops(block)[3:]  # within the three over tiles
    place, vector, terms = loops[:3], loops[3], loops[4:]
    schedule.reorder(*terms, *place, vector)
    if options.vectorisation and kernel.result.block > 1:
        schedule.vectorize(vector)
    if unrolled:
        for loop in place:
            schedule.unroll(loop)
        if kernel.kind == "window" and kernel.terms <= UNROLLED_TERMS:
            for loop in terms:
                schedule.unroll(loop)
    return list(terms)


def _side_by_side(options: Optimisations) -> bool:
    return options.work_groups and not options.tasks


def _bind(schedule: Any, groups: list[Any], options: Optimisations) -> None:
    """Each tile is a work-group, or all are one."""
    if _side_by_side(options):
        schedule.bind(schedule.fuse(*groups), "blockIdx.x")
    else:
        schedule.bind(schedule.add_unit_loop(groups[0]), "blockIdx.x")


def tiles(kernel: Kernel, options: Optimisations) -> list[Tile]:
    """Those that there are, by their estimated time for each sum, the shortest first.

    The estimate is of a processor that does two sums and two loads at a time.

    A term of a tile loads a vector of weights for each of its blocks, and an element for each of its pixels, which
    for a single block is part of the sum's instruction. Without channels side by side, the tile is a row where there
    are sums, else a channel, and left to the device's compiler.
    """
    blocks, (_, height, width) = kernel.result.blocks, kernel.result.shape
    scattered = kernel.kind == "gather" and kernel.result.block > 1
    if not options.tiling or scattered or OUT not in kernel.blocks:
        return [ONE]
    if kernel.result.block == 1 and kernel.kind != "dense":
        return [(1, 1 if kernel.terms else height, width)]
    across = _divisors(blocks) if kernel.kind == "dense" else [1]
    found = [tile for tile in product(across, _divisors(height), _divisors(width)) if prod(tile) <= REGISTERS]

    def cost(tile: Tile) -> tuple[float, int]:
        sums, pixels = prod(tile), tile[1] * tile[2]
        if kernel.kind == "copy":
            return abs(sums - 4), tile[1]
        loads = tile[0] + pixels if kernel.kind == "dense" else 2 * pixels
        return max(sums / 2, loads / 2, LATENCY) / sums, tile[1]

    return sorted(found, key=cost)


def _divisors(number: int) -> list[int]:
    return [size for size in range(1, number + 1) if number % size == 0]
