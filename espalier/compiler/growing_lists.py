"""The index lists of a Program as they grow, layer by layer and phase by phase."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import product

from espalier.compiler.lists import Block, LayerBlocks
from espalier.compiler.place import PhaseAxis
from espalier.ir.types import MapShape
from espalier.program.program import Entry, IndexLists

Place = tuple[int, int, int]  #: of blocks in a list: the block that the list is ordered by, and the tap


class GrowingLists:
    """Index lists and segment pointers of each processing element as they grow.

    All have pointers for the same blocks and taps, so that a table position is that of each.
    """

    def __init__(self, rows: int, elements: int) -> None:
        self.rows, self.elements = rows, elements
        self.entries: list[list[Entry]] = [[] for _ in range(elements)]
        self.tables: list[list[int]] = [[] for _ in range(elements)]

    def whole(self) -> tuple[IndexLists, ...]:
        """The lists as they are."""
        return tuple(IndexLists(entries=tuple(entries), table=tuple(table))
                     for entries, table in zip(self.entries, self.tables, strict=True))

    def forward(self, item: LayerBlocks, base: int, source: MapShape, columns: Mapping[int, int], *,
                everywhere: bool = False, own: bool = False) -> int:
        """Append a layer's FP list, ordered by output block, then tap; return its table position.

        ``columns`` has where columns lie on chip, if that is not where they are numbered. ``everywhere``: all elements
        have all of the source. ``own``: each has the list of the output blocks that are its own.
        """
        layer, plane = item.layer, source[1] * source[2]
        share, apart = self.elements if own else 1, 1 if everywhere else self.elements
        biases = [{out // share: Entry(columns.get(column, column), base, 0, 0, 1, one=1)
                   for out, column in enumerate(item.bias_columns) if out % self.elements == element}
                  for element in range(self.elements)]
        taps = [_grouped((b for b in item.blocks if b.element == element), lambda b: (b.out // share, b.ky, b.kx))
                for element in range(self.elements)]
        return self._append(-(-item.out_blocks // share), layer.weight_shape[2:], biases, [{
            place: [Entry(columns.get(b.column, b.column), base + b.source // apart * self.rows * plane, b.ky, b.kx,
                          b.columns) for b in found]
            for place, found in by_place.items()} for by_place in taps])

    def backward(self, item: LayerBlocks, base: int, gradient: MapShape, axes: tuple[PhaseAxis, PhaseAxis],
                 columns: Mapping[int, int]) -> int:
        """Append a layer's BP list of one phase, by source block, then mirrored tap; return its table position.

        Each element has the list of the source blocks that are its own.
        """
        layer, plane = item.layer, gradient[1] * gradient[2]
        channels = layer.weight_shape[0]
        taps: list[dict[Place, list[Entry]]] = [{} for _ in range(self.elements)]
        for b in item.backward():
            places = (axis.places(tap, stride)
                      for axis, tap, stride in zip(axes, (b.ky, b.kx), layer.stride, strict=True))
            for ky, kx in product(*places):
                taps[b.element].setdefault((b.source // self.elements, ky, kx), []).append(
                    Entry(columns.get(b.column, b.column), base + b.out * plane, ky, kx,
                          min(self.rows, channels - b.out * self.rows)))
        return self._append(-(-item.source_blocks // self.elements), (axes[0].taps, axes[1].taps),
                            [{}] * self.elements, taps)

    def part(self, table: int, slots: int, first: int, count: int) -> int:
        """Append pointers to so many entries only of the list of a block; return their table position."""
        only, = self.tables  # who have weights in external memory are alone
        pointers = only[table: table + slots + 1]
        low = pointers[0] + first
        only += [min(max(pointer, low), low + count) for pointer in pointers]
        return len(only) - len(pointers)

    def _append(self, blocks: int, kernel: tuple[int, int], biases: Sequence[Mapping[int, Entry]],
                taps: Sequence[Mapping[Place, list[Entry]]]) -> int:
        """A list for each block: its bias where there is one, then its entries tap by tap; for each element."""
        start = len(self.tables[0])
        for entries, table, bias, places in zip(self.entries, self.tables, biases, taps, strict=True):
            for block in range(blocks):
                table.append(len(entries))
                if block in bias:
                    entries.append(bias[block])
                for ky in range(kernel[0]):
                    for kx in range(kernel[1]):
                        table.append(len(entries))
                        entries += places.get((block, ky, kx), ())
            table.append(len(entries))
        return start


def _grouped(blocks: Iterable[Block], key: Callable[[Block], Place]) -> dict[Place, list[Block]]:
    groups: dict[Place, list[Block]] = {}
    for block in blocks:
        groups.setdefault(key(block), []).append(block)
    return groups
