"""Choose a machine: the lattice that trains a network fastest within what a part offers."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod

import numpy as np
from numpy.typing import NDArray

from espalier.arch.machine import (
    ADDRESS_MULTIPLIERS,
    MAX_UPDATE_UNITS,
    MULTIPLIERS_BESIDE_LATTICE,
    ROWS,
    SCALAR_MULTIPLIERS,
    UPDATE_MULTIPLIERS,
    Machine,
)
from espalier.compiler.backward import adds
from espalier.compiler.fit import makes_own, required_acc_bits, required_depths
from espalier.compiler.legalise import Layer, Loss
from espalier.compiler.lists import LayerBlocks, aligned_groups, blocks_of, live_weights, whole_blocks
from espalier.compiler.panels import laid_out, layer_panels, streaming_depths
from espalier.compiler.place import Memory, place
from espalier.compiler.tiling import WHOLE, Grid, tiled
from espalier.errors import FitError, UnsupportedError
from espalier.program.memories import memory_banks

MAX_LANES = 1024
MOST_CHOSEN_ROWS = 16  #: more are taken where asked for: no lattice with more of them has been routed
STATE_COLUMNS = 1024  #: of a panel of masters and momenta: enough for the latency of memory to be a small part
GRIDS = ((1, 2), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8))  #: that are chosen from, fewest tiles first
TREE_GAIN = 0.02  #: of the cycles, at least, that more lane trees save where they are chosen
DEPTH_STEP = 64  #: depths are rounded up to a multiple of this, so that a small change still fits


def _no_block_rams(words: int, bits: int) -> int:
    return 0


def _no_luts(machine: Machine) -> int:
    return 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Constraints:
    """What a machine may take, and what of it is given.

    Parameters
    ----------
    name : str
        Of the part, for messages.
    multipliers, block_rams : int or None
        At most so many; None sets no limit.
    pair_bits : int or None
        Widest words of which a multiplier makes two products, 0 for none; None sets no limit.
    block_rams_for : callable
        Block RAMs of a memory of (words, bits).
    luts : int or None
        Look-up tables, at most; None sets no limit.
    luts_for : callable
        Look-up tables of a machine, estimated.
    word_bits : int or None
        None takes the widest format of the network.
    rows, lanes : int or None
        None leaves the choice.
    trees : int or None
        Lane trees, at most; a lattice of fewer rows has as many as those. None leaves the choice.
    port_bits : int
        Of a port to external memory; with one, activations are spilled: those for which ``block_rams`` are not enough,
        without a limit to them all that can be.
    stream : bool
        Whether the largest layers have their weights in external memory: those for which ``block_rams`` are not enough,
        without a limit to them so many that the fewest columns are on chip.
    pairs : bool or None
        Whether two rows share each multiplier; None where ``pair_bits`` says that the part can, the words are no
        wider, and there are two rows.
    batch : int or None
        Images of a training step; more than ``lanes`` adds the memory that sums gradients over groups.
        None makes every step one group.
    grid : (int, int) or None
        Tiles, down and across, in which lanes hold the maps of an image. None leaves the choice: whole maps, unless the
        images of a batch leave lanes over.
    elements : int
        Processing elements.
    """

    name: str = "any part"
    multipliers: int | None = None
    block_rams: int | None = None
    pair_bits: int | None = None
    block_rams_for: Callable[[int, int], int] = _no_block_rams
    luts: int | None = None
    luts_for: Callable[[Machine], int] = _no_luts
    word_bits: int | None = None
    rows: int | None = None
    lanes: int | None = None
    trees: int | None = 1
    port_bits: int = 0
    stream: bool = False
    pairs: bool | None = None
    batch: int | None = None
    grid: Grid | None = WHOLE
    elements: int = 1

    def block_rams_of(self, machine: Machine) -> int:
        """Block RAMs that the memories of ``machine`` take."""
        return sum(count * self.block_rams_for(words, bits) for count, words, bits in memory_banks(machine))

    def pairs_in(self, rows: int, word_bits: int) -> bool:
        """Whether a lattice of ``rows`` has pairs."""
        return rows > 1 and word_bits <= (self.pair_bits or 0) if self.pairs is None else self.pairs

    def takes(self, machine: Machine) -> tuple[int, int]:
        """Block RAMs and multipliers of ``machine``, by which machines are ordered."""
        return self.block_rams_of(machine), multipliers_of(machine)

    def hold(self, machine: Machine) -> bool:
        """Whether ``machine`` is within the limits."""
        return ((self.multipliers is None or multipliers_of(machine) <= self.multipliers)
                and (self.block_rams is None or self.block_rams_of(machine) <= self.block_rams)
                and (self.luts is None or self.luts_for(machine) <= self.luts))

    def needs(self, machine: Machine) -> str:
        """What ``machine`` takes of what there is, for a message."""
        parts = [f"{used} of {have} {what}" for used, have, what in (
            (multipliers_of(machine), self.multipliers, "multipliers"),
            (self.block_rams_of(machine), self.block_rams, "block RAMs"),
            (self.luts_for(machine), self.luts, "look-up tables (estimated)")) if have is not None]
        return " and ".join(filter(None, (", ".join(parts[:-1]), *parts[-1:])))


def multipliers_of(machine: Machine) -> int:
    """Hard multipliers of the lattice and, at most, of what is beside it."""
    units = machine.elements * machine.trees
    return (machine.hard_multipliers + MULTIPLIERS_BESIDE_LATTICE + (units - 1) * UPDATE_MULTIPLIERS
            + (machine.elements - 1) * ADDRESS_MULTIPLIERS + SCALAR_MULTIPLIERS * (machine.norm_depth > 0))


def choose_machine(layers: tuple[Layer, ...], loss: Loss, live: Mapping[str, NDArray[np.bool_]],
                   constraints: Constraints) -> Machine:
    """The machine within ``constraints`` with the fewest estimated cycles per image of a training step.

    Every number of rows whose blocks the live set is made of is tried with the most lanes that fit;
    depths are what the network needs, rounded up to a multiple of :data:`DEPTH_STEP`. Where a grid may be chosen, those
    of :data:`GRIDS` are tried that divide the network's maps; where lane trees may be, more of them are taken than
    fewer if that saves :data:`TREE_GAIN`.

    Raises
    ------
    FitError
        Nothing fits, with the numbers of the smallest machine that was tried; or rows, lanes, batch and pairs
        contradict the live set, the part or each other.
    """
    _, machine = best = _on_grid(layers, loss, live, constraints, constraints.grid or WHOLE)
    if constraints.grid is not None or constraints.lanes is not None or machine.lanes != constraints.batch:
        return machine
    for grid in GRIDS:
        try:
            best = min(best, _on_grid(layers, loss, live, constraints, grid), key=lambda item: item[0])
        except (FitError, UnsupportedError):
            continue
    return best[1]


def _on_grid(layers: tuple[Layer, ...], loss: Loss, live: Mapping[str, NDArray[np.bool_]], constraints: Constraints,
             grid: Grid) -> tuple[float, Machine]:
    """The cycles per image of the best machine with ``grid``, and that machine."""
    if min(grid) < 1:
        raise FitError(f"A grid has at least one tile, not {grid[0]} × {grid[1]}")
    layers, tiles = tiled(layers, grid), prod(grid)
    _check_pairs(_word_bits(layers, constraints), constraints)
    found: list[tuple[float, int, Machine]] = []
    smallest: Machine | None = None
    for rows in _legal_rows(layers, live, constraints):
        least = _least(layers, live, rows, constraints)
        if not constraints.hold(least):  # without laying out a million blocks
            smallest = min(smallest or least, least, key=constraints.takes)
            continue
        blocks = blocks_of(layers, live, rows, elements=constraints.elements)
        narrowest = _narrowest(layers, live, loss, blocks, rows, constraints)
        fewest = math.inf
        for trees in _tree_counts(rows, constraints):
            with_trees = replace(narrowest, trees=trees)
            cycles = sum(estimated_cycles(item, with_trees.tree_rows) for item in blocks)
            for lanes in _lane_counts(with_trees, constraints, tiles):
                groups = constraints.batch is not None and constraints.batch * tiles > lanes
                machine = replace(with_trees, lanes=lanes, groups=groups, grid_y=grid[0], grid_x=grid[1])
                if constraints.hold(machine):
                    if cycles / machine.images < fewest * (1 - TREE_GAIN):
                        fewest = cycles / machine.images
                        found.append((fewest, -rows, machine))
                    break
                smallest = min(smallest or machine, machine, key=constraints.takes)
    if found:
        fewest, _, machine = min(found, key=lambda item: item[:2])
        return fewest, _filled(machine, layers, live, constraints)
    if smallest is None:
        raise FitError("Pairs of products are those of two rows, and the live weights are not whole 2×2 blocks: leave "
                       "out the pairs, or prune in blocks")
    raise FitError(f"No machine for this network fits {constraints.name}: the smallest that was tried, {smallest.rows} "
                   f"rows × {smallest.lanes} lanes, takes at least {constraints.needs(smallest)}; prune more, "
                   f"shrink the network, or choose a larger part")


def _filled(machine: Machine, layers: tuple[Layer, ...], live: Mapping[str, NDArray[np.bool_]],
            constraints: Constraints) -> Machine:
    """``machine`` with what it leaves of the block RAMs: for weights, so that fewer stream, then for activations."""
    if not constraints.port_bits or constraints.block_rams is None:
        return machine
    if machine.panel_depth:
        memory = place(layers, machine.rows, spill=True)
        machine = next(grown for depths in streaming_depths(layers, live, machine)
                       if constraints.hold(_with_panels(machine, *depths))
                       and constraints.hold(grown := streaming(layers, live, memory, machine, depths)))
    whole = place(layers, machine.rows, elements=machine.elements).activation_depth
    depths = range(machine.activation_depth, whole + DEPTH_STEP, DEPTH_STEP)
    room = bisect_left(depths, True, key=lambda depth: not constraints.hold(replace(machine, activation_depth=depth)))
    return replace(machine, activation_depth=depths[room - 1])


def _tree_counts(rows: int, constraints: Constraints) -> Iterator[int]:
    """Numbers of lane trees to try, the fewest first."""
    if constraints.trees is not None:
        yield min(constraints.trees, rows)
        return
    trees = 1
    while trees <= rows and trees * constraints.elements <= MAX_UPDATE_UNITS:
        yield trees
        trees *= 2


def _check_pairs(word_bits: int, constraints: Constraints) -> None:
    """Raise FitError where pairs are asked for and the part's multipliers make none of such words."""
    widest = constraints.pair_bits
    if constraints.pairs and widest is not None and word_bits > widest:
        raise FitError(f"A multiplier of {constraints.name} makes two products of words of at most {widest} bits, not "
                       f"{word_bits}" if widest else f"A multiplier of {constraints.name} makes no two products")


