"""OpenCL kernels of a network: write them, run them on images, time them."""

from __future__ import annotations

import os
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from espalier.data import Dataset, load, normalise
from espalier.errors import DataError, MismatchError
from espalier.flow.directory import require_replaceable, whole_directory
from espalier.flow.network import require_suiting
from espalier.flow.source import (
    data_for,
    data_in_size,
    data_of,
    is_checkpoint,
    is_float,
    load_checkpoint,
    real_checkpoint,
    real_network,
)
from espalier.flow.steps import Steps
from espalier.ir.fold import as_convolutions
from espalier.ir.graph import Graph
from espalier.ir.interpret import interpret
from espalier.ir.types import Fixed
from espalier.native import cache_folder
from espalier.opencl.bundle import KERNELS, MANIFEST, WEIGHTS, Bundle
from espalier.opencl.estimate import estimates, find_part, total
from espalier.opencl.optimisations import NAMES, Optimisations, Style
from espalier.records import Figure, Provenance, write_json

if TYPE_CHECKING:
    from espalier.opencl.runtime import Session

TIMES, TUNING = "times.json", "tuning.json"
JOURNAL = "opencl-tuning.jsonl"
THREADS, DRIVER = "POCL_MAX_PTHREAD_COUNT", "POCL_DEVICES"  #: of PoCL's environment
FLOAT_TOLERANCE = 1e-4  #: of float32 against float64, relative to an image's largest result; networks of 34 layers
VECTORS = (2, 4, 8, 16)
DEFAULT_PART = "stratix10-2800"
SLOWEST, FASTEST = 1e-6, 1e6  #: clock (MHz) and bandwidth (GB/s)


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelsRequest:
    """How kernels are made.

    Parameters
    ----------
    without : tuple of str
        Optimisations to leave out, by their names in :class:`espalier.opencl.optimisations.Optimisations`; ``"all"``
        leaves the base.
    vector : int
        Elements of a vector.
    style : str
        ``"folded"`` or ``"pipelined"``, of :class:`espalier.opencl.optimisations.Style`.
    data : str or None
        The data set that the network was trained on, where the source does not say.
    data_root : Path or None
    """

    without: tuple[str, ...] = ()
    vector: int = 16
    style: str = Style.FOLDED.value
    data: str | None = None
    data_root: Path | None = None

    def optimisations(self) -> Optimisations:
        """Raises DataError for names and widths that there are not."""
        if unknown := sorted(set(self.without) - {"all", *NAMES}):
            raise DataError(f"There is no optimisation {unknown[0]!r}: choose of {', '.join(NAMES)}, or all")
        if self.vector not in VECTORS:
            raise DataError(f"A vector has {', '.join(map(str, VECTORS[:-1]))} or {VECTORS[-1]} elements, not "
                            f"{self.vector}")
        styles = [style.value for style in Style]
        if self.style not in styles:
            raise DataError(f"There is no style {self.style!r}: choose of {', '.join(styles)}")
        left = frozenset() if "all" in self.without else frozenset(NAMES) - set(self.without)
        return Optimisations.named(left, self.vector, Style(self.style))


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRequest:
    """What kernels run on.

    Parameters
    ----------
    data : str or None
        A data set, of which the test images are taken; default: that of the training.
    data_root : Path or None
    images : int or None
        At most so many.
    device : str
        A part of a device's name; the first device otherwise.
    threads : int or None
        Of a processor, where PoCL runs the kernels.
    against : Path or None
        The source that the kernels were made from: compare every result with it.
    """

    data: str | None = None
    data_root: Path | None = None
    images: int | None = None
    device: str = ""
    threads: int | None = None
    against: Path | None = None


