"""Layers whose weights lie in external memory: the parts of them that are on chip at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from espalier.arch.machine import Machine
from espalier.compiler.legalise import Layer
from espalier.compiler.lists import Block, LayerBlocks, Live, blocks_of
from espalier.errors import FitError
from espalier.program.program import Run


@dataclass(frozen=True, slots=True)
class Panel:
    """Weights of the blocks from ``first`` on: of output blocks in FP and WU, of source blocks in BP."""

    first: int
    blocks: int
    runs: tuple[Run, ...]

    @property
    def columns(self) -> int:
        """All of them."""
        return sum(columns for _, columns in self.runs)


@dataclass(frozen=True, slots=True)
class Piece:
    """What WU takes at once of a panel of FP: blocks whose columns are one run, and the first of them in that panel.

    ``entries`` are, where the run is a part of one block, those of its list: the first, and how many.
    """

    panel: Panel
    column: int
    entries: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerPanels:
    """The panels of a layer, and for each first column of a block or bias its place in the panel.

    Panels of FP are one run each, in which also the order is that of external memory; WU takes them piece by piece.
    """

    forward: tuple[Panel, ...]
    update: tuple[Piece, ...]
    backward: tuple[Panel, ...]
    forward_columns: Mapping[int, int]
    backward_columns: Mapping[int, int]


def laid_out(layers: tuple[Layer, ...], live: Live, machine: Machine) -> tuple[tuple[LayerBlocks, ...], frozenset[int]]:
    """The live blocks of all layers, and the numbers of the layers whose columns lie in external memory.

    Those are the largest, as few as leave the others room in the weight banks: none without panels. Their columns are
    counted from ``machine.weight_depth`` on.
    """
    blocks = blocks_of(layers, live, machine.rows, elements=machine.elements)
    if not machine.panel_depth:
        return blocks, frozenset()
    columns, streamed = blocks[-1].columns, set[int]()
    for k, size in _largest(blocks):
        if columns <= machine.weight_depth:
            break
        streamed.add(k)
        columns -= size
    return (blocks_of(layers, live, machine.rows, streamed, machine.weight_depth, machine.beat_columns),
            frozenset(streamed))


def streaming_depths(layers: tuple[Layer, ...], live: Live, machine: Machine) -> list[tuple[int, int]]:
    """The ``weight_depth`` and ``panel_depth`` that it takes at least if none, one, two and at last all layers lie in
    external memory, the largest first.
    """
    blocks = blocks_of(layers, live, machine.rows)
    panel, resident = 2, blocks[-1].columns
    found = [(resident, 0)]
    for k, size in _largest(blocks):
        panel, resident = max(panel, _least_panel(blocks[k], machine)), resident - size
        found.append((resident, panel))
    return found


def _largest(blocks: Sequence[LayerBlocks]) -> list[tuple[int, int]]:
    """The numbers of the layers that have weights (not only scalars), and how many columns, the largest first."""
    ends = [0, *(item.columns for item in blocks)]
    sizes = [end - begin for begin, end in pairwise(ends)]
    found = [(k, size) for k, size in enumerate(sizes) if blocks[k].layer.weight and not blocks[k].layer.norm]
    return sorted(found, key=lambda numbered: -numbered[1])


def _least_panel(item: LayerBlocks, machine: Machine) -> int:
    """Columns of the largest block of a layer, in FP or BP: a panel can have no fewer."""
    widths = _widths(item, machine)
    return max(sum(widths[column] for column in columns) for blocks in _by_phase(item) for columns in blocks)


def _widths(item: LayerBlocks, machine: Machine) -> dict[int, int]:
    """The columns that each block takes in external memory, and each bias, by its first."""
    step = machine.beat_columns
    return {**{b.column: -(-b.columns // step) * step for b in item.blocks}, **dict.fromkeys(item.bias_columns, step)}


def _by_phase(item: LayerBlocks) -> tuple[list[list[int]], list[list[int]]]:
    """The first columns of each output block's blocks and bias, and of each source block's if BP reads them."""
    forward = _columns(item.out_blocks, item.blocks, lambda b: b.out)
    for columns, bias in zip(forward, item.bias_columns, strict=False):  # there are as many or none
        columns.insert(0, bias)
    if item.layer.input_gradient_format is None:
        return forward, []
    return forward, _columns(item.source_blocks, item.blocks, lambda b: b.source)


def layer_panels(item: LayerBlocks, machine: Machine) -> LayerPanels:
    """Cut a layer into panels, each of as many blocks as ``machine.panel_depth`` has columns for.

    Raises FitError where it has too few for one.
    """
    base, widths = machine.weight_depth, _widths(item, machine)
    widest = max(widths.values(), default=0)
    if widest > machine.state_depth:
        raise FitError(f"WU of {item.layer.name!r} needs state_depth = {widest} and the machine has "
                       f"{machine.state_depth}: enlarge it")
    panels, places, phases = [], [], _by_phase(item)
    for name, blocks in zip(("FP", "BP"), phases, strict=True):
        cut, inside = _cut(blocks, widths, machine.panel_depth, f"{name} of {item.layer.name!r}")
        panels.append(tuple(Panel(first, count, tuple((column - base, columns) for column, columns in runs))
                            for first, count, runs in cut))
        places.append(inside)
    assert all(len(panel.runs) <= 1 for panel in panels[0]), "output blocks lie one behind the other"
    lists = [[(column - base, widths[column]) for column in columns] for columns in phases[0]]
    return LayerPanels(
        forward=panels[0], update=tuple(piece for panel in panels[0] for piece in _pieces(panel, lists, machine)),
        backward=panels[1], forward_columns=places[0], backward_columns=places[1])


def _pieces(panel: Panel, lists: list[list[Run]], machine: Machine) -> Iterator[Piece]:
    """Whole blocks, as many as ``machine.state_depth`` has columns for; or parts of one that has more.

    ``lists`` has the entries of each output block of the layer.
    """
    begin = panel.runs[0][0] if panel.runs else 0
    first = number = panel.first
    last = panel.first + panel.blocks
    while first < last:
        number, columns = first, 0
        while number < last and columns + sum(width for _, width in lists[number]) <= machine.state_depth:
            columns += sum(width for _, width in lists[number])
            number += 1
        if number > first:
            own = [run for entries in lists[first: number] for run in entries][:1]
            runs = ((own[0][0], columns),) if own else ()
            yield Piece(Panel(first, number - first, runs), own[0][0] - begin if own else 0)
        else:
            yield from _parts(first, lists[first], begin, machine.state_depth)
            number += 1
        first = number


def _parts(block: int, entries: list[Run], begin: int, depth: int) -> Iterator[Piece]:
    """One block's list in parts."""
    first = 0
    while first < len(entries):
        end, columns = first, 0
        while end < len(entries) and columns + entries[end][1] <= depth:
            columns += entries[end][1]
            end += 1
        yield Piece(Panel(block, 1, ((entries[first][0], columns),)), entries[first][0] - begin, (first, end - first))
        first = end