def _legal_rows(layers: tuple[Layer, ...], live: Mapping[str, NDArray[np.bool_]], constraints: Constraints
                ) -> Iterator[int]:
    """Numbers of rows whose blocks the live set is made of, at least two for pairs; the given one as it is."""
    given = constraints.rows
    if given is not None:
        if given not in ROWS:
            raise FitError(f"Rows must be one of {', '.join(map(str, ROWS))}, not {given}")
        yield given
        return
    alive = [(layer, live_weights(layer, live)) for layer in layers]
    for rows in ROWS[1 if constraints.pairs else 0: ROWS.index(MOST_CHOSEN_ROWS) + 1]:
        if all(aligned_groups(layer, rows) and whole_blocks(layer, weights, rows) for layer, weights in alive):
            yield rows


def _least(layers: tuple[Layer, ...], live: Mapping[str, NDArray[np.bool_]], rows: int, constraints: Constraints
           ) -> Machine:
    """A lower bound: one lane, and memory for the live weights alone, if those do not stream."""
    columns = 0 if constraints.stream else sum(
        int(live[layer.weight].sum()) for layer in layers
        if layer.weight is not None and layer.norm is None) // (rows * constraints.elements)
    word_bits = _word_bits(layers, constraints)
    return Machine(rows=rows, lanes=1, word_bits=word_bits, acc_bits=2 * word_bits, weight_depth=max(2, columns),
                   activation_depth=2, gradient_depth=2, index_depth=2, table_depth=2, program_depth=2,
                   elements=constraints.elements, pairs=constraints.pairs_in(rows, word_bits))