def network_of(source: Path, data: str | None, root: Path | None) -> tuple[Graph, dict[str, NDArray], str]:
    """Inference graph, parameters and data of a checkpoint, an ``.onnx`` or ``.pt2`` file, or ``pretrained:NAME``.

    Without batch norms: folded in float, and in words the convolutions that they are.
    """
    if is_checkpoint(source):
        checkpoint = load_checkpoint(source)
        known = data or checkpoint.config.data
        if not is_float(checkpoint):
            return *as_convolutions(checkpoint.graph, checkpoint.weights), known
        found = real_checkpoint(checkpoint)
    else:
        known = data or data_of(source, root)
        found = real_network(source, data_for(source, known, root), known, root)
    return found.graph, dict(found.parameters), known


def _asked_for(source: Path, request: KernelsRequest) -> tuple[Graph, dict[str, NDArray], str]:
    """What :func:`network_of` gives. Raises DataError where a data set is named that the network does not suit."""
    graph, parameters, data = network_of(source, request.data, request.data_root)
    if request.data is not None:
        image, result = graph.inputs[0], graph.outputs[0]
        require_suiting(graph.name, image.shape, result.shape,
                        data_in_size(request.data, request.data_root, image.shape).test)
    return graph, parameters, data


def write_kernels(source: Path, output: Path, request: KernelsRequest | None = None, *, dry_run: bool = False,
                  steps: Steps | None = None) -> Bundle:
    """Write the kernels of a network into ``output``, where kernels that were there before are replaced."""
    request, steps = request or KernelsRequest(), steps or Steps()
    options = request.optimisations()
    require_replaceable(output, MANIFEST)
    with steps.step("import network"):
        graph, parameters, data = _asked_for(source, request)
    with steps.step("write kernels"):
        from espalier.opencl.compilation import compile_kernels  # TVM comes with it: seconds

        bundle = compile_kernels(graph, parameters, options, data)
    if dry_run:
        return bundle
    with whole_directory(output, MANIFEST) as folder:
        _write(bundle, folder)
    steps.wrote(*(output / name for name in (KERNELS, WEIGHTS, MANIFEST)))
    return bundle


def _write(bundle: Bundle, folder: Path) -> None:
    for name, content in bundle.files().items():
        (folder / name).write_bytes(content)


@dataclass(frozen=True, slots=True, kw_only=True)
class TuneRequest:
    """How long schedules are searched for, and where.

    Parameters
    ----------
    trials : int
        Choices that each kernel tries at least, of those that it has; those in the journal count.
    seconds : float or None
        No compilation begins later than that.
    journal : Path or None
        What was measured, of any networks and devices; default: JOURNAL in the
        cache folder.
    device, threads
        As of :class:`RunRequest`.
    """

    trials: int = 16
    seconds: float | None = None
    journal: Path | None = None
    device: str = ""
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.trials < 0 or (self.seconds is not None and not self.seconds >= 0):
            raise DataError(f"A search has no fewer than 0 trials and seconds, not {self.trials} and {self.seconds}")


def tune_kernels(source: Path, output: Path, request: KernelsRequest, search: TuneRequest, steps: Steps | None = None
                 ) -> dict[str, Any]:
    """Search for the schedules of a network's kernels on a device, and write the kernels into ``output``.

    An interrupted search goes on where it was when it is started again.
    """
    steps = steps or Steps()
    options = request.optimisations()
    require_replaceable(output, MANIFEST)
    journal = search.journal or cache_folder() / JOURNAL
    with steps.step("import network"):
        graph, parameters, data = _asked_for(source, request)
    with steps.step("search"):
        from espalier.opencl.tuning import tune

        found = tune(graph, parameters, options,
                     lambda bundle: open_session(bundle, search.device, search.threads), journal, data=data,
                     trials=search.trials, seconds=search.seconds,
                     told=lambda rounds, best: steps.tell(f"  round {rounds}: {best * 1e3:.3f} ms in kernels"))
    kernels = [{"layer": name, "choice": list(choice), "seconds": best, "estimated": estimate}
               for name, (choice, best, estimate) in found.kernels.items()]
    content = {"network": found.bundle.network, "device": found.device, "threads": search.threads,
               "rounds": found.rounds, "figures": [
                   Figure("an image, by the estimate", found.estimated, "s", Provenance.MEASURED).to_json(),
                   Figure("an image, by what was found", found.seconds, "s", Provenance.MEASURED).to_json()],
               "kernels": kernels}
    with whole_directory(output, MANIFEST) as folder:
        _write(found.bundle, folder)
        write_json(folder / TUNING, content)
    steps.wrote(*(output / name for name in (KERNELS, WEIGHTS, MANIFEST, TUNING)))
    return content


