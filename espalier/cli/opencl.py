"""The commands of OpenCL kernels."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from espalier.cli.frame import AsJson, DataName, DataRoot, DryRun, done, flow, one_sentence, steps_told

app = typer.Typer(no_args_is_help=True, help="A network as OpenCL kernels, for inference: write, run and time them.")

KernelFolder = Annotated[Path, typer.Argument(metavar="KERNELS", help="A directory that opencl compile wrote.")]
DeviceName = Annotated[str, typer.Option(help="A part of the device's name; default: the first.")]
Threads = Annotated[int | None, typer.Option(help="Of the processor, for PoCL; default: all.")]
NetworkSource = Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="A training directory, a checkpoint, ONNX, "
                                                                      ".pt2 (of torch.export: trusted, as it can run "
                                                                      "code), or pretrained:NAME.")]
KernelOutput = Annotated[Path, typer.Option("--output-dir", help="Where kernels, weights and manifest go; earlier "
                                                                 "ones there are replaced.")]
Without = Annotated[list[str] | None, typer.Option(help="An optimisation to leave out, or all; may be repeated.")]
KernelStyle = Annotated[str, typer.Option(help="folded, or pipelined: layers as tasks, joined by channels where there "
                                               "are any.")]
VectorSize = Annotated[int, typer.Option(help="Elements of a vector: 2, 4, 8 or 16.")]


@app.command("compile")
@one_sentence
def opencl_compile(
    source: NetworkSource,
    output_dir: KernelOutput,
    without: Without = None,
    vector: VectorSize = 16,
    style: KernelStyle = "folded",
    data: DataName = None,
    data_root: DataRoot = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Write the OpenCL kernels of a network."""
    steps = steps_told()
    bundle = flow.write_kernels(source, output_dir, flow.KernelsRequest(
        without=tuple(without or ()), vector=vector, style=style, data=data, data_root=data_root), dry_run=dry_run,
        steps=steps)
    size = sum(buffer.size_bytes for buffer in bundle.buffers)
    kernels = len({launch.kernel for launch in bundle.launches})
    record = {"network": bundle.network, "kernels": kernels, "launches": len(bundle.launches), "buffer_bytes": size}
    done(steps, as_json, record, [f"{bundle.network}: {kernels} kernels in {len(bundle.launches)} launches, {size:,} "
                                  "bytes of buffers"
                                  + (" (dry run: nothing was written)" if dry_run else "")])


@app.command("tune")
@one_sentence
def opencl_tune(
    source: NetworkSource,
    output_dir: KernelOutput,
    trials: Annotated[int, typer.Option(help="Schedules that each kernel tries.")] = 16,
    seconds: Annotated[float | None, typer.Option(help="At most; a search goes on where it ended.")] = None,
    journal: Annotated[Path | None, typer.Option(help="Where measurements are kept, of all networks; default: in the "
                                                      "cache folder.")] = None,
    device: DeviceName = "",
    threads: Threads = None,
    without: Without = None,
    vector: VectorSize = 16,
    style: KernelStyle = "folded",
    data: DataName = None,
    data_root: DataRoot = None,
    as_json: AsJson = False,
) -> None:
    """Search for the fastest schedules of a network's kernels on a device, and write the kernels."""
    steps = steps_told()
    content = flow.tune_kernels(
        source, output_dir, flow.KernelsRequest(without=tuple(without or ()), vector=vector, style=style,
                                                data=data, data_root=data_root),
        flow.TuneRequest(trials=trials, seconds=seconds, journal=journal, device=device, threads=threads), steps)
    lines = [f"{one['layer']}: {one['seconds'] * 1e6:.0f} µs with {tuple(one['choice'])}"
             + (f", {one['estimated'] * 1e6:.0f} µs by the estimate" if one["estimated"] else "")
             for one in content["kernels"]]
    done(steps, as_json, content, [f"{content['network']} on {content['device']}", *lines, *_figures(content)])


@app.command("run")
@one_sentence
def opencl_run(
    kernels: KernelFolder,
    data: DataName = None,
    data_root: DataRoot = None,
    images: Annotated[int | None, typer.Option(help="Test images, at most; default: all.")] = None,
    device: DeviceName = "",
    threads: Threads = None,
    against: Annotated[Path | None, typer.Option(help="What the kernels were made from: compare every result.")] = None,
    as_json: AsJson = False,
) -> None:
    """Run kernels on test images."""
    steps = steps_told()
    content = flow.run_kernels(kernels, flow.RunRequest(
        data=data, data_root=data_root, images=images, device=device, threads=threads, against=against), steps)
    done(steps, as_json, content, [f"{content['network']} on {content['device']}", *_figures(content)])


@app.command("time")
@one_sentence
def opencl_time(
    kernels: KernelFolder,
    runs: Annotated[int, typer.Option(help="Of which the median is told.")] = 20,
    device: DeviceName = "",
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Time kernels on single images."""
    steps = steps_told()
    content = flow.time_kernels(kernels, runs=runs, device=device, threads=threads, steps=steps)
    lines = [f"{one['layer']}: {one['seconds'] * 1e6:.0f} µs"
             + (f", {one['multiplications'] / one['seconds'] / 1e9:.1f} GMAC/s" if one["multiplications"] else "")
             for one in content["kernels"] if one["seconds"]]
    done(steps, as_json, content, [f"{content['network']} on {content['device']}", *lines, *_figures(content)])


@app.command("estimate")
@one_sentence
def opencl_estimate(
    kernels: KernelFolder,
    part: Annotated[str, typer.Option(help="stratix10-2800 or arria10-1150.")] = "stratix10-2800",
    clock_mhz: Annotated[float | None, typer.Option(help="That kernels run at; 250 is assumed.")] = None,
    bandwidth: Annotated[float | None, typer.Option(help="Of external memory, GB/s; default: of a card with the "
                                                         "part.")] = None,
    as_json: AsJson = False,
) -> None:
    """Estimate what kernels would take on an FPGA, to compare schedules."""
    steps = steps_told()
    content = flow.estimate_kernels(kernels, part=part, clock_mhz=clock_mhz, bandwidth=bandwidth)
    lines = [f"{one['layer']}: {one['multipliers']} multiplications every {one['interval']} cycles, "
             f"{one['held_words']} words on chip, {one['bytes_per_second'] / 1e9:.3g} GB/s; "
             f"{one['seconds'] * 1e6:.4g} µs, limited by {one['limit']}" for one in content["kernels"]]
    fits = [] if content["fits"] else ["the part does not hold all kernels"]
    done(steps, as_json, content, [f"{content['network']} on {part}: estimated", *lines, *_figures(content), *fits])


def _figures(content: dict[str, Any]) -> list[str]:
    return [f"{figure['name']}: {figure['value']:.6g} {figure['unit']} ({figure['provenance']})"
            for figure in content["figures"]]
