"""How dense each layer should be, from its shape alone: the Erdős–Rényi-kernel rule.

Mocanu et al., "Scalable training of artificial neural networks with adaptive sparse connectivity" (Nature
Communications 2018), for fully connected layers; Evci et al., "Rigging the Lottery" (ICML 2020), for kernels.
``Scope.ERDOS_RENYI`` prunes so. Ours: methods see a fully connected layer as the engine does, as the convolution with a
kernel over all of the map that it reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

from espalier.compress.ranking import check_density


def erdos_renyi_densities(shapes: Mapping[str, tuple[int, ...]], density: float) -> dict[str, float]:
    """The density of each layer, in proportion to ``sum(shape) / prod(shape)``, at ``density`` over all weights.

    Small layers stay denser than large ones. A layer that would have to be denser than 1 is dense, and the others
    share what is left, so that ``sum(density · size)`` is ``density · total`` exactly (but for rounding).

    Parameters
    ----------
    shapes : mapping of tuple
        (O, I, KH, KW) of convolutions, (O, I) of fully connected layers, by name.
    density : float
        Fraction of all weights that live, above 0, at most 1.

    Raises UnsupportedError where the density is none.
    """
    check_density(density)
    sizes = {name: prod(shape) for name, shape in shapes.items()}
    left, sparse = density * sum(sizes.values()), dict(shapes)
    found: dict[str, float] = {}
    while sparse:
        scale = left / sum(sum(shape) for shape in sparse.values())
        dense = [name for name, shape in sparse.items() if scale * sum(shape) >= sizes[name]]
        if not dense:
            found.update({name: scale * sum(shape) / sizes[name] for name, shape in sparse.items()})
            break
        for name in dense:
            found[name] = 1.0
            left -= sizes[name]
            del sparse[name]
    return {name: found[name] for name in shapes}
