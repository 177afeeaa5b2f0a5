"""What a report says, as frozen data. Every section is optional; one without data says so.

Counts are whole numbers, ratios are 0..1, accuracies are 0..1. Each section that holds figures
names their provenance, so that no number reaches the page without it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from espalier.errors import DataError
from espalier.records import Figure, Provenance
from espalier.report.bounds import require_within
from espalier.report.cycles import Cycles
from espalier.report.serial import decode, encode

FORMAT = 1  #: of the JSON; a report of another format is refused, not guessed at


class Section(Enum):
    """The sections of the page, in order; the value is the heading."""

    NETWORK = "Network"
    TRAINING = "Training"
    VERIFICATION = "Verification"
    CYCLES = "Cycles and MAC utilisation"
    MEMORIES = "Memory map"
    AREA = "Area and clock"
    ESTIMATES = "Estimates against results"
    FIGURES = "Further figures"
    MACHINE = "Machine"
    FORMATS = "Number formats"
    SATURATION = "Saturation"
    TOOLS = "Tools"


@dataclass(frozen=True, slots=True)
class Fact:
    """A named setting, such as ``rows: 8``. Not a result, so without provenance."""

    name: str
    value: str


@dataclass(frozen=True, slots=True)
class Skipped:
    """Why a section has no data, where there is more to say than that its command was not run."""

    section: Section
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """A layer: ``shape`` is that of its result for one image; ``live`` of its ``weights`` are not pruned."""

    name: str
    op: str
    shape: tuple[int, ...]
    weights: int
    live: int

    def __post_init__(self) -> None:
        require_within("Live weights", self.name, self.live, self.weights)

    @property
    def density(self) -> float:
        return self.live / self.weights if self.weights else 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """The layers of the network and which of their weights live."""

    name: str
    input_shape: tuple[int, ...]
    layers: tuple[Layer, ...]
    provenance: Provenance = Provenance.MEASURED

    @property
    def total(self) -> Layer:
        return Layer(name="all layers", op="", shape=(), weights=sum(layer.weights for layer in self.layers),
                     live=sum(layer.live for layer in self.layers))


@dataclass(frozen=True, slots=True, kw_only=True)
class Epoch:
    """One pass over the training images. What was not recorded is None."""

    epoch: int
    loss: float | None = None
    train_accuracy: float | None = None
    test_accuracy: float | None = None
    live_weights: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """How the network was trained and what came of it. ``baseline_accuracy`` is float32, dense, same recipe."""

    dataset: str
    recipe: tuple[Fact, ...]
    epochs: tuple[Epoch, ...]
    baseline_accuracy: float | None = None
    provenance: Provenance = Provenance.MEASURED

    @property
    def test_accuracy(self) -> float | None:
        """Of the last epoch that recorded one."""
        known = [epoch.test_accuracy for epoch in self.epochs if epoch.test_accuracy is not None]
        return known[-1] if known else None


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorCheck:
    """One tensor on two engines: how many of its words were compared and how many differ."""

    name: str
    words: int
    differing: int

    def __post_init__(self) -> None:
        require_within("Differing words", self.name, self.differing, self.words)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """Two engines compared bit for bit over some training steps. ``mismatch`` locates the first difference."""

    engines: tuple[str, str]
    steps: int
    tensors: tuple[TensorCheck, ...]
    mismatch: str = ""
    provenance: Provenance = Provenance.SIMULATED

    @property
    def words(self) -> int:
        return sum(tensor.words for tensor in self.tensors)

    @property
    def differing(self) -> int:
        return sum(tensor.differing for tensor in self.tensors)

    @property
    def passed(self) -> bool:
        """Whether something was compared and nothing differed."""
        return self.words > 0 and self.steps > 0 and self.differing == 0 and not self.mismatch

    def to_json(self) -> dict[str, object]:
        fields: dict[str, object] = encode(self)
        return fields


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """One on-chip memory of ``words`` words of ``bits`` bits, of which ``used`` words hold something."""

    name: str
    holds: str
    words: int
    bits: int
    used: int
    block_rams: int | None = None

    def __post_init__(self) -> None:
        require_within("Used words", self.name, self.used, self.words)

    @property
    def share(self) -> float:
        return self.used / self.words if self.words else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Memories:
    """The memories of the machine and what the compiler put in them."""

    memories: tuple[Memory, ...]
    provenance: Provenance = Provenance.ESTIMATED

    @property
    def total_bits(self) -> int:
        return sum(memory.words * memory.bits for memory in self.memories)

    @property
    def used_bits(self) -> int:
        return sum(memory.used * memory.bits for memory in self.memories)


@dataclass(frozen=True, slots=True, kw_only=True)
class Resource:
    """Elements of one kind; ``available`` is None where the device sets no limit or it is not known."""

    name: str
    used: int
    available: int | None

    @property
    def share(self) -> float | None:
        return self.used / self.available if self.available else None


@dataclass(frozen=True, slots=True, kw_only=True)
class ClockResult:
    """One clock after place and route, in MHz."""

    name: str
    achieved_mhz: float
    wanted_mhz: float

    @property
    def met(self) -> bool:
        return self.achieved_mhz >= self.wanted_mhz


@dataclass(frozen=True, slots=True, kw_only=True)
class Area:
    """What the design takes on a device. Without place and route there are no clocks."""

    device: str
    source: str
    resources: tuple[Resource, ...]
    clocks: tuple[ClockResult, ...] = ()
    limit: str = ""
    cells_per_mac: tuple[Figure, ...] = ()
    provenance: Provenance = Provenance.SYNTHESISED


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A figure foretold by a model, and what it turned out to be."""

    name: str
    unit: str
    estimated: float
    actual: float
    provenance: Provenance

    @property
    def error(self) -> float | None:
        """Relative error of the estimate; None where the actual figure is zero."""
        return (self.estimated - self.actual) / self.actual if self.actual else None


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorFormat:
    """The number format of a tensor, as ``fixed<W,I>``; ``role`` is weight, activation, gradient and so on."""

    tensor: str
    role: str
    format: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SaturationCount:
    """Of ``words`` words written to a tensor, how many were clipped to the ends of its format."""

    tensor: str
    saturated: int
    words: int
    provenance: Provenance = Provenance.MEASURED

    def __post_init__(self) -> None:
        require_within("Saturated words", self.tensor, self.saturated, self.words)

    @property
    def share(self) -> float:
        return self.saturated / self.words if self.words else 0.0