def read_kernels(folder: Path) -> Bundle:
    """The kernels that ``write_kernels`` wrote. Raises DataError if there are none."""
    files = {}
    for name in (KERNELS, MANIFEST, WEIGHTS):
        path = folder / name
        if not path.is_file():
            raise DataError(f"{folder} holds no OpenCL kernels (there is no {name} in it): make them with espalier "
                            f"opencl compile")
        files[name] = path.read_bytes()
    return Bundle.from_files(files, str(folder))


def run_kernels(folder: Path, request: RunRequest, steps: Steps | None = None) -> dict[str, Any]:
    """Run kernels on test images: how many are recognised, and whether the results are those of the source.

    Raises MismatchError where they are not: in fixed point word for word, in float32 beyond :data:`FLOAT_TOLERANCE`.
    """
    steps = steps or Steps()
    bundle = read_kernels(folder)
    with steps.step("load data"):
        test = load(request.data or bundle.data, request.data_root).test
        count = len(test) if request.images is None else min(request.images, len(test))
        images = _images(bundle, test, count)
    with steps.step("build kernels"):
        session = open_session(bundle, request.device, request.threads)
    with steps.step("run"):
        results = session.run(images)
    correct = int((results.argmax(axis=1) == test.labels[:count]).sum())
    figures = [Figure("images", count, "images", Provenance.MEASURED),
               Figure("accuracy", 100 * correct / count, "% of the images", Provenance.MEASURED)]
    if request.against is not None:
        with steps.step("compare"):
            figures.append(_compared(bundle, results, images, request))
    return {"network": bundle.network, "device": session.device.name.strip(),
            "figures": [figure.to_json() for figure in figures]}


def open_session(bundle: Bundle, device: str = "", threads: int | None = None) -> Session:
    """Build kernels on a device. Only the first call in a process can choose the threads."""
    if threads is not None:
        if threads < 1:
            raise DataError(f"Kernels run on at least one thread, not {threads}")
        os.environ[THREADS] = str(threads)
        if threads == 1:
            os.environ.setdefault(DRIVER, "basic")  # which hands nothing to another thread
    from espalier.opencl.runtime import Session, find_device  # OpenCL's drivers come with it

    return Session(bundle, find_device(device))


def _images(bundle: Bundle, test: Dataset, count: int) -> NDArray:
    if count < 1:
        raise DataError(f"Kernels run on at least one image, not {count}")
    image, = bundle.images
    require_suiting(bundle.network, image.shape, bundle.result.shape, test)
    found = normalise(test.images[:count])
    return image.format.quantise(found) if isinstance(image.format, Fixed) else found


def _compared(bundle: Bundle, results: NDArray, images: NDArray, request: RunRequest) -> Figure:
    assert request.against is not None, "there is something to compare with"
    graph, parameters, _ = network_of(request.against, request.data or bundle.data, request.data_root)
    exact = {**parameters, graph.inputs[0].name: images}
    if not isinstance(graph.outputs[0].format, Fixed):
        exact = {name: array.astype(np.float64) for name, array in exact.items()}
    known = interpret(graph, exact)[graph.outputs[0].name]
    if known.shape != results.shape:
        raise MismatchError(f"The kernels give {results.shape} and {request.against} gives {known.shape}: they are of "
                            f"another network")
    if isinstance(graph.outputs[0].format, Fixed):
        differ = int((known != results).sum())
        if differ:
            raise MismatchError(f"{differ} of {results.size} words differ from the interpreter's: the kernels are of "
                                f"other weights than {request.against}")
        return Figure("words that differ from the interpreter's", 0, "words", Provenance.MEASURED)
    largest = np.maximum(np.abs(known).max(axis=1), np.finfo(np.float32).tiny)
    error = float((np.abs(known - results).max(axis=1) / largest).max())
    if not error <= FLOAT_TOLERANCE:
        raise MismatchError(f"Results differ from those of {request.against} by {error:.2g} of an image's largest, and "
                            f"float32 explains {FLOAT_TOLERANCE:g}: the kernels are of other weights")
    return Figure("largest difference from the interpreter", error, "of an image's largest result",
                  Provenance.MEASURED)


