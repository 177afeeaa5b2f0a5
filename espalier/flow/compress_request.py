"""What compress is asked for."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from espalier.compress.ranking import check_density, check_rows
from espalier.errors import DataError, UnsupportedError
from espalier.train.calibrate import Widths


class Method(Enum):
    """What decides which weights live."""

    RULES = "rules"              #: whichever of the next three does best
    FLAT = "flat"
    TRIANGULAR = "triangular"
    RELATIVE = "relative"
    MAGNITUDE = "magnitude"      #: as in training: each layer to the same density
    ERDOS_RENYI = "erdos_renyi"  #: by magnitude, each layer to the density that its shape gives it
    LAMP = "lamp"
    RECONSTRUCT = "reconstruct"  #: the weights that live are rebuilt, too

    @property
    def tried(self) -> tuple[Method, ...]:
        """The methods that it stands for."""
        return (Method.FLAT, Method.TRIANGULAR, Method.RELATIVE) if self is Method.RULES else (self,)


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressRequest:
    """How far to compress, and how: fewer weights, then narrower ones.

    Parameters
    ----------
    method : str
        The value of a :class:`Method`.
    density : float or None
        Fraction of the weights that stay.
    loss : float or None
        Or: the accuracy, in points, that the sparsest network may lose on the images by which it is chosen. With
        neither, all weights stay.
    block : int
        Edge of the blocks in which weights die.
    images : int or None
        Training images to look at: those on which weights are rebuilt and those by which is chosen, half of them
        each where both are needed. None is IMAGES, or all if there are fewer.
    data : str or None
        None is the data that the network was trained on.
    data_root : Path or None
    seed : int
        Of the draw of the images.
    top : int
        An image is recognised if its class is among so many of the largest logits.
    bits : int or None
        Width of words, if the source is real-valued; None is 16, or in a float checkpoint floating point.
    bit_loss : float or None
        Each layer's weights get the fewest bits with which the network loses at most so many accuracy points more.
    evaluations : int or None
        Choices of widths that are tried at most; None is as many as it takes.
    bias_bits : int or None
        Width of biases; None is 16 where weights were published, else as the layer's weights.
    equalise : bool or None
        Whether a real-valued network's channels are equalised; None tries both where words are narrow.
    test_images : int or None
        Of the test set, the first ones; None is all.
    """

    method: str = Method.RECONSTRUCT.value
    density: float | None = None
    loss: float | None = None
    block: int = 1
    images: int | None = None
    data: str | None = None
    data_root: Path | None = None
    seed: int = 0
    top: int = 1
    bits: int | None = None
    bit_loss: float | None = None
    evaluations: int | None = None
    bias_bits: int | None = None
    equalise: bool | None = None
    test_images: int | None = None

    def __post_init__(self) -> None:
        if self.method not in [method.value for method in Method]:
            raise UnsupportedError(f"A method of compression without training is one of "
                                   f"{', '.join(method.value for method in Method)}, not {self.method!r}")
        self._check_aim()
        if self.density is not None:
            check_density(self.density)
        for name, loss in (("", self.loss), (" by narrower weights", self.bit_loss)):
            if loss is not None and not 0 <= loss <= 100:
                raise DataError(f"The loss allowed{name} is in 0..100 accuracy points, not {loss:g}")
        if self.top < 1:
            raise DataError(f"An image is recognised by at least 1 of the largest logits, not {self.top}")
        for bits in (self.bits, self.bias_bits):
            if bits is not None:
                Widths(bits, bits, bits)
        for name, count in (("Choices of widths to try", self.evaluations), ("Test images", self.test_images)):
            if count is not None and count < 1:
                raise DataError(f"{name} are at least 1, not {count}")
        check_rows(self.block)

    def _check_aim(self) -> None:
        """Something is asked for, and nothing twice or in vain."""
        if self.density is not None and self.loss is not None:
            raise DataError("How far to compress is told by a density or by the accuracy points that may be lost: "
                            "leave one of --density and --loss out")
        if not self.prunes and self.bit_loss is None and self.bits is None:
            raise DataError("How far to compress is told by a density or by the accuracy points that may be lost: give "
                            "--density, such as 0.1, or --loss, such as 1, or for narrower weights --bit-loss, such "
                            "as 1")
        if self.evaluations is not None and self.bit_loss is None:
            raise DataError("A limit to the widths that are tried limits a search for widths: give --bit-loss, such as "
                            "1, or leave --evaluations out")
        if self.bias_bits is not None and self.bit_loss is None and self.bits is None:
            raise DataError("Biases have another width where weights get one: give --bits or --bit-loss, or leave "
                            "--bias-bits out")

    @property
    def kind(self) -> Method:
        """The method."""
        return Method(self.method)

    @property
    def prunes(self) -> bool:
        """Whether weights die."""
        return self.density is not None or self.loss is not None

    def command(self, source: Path, output: Path) -> str:
        """The command line that asks for this."""
        options = {"density": self.density, "loss": self.loss, "block": self.block, "images": self.images,
                   "data": self.data, "data-root": self.data_root, "seed": self.seed,
                   "top": None if self.top == 1 else self.top, "bits": self.bits, "bit-loss": self.bit_loss,
                   "evaluations": self.evaluations, "bias-bits": self.bias_bits, "test-images": self.test_images}
        given = [word for name, value in options.items() if value is not None for word in (f"--{name}", str(value))]
        switch = [] if self.equalise is None else ["--equalise" if self.equalise else "--no-equalise"]
        return shlex.join(["espalier", "compress", str(source), "--output-dir", str(output), "--method", self.method,
                           *given, *switch])
