"""Fixed-point formats: what the words of a tensor mean."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from typing import assert_never

import numpy as np
from numpy.typing import ArrayLike, NDArray

from espalier.errors import FormatError

MAX_WIDTH = 62  #: widest word: an int64 holds it, and the values on either side of its range


class Quant(Enum):
    """How digits below the last place are dropped; names and meaning as in AMD's ``ap_fixed``."""

    AP_TRN = "AP_TRN"                  #: towards minus infinity
    AP_TRN_ZERO = "AP_TRN_ZERO"        #: towards zero
    AP_RND = "AP_RND"                  #: to nearest, halves up
    AP_RND_ZERO = "AP_RND_ZERO"        #: to nearest, halves towards zero
    AP_RND_MIN_INF = "AP_RND_MIN_INF"  #: to nearest, halves down
    AP_RND_INF = "AP_RND_INF"          #: to nearest, halves away from zero
    AP_RND_CONV = "AP_RND_CONV"        #: to nearest, halves to even


class Overflow(Enum):
    """What happens to a value out of range; names and meaning as in AMD's ``ap_fixed``."""

    AP_WRAP = "AP_WRAP"          #: two's-complement wrap
    AP_SAT = "AP_SAT"            #: the nearest end of the range
    AP_SAT_ZERO = "AP_SAT_ZERO"  #: zero
    AP_SAT_SYM = "AP_SAT_SYM"    #: the nearest end of the range symmetric about zero


def round_to_integer(value: NDArray[np.float64], quant: Quant) -> NDArray[np.float64]:
    """Round finite float ``value`` to whole numbers in the given mode, exactly."""
    whole = np.trunc(value)
    match quant:
        case Quant.AP_TRN:
            return np.floor(value)
        case Quant.AP_TRN_ZERO:
            return whole
        case Quant.AP_RND_CONV:
            return np.rint(value)
        case Quant.AP_RND:
            half_away = value > 0
        case Quant.AP_RND_MIN_INF:
            half_away = value < 0
        case Quant.AP_RND_ZERO:
            half_away = np.zeros_like(value, dtype=bool)
        case Quant.AP_RND_INF:
            half_away = np.ones_like(value, dtype=bool)
        case _:
            assert_never(quant)
    rest = np.abs(value - whole)  # exact, unlike value + 0.5 just below a half
    return np.where((rest > 0.5) | ((rest == 0.5) & half_away), whole + np.sign(value), whole)