def _columns(count: int, blocks: Iterable[Block], key: Callable[[Block], int]) -> list[list[int]]:
    """The columns of each of so many blocks, ordered as they lie."""
    found: list[list[int]] = [[] for _ in range(count)]
    for block in blocks:
        found[key(block)].append(block.column)
    return found


def _cut(blocks: list[list[int]], widths: Mapping[int, int], depth: int, what: str
         ) -> tuple[list[tuple[int, int, list[Run]]], dict[int, int]]:
    """Panels as (first block, blocks, runs), and where in its panel each column comes to lie."""
    panels: list[tuple[int, int, list[Run]]] = []
    places: dict[int, int] = {}
    first, taken = 0, 0
    sizes = [sum(widths[column] for column in columns) for columns in blocks]
    for number, size in enumerate(sizes):
        if size > depth:
            raise FitError(f"{what} needs panel_depth = {size} and the machine has {depth}: enlarge it, or prune more")
        if taken + size > depth:
            panels.append(_panel(first, blocks[first: number], widths, places))
            first, taken = number, 0
        taken += size
    if blocks:
        panels.append(_panel(first, blocks[first:], widths, places))
    return panels, places


def _panel(first: int, blocks: list[list[int]], widths: Mapping[int, int], places: dict[int, int]
           ) -> tuple[int, int, list[Run]]:
    """Columns in the order of external memory, so that those that lie one behind the other are one run."""
    runs: list[Run] = []
    position = 0
    for column in sorted(column for columns in blocks for column in columns):
        places[column] = position
        position += widths[column]
        if runs and sum(runs[-1]) == column:
            runs[-1] = runs[-1][0], runs[-1][1] + widths[column]
        else:
            runs.append((column, widths[column]))
    return first, len(blocks), runs