@dataclass(frozen=True, slots=True)
class ToolVersion:
    """A program that had a part in the results."""

    name: str
    version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Everything the page says. Equal reports give byte-identical JSON and HTML."""

    title: str
    network: Network | None = None
    training: Training | None = None
    verifications: tuple[Verification, ...] = ()
    cycles: Cycles | None = None
    memories: Memories | None = None
    area: Area | None = None
    estimates: tuple[Estimate, ...] = ()
    figures: tuple[Figure, ...] = ()
    machine: tuple[Fact, ...] = ()
    formats: tuple[TensorFormat, ...] = ()
    saturation: tuple[SaturationCount, ...] = ()
    tools: tuple[ToolVersion, ...] = ()
    skipped: tuple[Skipped, ...] = ()

    def to_json(self) -> dict[str, object]:
        """Plain data for ``json.dumps``: the source that the page is rendered from."""
        return {"report_format": FORMAT, **encode(self)}

    @classmethod
    def from_json(cls, fields: object) -> Report:
        """The report that :meth:`to_json` wrote.

        Raises
        ------
        DataError
            Not such data; the message names the field.
        """
        if not isinstance(fields, dict) or fields.get("report_format") != FORMAT:
            raise DataError(f"A report must be a JSON object with report_format {FORMAT}; write it again with this "
                            "version of espalier")
        return decode(cls, {name: value for name, value in fields.items() if name != "report_format"}, "report")