@dataclass(frozen=True, slots=True)
class Fixed:
    """A two's-complement fixed-point format, ``fixed<W,I,Q,O>`` in the field's notation.

    ``value = word * 2**-frac`` with ``frac = width - int_bits``; ``int_bits`` counts the sign and
    may be negative or exceed ``width``.

    Parameters
    ----------
    width : int
        Bits of a word, 1..62. Operands of the engine are 2..16 bits.
    int_bits : int
        Bits left of the binary point, the sign included.
    quant, overflow : Quant, Overflow
        What a conversion into this format does; part of the type. The engine does ``AP_RND`` and
        ``AP_SAT``, which are the defaults here (``ap_fixed`` itself defaults to truncate and wrap,
        and so does :meth:`parse` when a mode is left out).
    signed : bool
        False for ``ufixed``.
    """

    width: int
    int_bits: int
    quant: Quant = Quant.AP_RND
    overflow: Overflow = Overflow.AP_SAT
    signed: bool = True

    def __post_init__(self) -> None:
        if not 1 <= self.width <= MAX_WIDTH:
            raise FormatError(f"Width of a fixed-point format must be in 1..{MAX_WIDTH}, not {self.width}")

    @classmethod
    def of(cls, width: int, frac: int) -> Fixed:
        """The engine's format of ``width`` bits with ``frac`` fraction bits (round half up, saturate)."""
        return cls(width, width - frac)

    @classmethod
    def parse(cls, text: str) -> Fixed:
        """Read ``fixed<W,I[,Q[,O]]>`` or ``ufixed<...>`` (also with the prefix ``ap_``).

        Raises :class:`FormatError` when the text is not such a format.
        """
        match = re.fullmatch(
            r"\s*(?:ap_)?(u?)fixed\s*<\s*(-?[0-9]{1,9})\s*,\s*(-?[0-9]{1,9})\s*(?:,\s*(\w+)\s*(?:,\s*(\w+)\s*)?)?>\s*",
            text)
        if not match:
            raise FormatError(f"A fixed-point format is written fixed<W,I[,Q[,O]]>, not {text!r}")
        unsigned, width, int_bits, quant, overflow = match.groups()
        try:
            return cls(int(width), int(int_bits), Quant(quant or "AP_TRN"), Overflow(overflow or "AP_WRAP"),
                       signed=not unsigned)
        except ValueError as error:
            if isinstance(error, FormatError):
                raise
            raise FormatError(f"Unknown mode in the fixed-point format {text!r}: quantisation is one of "
                              f"{', '.join(q.value for q in Quant)}, overflow one of "
                              f"{', '.join(o.value for o in Overflow)}") from None

    def __str__(self) -> str:
        name = "fixed" if self.signed else "ufixed"
        modes = f",{self.quant.value},{self.overflow.value}"
        if (self.quant, self.overflow) == (Quant.AP_TRN, Overflow.AP_WRAP):
            modes = ""
        return f"{name}<{self.width},{self.int_bits}{modes}>"

    @property
    def frac(self) -> int:
        """Bits right of the binary point: ``value = word * 2**-frac``."""
        return self.width - self.int_bits

    @property
    def low(self) -> int:
        """The smallest word."""
        return -(1 << self.width - 1) if self.signed else 0

    @property
    def high(self) -> int:
        """The largest word."""
        return (1 << self.width - 1) - 1 if self.signed else (1 << self.width) - 1

    @property
    def resolution(self) -> float:
        """The value of one unit in the last place."""
        return 2.0 ** -self.frac

    def limit(self, words: NDArray[np.int64]) -> NDArray[np.int64]:
        """Bring whole numbers into the range by this format's overflow mode."""
        match self.overflow:
            case Overflow.AP_SAT:
                return np.clip(words, self.low, self.high)
            case Overflow.AP_SAT_SYM:
                return np.clip(words, -self.high if self.signed else 0, self.high)
            case Overflow.AP_SAT_ZERO:
                return np.where((words < self.low) | (words > self.high), 0, words)
            case Overflow.AP_WRAP:
                return ((words - self.low) & ((1 << self.width) - 1)) + self.low
            case _:
                assert_never(self.overflow)

    def quantise(self, values: ArrayLike) -> NDArray[np.int64]:
        """The words nearest to real ``values`` under this format's modes.

        NaN raises FormatError, and so does infinity in a format that wraps.
        """
        array = np.asarray(values, dtype=np.float64)
        if np.isnan(array).any():
            raise FormatError(f"NaN cannot be represented in {self}: {int(np.isnan(array).sum())} of "
                              f"{array.size} values are NaN")
        with np.errstate(over="ignore"):
            scaled = np.ldexp(array, self.frac)
        if self.overflow is not Overflow.AP_WRAP:
            return self.limit(round_to_integer(np.clip(scaled, -2.0 ** 62, 2.0 ** 62), self.quant).astype(np.int64))
        if np.isinf(scaled).any():
            raise FormatError(f"Infinity has no place in {self}, which wraps: {int(np.isinf(scaled).sum())} of "
                              f"{array.size} values are too large")
        return self.limit(np.fmod(round_to_integer(scaled, self.quant), 2.0 ** 63).astype(np.int64))

    def values(self, words: ArrayLike) -> NDArray[np.float64]:
        """The real values of ``words``."""
        return np.ldexp(np.asarray(words, dtype=np.float64), -self.frac)