def _word_bits(layers: tuple[Layer, ...], constraints: Constraints) -> int:
    widest = max(fmt.width for layer in layers for fmt in (layer.x_format, layer.weight_format, layer.out_format,
                                                           layer.gradient_format))
    return widest if constraints.word_bits is None else constraints.word_bits


def _lane_counts(narrowest: Machine, constraints: Constraints, tiles: int) -> Iterator[int]:
    """Numbers of lanes to try, the most first; at least one, even where the multipliers do not suffice for it.

    ``narrowest`` has one lane, an image ``tiles``. With batch norms, as many as the batch has images.
    """
    batch, given = constraints.batch, constraints.lanes
    if batch is not None and batch < 1:
        raise FitError(f"A batch must hold at least one image, not {batch}")
    if given is not None:
        if not 1 <= given <= MAX_LANES:
            raise FitError(f"Lanes must be in 1..{MAX_LANES}, not {given}")
        if given % tiles:
            raise FitError(f"Lanes must be whole grids of {tiles} tiles, not {given}")
        images = given // tiles
        if batch is not None and batch != images and narrowest.norm_depth:
            raise FitError(f"A batch norm takes the statistics of a batch at once, so {batch} images need "
                           f"{batch * tiles} lanes, not {given}")
        if batch is not None and batch % images:
            raise FitError(f"A batch must be whole groups of lanes, and {batch} images are not whole groups of "
                           f"{images}")
        yield given
        return
    if batch is not None and narrowest.norm_depth:
        yield batch * tiles
        return
    if constraints.multipliers is None:
        raise FitError(f"{constraints.name} sets no limit to multipliers, so the number of lanes must be given")
    lane = narrowest.hard_multipliers
    beside = multipliers_of(narrowest) - lane
    most = max(1, min(MAX_LANES, (constraints.multipliers - beside) // lane) // tiles)
    for images in range(min(most, batch or most), 0, -1):
        if batch is None or batch % images == 0:
            yield images * tiles


def _narrowest(layers: tuple[Layer, ...], live: Mapping[str, NDArray[np.bool_]], loss: Loss,
               blocks: tuple[LayerBlocks, ...], rows: int, constraints: Constraints) -> Machine:
    """The machine of one lane that holds the network."""
    word_bits, elements = _word_bits(layers, constraints), constraints.elements
    memory = place(layers, rows, spill=constraints.port_bits > 0, elements=elements)
    machine = Machine(rows=rows, lanes=1, word_bits=word_bits, max_classes=max(16, loss.classes), groups=False,
                      pairs=constraints.pairs_in(rows, word_bits),
                      port_bits=constraints.port_bits, elements=elements, clips=any(layer.clip for layer in layers),
                      sums=adds(layers),
                      acc_bits=max(required_acc_bits(layers, blocks), 2 * word_bits),
                      **_rounded(required_depths(layers, blocks, memory, rows)))
    return streaming(layers, live, memory, machine) if constraints.stream else machine


def streaming(layers: tuple[Layer, ...], live: Mapping[str, NDArray[np.bool_]], memory: Memory, machine: Machine,
              depths: tuple[int, int] | None = None) -> Machine:
    """``machine`` with panels for weights in external memory, and these of :func:`streaming_depths`.

    Without ``depths`` those with as few columns on chip as there can be.
    """
    resident, panel = depths or min(streaming_depths(layers, live, machine), key=lambda least: least[0] + 2 * least[1])
    machine = _with_panels(machine, resident, panel)
    if not panel:
        return machine
    blocks, streamed = laid_out(layers, live, machine)
    panels = {k: layer_panels(blocks[k], machine) for k in streamed}
    return _with_depths(machine, required_depths(layers, blocks, memory, machine.rows, panels))


def _with_panels(machine: Machine, resident: int, panel: int) -> Machine:
    if not panel:
        return replace(_with_depths(machine, {"weight_depth": resident}), panel_depth=0, state_depth=0, run_depth=0)
    return _with_depths(machine, {"weight_depth": resident, "panel_depth": panel, "run_depth": 2,
                                  "state_depth": min(panel, STATE_COLUMNS)})


def _with_depths(machine: Machine, depths: Mapping[str, int]) -> Machine:
    return Machine.from_json({**machine.to_json(), **_rounded(depths)})


def _rounded(depths: Mapping[str, int]) -> dict[str, int]:
    """Up to whole steps, at least one."""
    return {name: max(1, -(-needed // DEPTH_STEP)) * DEPTH_STEP for name, needed in depths.items()}


def estimated_cycles(item: LayerBlocks, tree_rows: int) -> int:
    """Lattice cycles of one layer's FP, BP and WU for one group of lanes, without fills and barriers.

    FP and BP take a cycle for each live column or row of a block at each pixel, and at least one for each
    vector of results; WU takes one for each pixel of a live column, and at least ``tree_rows``. Of several processing
    elements each has its own blocks, and the slowest at a block of results counts.
    """
    return sum(phase_estimates(item, tree_rows))


def phase_estimates(item: LayerBlocks, tree_rows: int) -> tuple[int, int, int]:
    """The FP, BP and WU parts of :func:`estimated_cycles`."""
    layer, rows = item.layer, item.rows
    out_pixels, in_pixels = layer.conv_shape[1] * layer.conv_shape[2], layer.in_shape[1] * layer.in_shape[2]
    elements, own = item.elements, makes_own(layer, item.elements)
    share = elements if own else 1  # blocks of results that are made at once
    forward = np.zeros((-(-item.out_blocks // share), elements), dtype=np.int64)
    backward = np.zeros((-(-item.source_blocks // elements), elements), dtype=np.int64)
    update = np.zeros(elements, dtype=np.int64)
    for out in range(len(item.bias_columns)):
        forward[out // share, out % elements] += out_pixels
        update[out % elements] += max(out_pixels, tree_rows)
    for block in item.blocks:
        inside = _inside(layer, block.ky, block.kx)
        forward[block.out // share, block.element] += block.columns * inside
        backward[block.source // elements, block.element] += (
            min(rows, layer.weight_shape[0] - block.out * rows) * inside)
        update[block.element] += block.columns * max(inside, tree_rows)
    return (int(np.maximum(forward.max(axis=1), share * rows * out_pixels).sum()),
            0 if layer.input_gradient_format is None
            else int(np.maximum(backward.max(axis=1), elements * rows * in_pixels).sum()),
            int(update.max()) if layer.trained else 0)


def _inside(layer: Layer, ky: int, kx: int) -> int:
    """Output pixels whose tap (ky, kx) falls inside the source map; of tiles all, as others hold what they have not."""
    if layer.in_tiles:
        return layer.conv_shape[1] * layer.conv_shape[2]
    spans = []
    for axis, tap in enumerate((ky, kx)):
        shift, stride = tap - layer.pad[axis], layer.stride[axis]
        first, end = -(min(0, shift) // stride), -((shift - layer.in_shape[1 + axis]) // stride)
        spans.append(max(0, min(layer.conv_shape[1 + axis], end) - first))
    return spans[0] * spans[1]