def time_kernels(folder: Path, *, runs: int = 20, device: str = "", threads: int | None = None,
                 steps: Steps | None = None) -> dict[str, Any]:
    """Time single images: the whole way with its copies, and each kernel by the device's clock; medians."""
    if runs < 1:
        raise DataError(f"At least one run is timed, not {runs}")
    steps = steps or Steps()
    bundle = read_kernels(folder)
    with steps.step("build kernels"):
        session = open_session(bundle, device, threads)
        blank = [np.zeros((1, *image.shape), np.int64 if isinstance(image.format, Fixed) else np.float32)
                 for image in bundle.images]
        session.run(*blank)
    with steps.step("run"):
        whole = [_seconds(lambda: session.run(*blank)) for _ in range(runs)]
        each = [session.kernel_times() for _ in range(runs)]
    kernels = [{"layer": found[0].layer, "seconds": median(one.seconds for one in found),
                "multiplications": found[0].multiplications} for found in zip(*each, strict=True)]
    content = {"network": bundle.network, "device": session.device.name.strip(), "threads": threads, "runs": runs,
               "figures": [Figure("an image", median(whole), "s", Provenance.MEASURED).to_json(),
                           Figure("its kernels", sum(one["seconds"] for one in kernels), "s",
                                  Provenance.MEASURED).to_json()],
               "kernels": kernels}
    write_json(folder / TIMES, content)
    steps.wrote(folder / TIMES)
    return content


def estimate_kernels(folder: Path, *, part: str = DEFAULT_PART, clock_mhz: float | None = None,
                     bandwidth: float | None = None) -> dict[str, Any]:
    """What each kernel would take on an FPGA, by count.

    ``clock_mhz`` and ``bandwidth`` (GB/s of external memory) stand in for the part's. Raises DataError where they are
    not finite numbers above 0, of a size that can be.
    """
    found = find_part(part)
    for name, value, unit in (("clock", clock_mhz, "MHz"), ("bandwidth", bandwidth, "GB/s")):
        if value is not None and not SLOWEST <= value <= FASTEST:
            raise DataError(f"The {name} of an FPGA is from {SLOWEST:g} to {FASTEST:g} {unit}, not {value:g}")
    if clock_mhz is not None:
        found = replace(found, clock=clock_mhz * 1e6)
    if bandwidth is not None:
        found = replace(found, bandwidth=bandwidth * 1e9)
    bundle = read_kernels(folder)
    each = estimates(bundle, found)
    whole = total(bundle.launches, each, found)
    figures = [Figure("an image, every kernel on another" if whole.pipelined else "an image, kernel after kernel",
                      whole.seconds, "s", Provenance.ESTIMATED),
               Figure("DSP blocks", whole.dsp_blocks, f"of {found.dsp_blocks}", Provenance.ESTIMATED),
               Figure("maps, channels and sums on chip" if whole.pipelined else "sums on chip", whole.held_bits,
                      f"bits of {found.memory_bits}", Provenance.ESTIMATED)]
    return {"network": bundle.network, "part": asdict(found), "fits": whole.fits,
            "figures": [figure.to_json() for figure in figures],
            "kernels": [{"layer": launch.layer, **asdict(one)}
                        for launch, one in zip(bundle.launches, each, strict=True)]}


def _seconds(work: Any) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
