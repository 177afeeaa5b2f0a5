"""How many bits each layer needs: a greedy search for the cheapest widths within an accuracy budget.

The cost is the number of bits that the weights take. First the narrowest width that all layers can share is found by
bisection. Then, from a little above it, the layer whose next bit is cheapest in accuracy per bit of storage gives it
up, again and again, until none can. A layer's price is asked again only when it stands first ("lazy" greedy), so
that a step takes about two evaluations however many layers there are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from espalier.errors import UnsupportedError

Widths = dict[str, int]
HEADROOM = 2  #: bits above the shared width at which the search by layers starts


@dataclass(frozen=True, slots=True)
class Precision:
    """What a search found.

    Parameters
    ----------
    widths : dict of int
        Bits of a weight, by layer.
    accuracy : float
        Of the network with those widths.
    bits : int
        That all weights take.
    evaluations : int
        How many times accuracy was asked for.
    """

    widths: Widths
    accuracy: float
    bits: int
    evaluations: int


def cheapest_widths(sizes: Mapping[str, int], accuracy: Callable[[Mapping[str, int]], float], floor: float, *,
                    narrowest: int = 2, widest: int | Mapping[str, int] = 16, limit: int | None = None) -> Precision:
    """The widths by layer with the fewest bits found whose ``accuracy`` is at least ``floor``.

    The outcome depends on the arguments only: ties go to the layer that comes first. It is never dearer than the
    narrowest width that all layers can share, if accuracy falls steadily with it.

    Parameters
    ----------
    sizes : mapping of int
        The number of (live) weights by layer, in the order of the layers.
    accuracy : callable
        From widths by layer. Called once for each choice of widths.
    floor : float
        The least accuracy that will do.
    narrowest : int
        Bits of a weight, 2..16.
    widest : int or mapping of int
        The most bits of a weight, or those of each layer's; one that has fewer than ``narrowest`` keeps them.
    limit : int
        The most evaluations; the best found until then is the outcome. By default there is none.

    Raises
    ------
    UnsupportedError
        The network does not reach the floor with all layers at their widest, the range of widths is none, or the
        limit is below 1.
    """
    most = dict.fromkeys(sizes, widest) if isinstance(widest, int) else {name: widest[name] for name in sizes}
    top = max(most.values())
    if not (2 <= narrowest <= top <= 16 and min(most.values()) >= 2):
        raise UnsupportedError(f"Widths are in 2..16 bits, the narrowest first, not {narrowest}..{top}")
    if limit is not None and limit < 1:
        raise UnsupportedError(f"A search for widths takes at least 1 evaluation, not {limit}")
    search = _Search(sizes, tuple(most.values()), accuracy, floor, limit)
    full = search.shared(top)
    if search.measure(full) < floor:
        raise UnsupportedError(f"The network reaches an accuracy of {search.measure(full):.2%} with {top} bits in "
                               f"every layer, and at least {floor:.2%} was asked for: allow a larger loss")
    common = _shared_width(search, narrowest, top)
    _narrow(search, search.shared(min(top, common + HEADROOM)), narrowest)
    good = (widths for widths, reached in search.known.items() if reached >= floor)
    best = min(good, key=lambda widths: (search.bits(widths), -search.known[widths]))
    return Precision(dict(zip(sizes, best, strict=True)), search.known[best], search.bits(best), len(search.known))


@dataclass(slots=True)
class _Search:
    """The accuracies that are known, by widths in the order of the layers, in the order in which they were asked."""

    sizes: Mapping[str, int]
    widest: tuple[int, ...]
    accuracy: Callable[[Mapping[str, int]], float]
    floor: float
    limit: int | None
    known: dict[tuple[int, ...], float] = field(default_factory=dict)

    def shared(self, width: int) -> tuple[int, ...]:
        """That width in every layer, or the layer's widest."""
        return tuple(min(width, most) for most in self.widest)

    def bits(self, widths: tuple[int, ...]) -> int:
        return sum(width * size for width, size in zip(widths, self.sizes.values(), strict=True))

    def measure(self, widths: tuple[int, ...]) -> float:
        """The accuracy; below every floor where the evaluations are used up."""
        if widths not in self.known:
            if self.limit is not None and len(self.known) >= self.limit:
                return float("-inf")
            self.known[widths] = self.accuracy(dict(zip(self.sizes, widths, strict=True)))
        return self.known[widths]


def _shared_width(search: _Search, narrowest: int, widest: int) -> int:
    low, high = narrowest, widest
    while low < high:
        middle = (low + high) // 2
        if search.measure(search.shared(middle)) >= search.floor:
            high = middle
        else:
            low = middle + 1
    return high


def _narrow(search: _Search, widths: tuple[int, ...], narrowest: int) -> None:
    """Take bits away one at a time, the cheapest first, until no layer can give one; ``search`` learns of it."""
    sizes = tuple(search.sizes.values())
    prices: dict[int, tuple[float, tuple[int, ...]]] = {}  # by layer: the price, and the widths at which it was asked
    if search.measure(widths) < search.floor:
        return
    open_layers = [index for index, width in enumerate(widths) if width > narrowest]
    while open_layers:
        layer = min(open_layers, key=lambda index: prices.get(index, (float("-inf"), widths))[0])
        less = (*widths[:layer], widths[layer] - 1, *widths[layer + 1:])
        if search.measure(less) < search.floor:
            open_layers.remove(layer)
        elif prices.get(layer, (0.0, ()))[1] != widths:
            prices[layer] = (search.measure(widths) - search.measure(less)) / max(1, sizes[layer]), widths
        else:
            widths = less
            if widths[layer] == narrowest:
                open_layers.remove(layer)
