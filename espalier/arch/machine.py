"""The parameters of one accelerator."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from espalier.errors import FitError

ROWS = (1, 2, 4, 8, 16, 32, 64)
CODE_BITS = 2        #: bits beside each activation word: which of the four words of a 2×2 pool won
COORDINATE_BITS = 9  #: signed bits of a map coordinate
KERNEL_BITS = 4      #: bits of a kernel coordinate
MAX_KERNEL = 1 << KERNEL_BITS
MAX_STRIDE_SHIFT = 3  #: strides are powers of two up to this one
MAX_MAP = 1 << COORDINATE_BITS - 1
MAX_ELEMENTS = 16     #: processing elements
MAX_UPDATE_UNITS = 64  #: of all processing elements
MAX_GROUPS = 256      #: groups of images in a batch, at most
PORT_BITS = (32, 64, 128, 256, 512, 1024)  #: data bits of a port to external memory
EXTERNAL_BITS = 32    #: bits of a byte address in external memory
BURST_BYTES = 4096    #: no burst crosses a multiple of it (AXI4), and every tensor begins at one
MAX_BURST_BEATS = 64  #: of one burst
MULTIPLIERS_BESIDE_LATTICE = 16  #: at most: addresses, loss and one update unit
UPDATE_MULTIPLIERS = 6  #: of each further update unit
ADDRESS_MULTIPLIERS = 5  #: at most, of the addresses of each further processing element
SCALAR_MULTIPLIERS = 4  #: of what computes with scalars
PAIR_BITS = 8  #: of the widest words of which two products fit a multiplier: packed they take 3 * 8 + 1 = 25 bits
SLOT_BITS = (8, 16)  #: that a weight takes in external memory
STATE_BITS = 64  #: that its master and its momentum take there, half of them each
REGION_BITS = 2  #: of where a command's weights lie: on chip all the time, or in one of two panels
SCALAR_BITS = 32         #: of a scalar (numerics/scalar.py)
CHANNEL_SCALARS = 16     #: that a channel of a batch norm has room for
_FLAGS = ("groups", "pairs", "clips", "sums")


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """A lattice of ``rows × lanes`` multipliers with its memories, or several that share the work of a layer.

    Parameters
    ----------
    rows : int
        Output channels computed together, and edge of a weight block: a power of two up to 64.
    lanes : int
        Images computed together, or tiles of fewer.
    word_bits : int
        Bits of an activation, gradient or weight word, 2..16; narrower formats run in wider words.
    acc_bits : int
        Bits of an accumulator, 2·word_bits..62. The compiler proves that they suffice.
    activation_depth : int
        Vectors of ``lanes`` words in the activation memory.
    gradient_depth : int
        Vectors of ``lanes`` words in each of ``rows`` gradient banks.
    weight_depth : int
        Columns of ``rows`` weights: depth of each of ``rows`` weight banks; the master memory has
        ``rows`` times as many words.
    index_depth, table_depth, program_depth : int
        Live-block entries, segment pointers and commands.
    max_classes : int
        Most logits that the loss unit takes.
    groups : bool
        Whether a batch may be several groups of ``lanes`` images (adds a gradient memory).
    trees : int
        Lane trees, each with an update unit behind it: so many weights are updated in a cycle. A power of two up to
        ``rows``. WU spends at least ``rows / trees`` cycles on a column, however few pixels it has.
    port_bits : int
        Data bits of an AXI4 port to external memory, to which activations are spilled and from which images can come;
        0: there is none.
    pairs : bool
        Whether two rows share each hard multiplier of the lattice; for two rows or more and words of at most
        :data:`PAIR_BITS` bits. Changes no result and no cycle.
    clips : bool
        Whether rectifiers may have an upper end (ReLU6).
    sums : bool
        Whether something stored may be added to results: where layers are added up, where a value has several readers,
        whose gradients are, and in BP of batch norms that are trained.
    panel_depth : int
        Columns in each of two panels, beside the ``weight_depth`` that stay on chip, through which weights pass that
        lie in external memory. 0: there are none.
    state_depth : int
        Columns in each of two panels for their masters and momenta; at most as many.
    run_depth : int
        Runs of columns that make those panels.
    norm_depth : int
        Channels of batch norms that are trained: so many have their scalars on chip. 0: there are none, nor what
        computes with scalars.
    grid_y, grid_x : int
        Tiles, down and across, that the maps of an image are cut into; neighbouring lanes hold them, and read from each
        other. The lanes hold so many times fewer images.
    elements : int
        Processing elements, a power of two up to :data:`MAX_ELEMENTS`: each is a lattice with weights, index lists,
        lane trees and update units of its own, a part of the activations and a copy of the gradients. Depths and
        ``trees`` are those of one.
    """

    rows: int
    lanes: int
    word_bits: int = 16
    acc_bits: int = 48
    activation_depth: int
    gradient_depth: int
    weight_depth: int
    index_depth: int
    table_depth: int
    program_depth: int = 64
    max_classes: int = 16
    groups: bool = False
    trees: int = 1
    port_bits: int = 0
    pairs: bool = False
    clips: bool = False
    sums: bool = True
    panel_depth: int = 0
    state_depth: int = 0
    run_depth: int = 0
    norm_depth: int = 0
    grid_y: int = 1
    grid_x: int = 1
    elements: int = 1

    def __post_init__(self) -> None:
        if self.rows not in ROWS:
            raise FitError(f"Rows must be one of {', '.join(map(str, ROWS))}, not {self.rows}")
        if not 1 <= self.lanes <= 1024:
            raise FitError(f"Lanes must be in 1..1024, not {self.lanes}")
        if self.grid_y < 1 or self.grid_x < 1 or self.lanes % self.tiles:
            raise FitError(f"Lanes must be whole grids of tiles, and {self.lanes} are not of {self.grid_y} × "
                           f"{self.grid_x}")
        if not 2 <= self.word_bits <= 16:
            raise FitError(f"Word width must be in 2..16 bits, not {self.word_bits}")
        if not 2 * self.word_bits <= self.acc_bits <= 62:
            raise FitError(f"Accumulator width must be in {2 * self.word_bits}..62 bits, not {self.acc_bits}")
        if self.trees < 1 or self.trees.bit_count() != 1 or self.trees > self.rows:
            raise FitError(f"Lane trees must be a power of two up to the {self.rows} rows, not {self.trees}")
        if self.port_bits and self.port_bits not in PORT_BITS:
            raise FitError(f"A port to external memory has {', '.join(map(str, PORT_BITS))} bits, not {self.port_bits}")
        if not 1 <= self.elements <= MAX_ELEMENTS or self.elements.bit_count() != 1:
            raise FitError(f"Processing elements must be a power of two up to {MAX_ELEMENTS}, not {self.elements}")
        if self.elements * self.trees > MAX_UPDATE_UNITS:
            raise FitError(f"{self.elements} processing elements with {self.trees} lane trees each are more than "
                           f"{MAX_UPDATE_UNITS} update units: take fewer")
        if self.elements > 1 and self.panel_depth:
            raise FitError(f"Weights in external memory are those of one processing element, and there are "
                           f"{self.elements}: keep weights on chip, or take one")
        if self.elements > 1 and self.norm_depth:
            raise FitError(f"{self.elements} processing elements share no scalars of batch norms: take one, or fold "
                           f"the batch norms")
        if self.pairs and self.rows < 2:
            raise FitError(f"Pairs of products are those of two rows, and the machine has {self.rows}")
        if self.pairs and self.word_bits > PAIR_BITS:
            raise FitError(f"Pairs of products need words of at most {PAIR_BITS} bits, not {self.word_bits}")
        if self.panel_depth and not self.port_bits:
            raise FitError("Panels hold weights of external memory, and the machine has no port to it")
        if self.panel_depth and self.groups:
            raise FitError("Weights in external memory are updated after each group of images, and the machine adds up "
                           "over several")
        if self.norm_depth and self.groups:
            raise FitError("A batch norm takes the statistics of a batch at once, and the machine adds up over several "
                           "groups of images")
        if self.state_depth > self.panel_depth:
            raise FitError(f"Masters and momenta come for at most the {self.panel_depth} columns of a panel of "
                           f"weights, not {self.state_depth}")
        panels = ("panel_depth", "state_depth", "run_depth") if self.panel_depth or self.run_depth else ()
        for name in ("activation_depth", "gradient_depth", "weight_depth", "index_depth", "table_depth",
                     "program_depth", "max_classes", *panels, *(["norm_depth"] if self.norm_depth else [])):
            if getattr(self, name) < 2:
                raise FitError(f"{name} of a machine must be at least 2, not {getattr(self, name)}")

    @property
    def multipliers(self) -> int:
        """Multipliers of the lattices: products in a cycle."""
        return self.elements * self.rows * self.lanes

    @property
    def copies(self) -> bool:
        """Whether results of FP can go to the gradient memory, too: what is added, and what batch norms sum up."""
        return self.sums or self.norm_depth > 0

    @property
    def all_rows(self) -> int:
        """Rows of the lattices of all elements."""
        return self.elements * self.rows

    @property
    def grid(self) -> tuple[int, int]:
        """Tiles of a map, down and across."""
        return self.grid_y, self.grid_x

    @property
    def tiles(self) -> int:
        """Lanes that hold the maps of one image."""
        return self.grid_y * self.grid_x

    @property
    def images(self) -> int:
        """Images that the lanes hold."""
        return self.lanes // self.tiles

    @property
    def hard_multipliers(self) -> int:
        """Multipliers of a part that the lattice takes: with ``pairs`` one for two products."""
        return self.multipliers // 2 if self.pairs else self.multipliers

    @property
    def tree_rows(self) -> int:
        """Rows of sums that leave through each lane tree."""
        return self.rows // self.trees

    @property
    def master_depth(self) -> int:
        """Words in the master memory of an element: one for each place in its weight banks."""
        return self.weight_depth * self.rows

    @property
    def place_bits(self) -> int:
        """Bits of the place of a weight within its element."""
        return (self.master_depth - 1).bit_length()

    @property
    def sum_bits(self) -> int:
        """Bits of a weight gradient summed over the lanes (and, with ``groups``, over MAX_GROUPS groups)."""
        return self.acc_bits + (self.lanes - 1).bit_length() + ((MAX_GROUPS - 1).bit_length() if self.groups else 0)

    @property
    def norm_sums(self) -> int:
        """Sums that wait for what is done once for each channel of a batch norm: two kinds, in whole blocks."""
        return 2 * -(-self.norm_depth // self.rows) * self.rows

    @property
    def vector_bits(self) -> int:
        """Bits of a vector in the activation memory."""
        return self.lanes * (self.word_bits + CODE_BITS)

    @property
    def vector_beats(self) -> int:
        """Beats of the port to external memory that a vector takes."""
        return -(-self.vector_bits // self.port_bits)

    @property
    def burst_beats(self) -> int:
        """Beats of a whole burst: what begins at a multiple of so many never crosses BURST_BYTES."""
        return min(MAX_BURST_BEATS, 8 * BURST_BYTES // self.port_bits)

    @property
    def column_depth(self) -> int:
        """Columns that an address within the weight banks, or within a panel, counts."""
        return max(self.weight_depth, self.panel_depth)

    @property
    def trace_depth(self) -> int:
        """Places of weights, with their region above the column."""
        if not self.panel_depth:
            return self.elements << self.place_bits if self.elements > 1 else self.master_depth
        return self.rows << (max(self.weight_depth, self.state_depth) - 1).bit_length() + REGION_BITS

    @property
    def slot_bits(self) -> int:
        """Bits that a weight takes in external memory."""
        return next(bits for bits in SLOT_BITS if self.word_bits <= bits)

    @property
    def beat_columns(self) -> int:
        """Columns of weights that a beat of the port holds: in external memory, blocks begin at multiples of that."""
        return max(1, self.port_bits // (self.rows * self.slot_bits))

    def column_beats(self, columns: int, *, state: bool) -> int:
        """Beats of so many columns, a multiple of ``beat_columns``: of weights, or of their masters and momenta."""
        return columns * self.rows * (STATE_BITS if state else self.slot_bits) // self.port_bits

    def memories(self) -> dict[str, tuple[int, int]]:
        """(words, bits per word) of each memory by name, those of all elements together."""
        vector, elements = self.vector_bits, self.elements
        wide = self.word_bits + 16
        weights, states = (elements * self.rows * (self.weight_depth + 2 * depth)
                           for depth in (self.panel_depth, self.state_depth))
        sums = {"gradient_sums": (elements * self.master_depth, self.sum_bits)} if self.groups else {}
        norms = {"scalars": (self.norm_depth * CHANNEL_SCALARS, SCALAR_BITS),
                 "norm_sums": (self.norm_sums, self.sum_bits)} if self.norm_depth else {}
        return {"activations": (elements * self.activation_depth, vector),
                "gradients": (elements * self.rows * self.gradient_depth, vector),
                "weights": (weights, self.word_bits), "masters": (states, wide), "momenta": (states, wide), **sums,
                **norms}

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Machine:
        """The machine of :meth:`to_json`. Raises FitError for fields that are not a machine's."""
        for name, value in fields.items():
            if type(value) is not (bool if name in _FLAGS else int):
                wanted = "true or false" if name in _FLAGS else "a whole number"
                raise FitError(f"{name} of a machine must be {wanted}, not {value!r:.60}")
        try:
            return cls(**fields)
        except TypeError as error:
            raise FitError(f"The machine description is not one of this version: {error}") from None
