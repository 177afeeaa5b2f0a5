"""The commands from training to report, and ``main``, which runs any command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from espalier import __version__
from espalier.arch.memory import MemoryTiming
from espalier.cli import opencl
from espalier.cli.frame import FAILED, AsJson, DataName, DataRoot, DryRun, done, flow, one_sentence, steps_told
from espalier.errors import DataError

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False,
                  help="Train convolutional networks in compressed fixed point, and compile them to FPGA accelerators "
                       "that go on training them.")

BuildFolder = Annotated[Path, typer.Argument(metavar="BUILD", help="A directory that compile wrote.")]


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit status; ``arguments`` default to the process's own."""
    try:
        app(arguments, prog_name="espalier")
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else FAILED
    return 0


def _version(wanted: bool) -> None:
    if wanted:
        print(f"espalier {__version__}")
        raise typer.Exit


@app.callback()
def options(version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True,
                                                  help="Print the version and stop.")] = False) -> None:
    """Options before the command."""


@app.command()
@one_sentence
def train(
    output_dir: Annotated[Path, typer.Option(help="Where checkpoint and log go; an unfinished run there goes on.")],
    config: Annotated[Path | None, typer.Option(help="A recipe (.yaml, .toml, .json); flags win over it.")] = None,
    network: Annotated[str | None, typer.Option(help="Of the zoo, FILE.onnx, or FILE.py:FACTORY.")] = None,
    data: Annotated[str | None, typer.Option(help="Data set, by name or path.")] = None,
    data_root: DataRoot = None,
    epochs: Annotated[int | None, typer.Option(help="Of all; times in a recipe keep their part of the run.")] = None,
    batch: Annotated[int | None, typer.Option(help="Images of a step.")] = None,
    tuned_batch: Annotated[int | None, typer.Option(help="Those for which learning rate and momentum were tuned, if "
                                                         "others: both are scaled.")] = None,
    seed: Annotated[int | None, typer.Option()] = None,
    learning_rate: Annotated[float | None, typer.Option()] = None,
    rate: Annotated[str | None, typer.Option(help="How it falls: constant, step or cosine.")] = None,
    warm_up: Annotated[int | None, typer.Option(help="Epochs in which it rises linearly before.")] = None,
    momentum: Annotated[float | None, typer.Option()] = None,
    weight_decay: Annotated[float | None, typer.Option()] = None,
    loss: Annotated[str | None, typer.Option(help="softmax_cross_entropy or square_hinge.")] = None,
    augment: Annotated[bool | None, typer.Option(help="Random crops and mirror images.")] = None,
    float32: Annotated[bool, typer.Option("--float32", help="Train in float32: the baseline.")] = False,
    update: Annotated[str | None, typer.Option(help="buffered, unbuffered or narrow.")] = None,
    weight_bits: Annotated[int | None, typer.Option(help="2..16")] = None,
    activation_bits: Annotated[int | None, typer.Option(help="2..16")] = None,
    gradient_bits: Annotated[int | None, typer.Option(help="2..16")] = None,
    quantise_start: Annotated[int | None, typer.Option(help="Epochs in float32 before fixed point.")] = None,
    quantise_rate: Annotated[float | None, typer.Option(help="What multiplies the learning rate in fixed point; where "
                                                             "batch norms are folded, 0.1.")] = None,
    batch_norm: Annotated[str | None, typer.Option(help="In fixed point: folded (into the layers before them), or "
                                                        "trained.")] = None,
    density: Annotated[float | None, typer.Option(help="Fraction of weights that stay; prunes gradually.")] = None,
    block: Annotated[int | None, typer.Option(help="Edge of the blocks in which weights die.")] = None,
    method: Annotated[str | None, typer.Option(help="What weights live by: magnitude, lamp (layer-adaptive) or "
                                                    "balanced (equally many blocks for each output block).")] = None,
    scope: Annotated[str | None, typer.Option(help="By magnitude, prune each layer alike (layer), small layers less "
                                                   "than large ones (erdos_renyi), or the whole (network).")] = None,
    elements: Annotated[int | None, typer.Option(help="Processing elements of the machine, on which balanced spreads "
                                                      "blocks evenly.")] = None,
    prune_start: Annotated[float | None, typer.Option(help="In epochs.")] = None,
    prune_end: Annotated[float | None, typer.Option(help="In epochs.")] = None,
    exchange: Annotated[float | None, typer.Option(help="Fraction of live weights to exchange meanwhile for dead "
                                                        "ones of large gradient (GraNet, RigL).")] = None,
    freeze: Annotated[list[str] | None, typer.Option(help="Parameters that stay as they are, by name or pattern "
                                                          "('conv*'); may be repeated.")] = None,
    parts: Annotated[int | None, typer.Option(help="Train as a pipeline of so many parts, which take equally "
                                                  "long.")] = None,
    cut: Annotated[list[str] | None, typer.Option(help="Where it is cut instead: the value that crosses; may be "
                                                     "repeated.")] = None,
    scheme: Annotated[str | None, typer.Option(help="Which weights batches meet in it: stale, compensated, hybrid or "
                                                    "synchronous.")] = None,
    switch: Annotated[int | None, typer.Option(help="The epoch from which on a hybrid is synchronous.")] = None,
    micro_batches: Annotated[int | None, typer.Option(help="Into how many a batch is divided where it is "
                                                           "synchronous.")] = None,
    processes: Annotated[bool, typer.Option(help="Work on each part in a process of its own; the weights are the same "
                                                 "in one.")] = True,
    patience: Annotated[float, typer.Option(help="Seconds after which one that does not answer counts as gone.")
                        ] = 600.0,
    compute: Annotated[str | None, typer.Option(help="cpu or cuda; results in fixed point are the same.")] = None,
    resume: Annotated[bool, typer.Option(help="Go on from the checkpoint in the output directory.")] = True,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Train a network: checkpoint and log."""
    steps = steps_told()
    told = flow.recipe(config, flow.TrainFlags(
        network=network, data=data, epochs=epochs, batch=batch, tuned_batch=tuned_batch, seed=seed, device=compute,
        loss=loss, augment=augment, rate=rate, learning_rate=learning_rate, momentum=momentum,
        weight_decay=weight_decay, float32=float32, update=update, weight_bits=weight_bits,
        activation_bits=activation_bits, gradient_bits=gradient_bits, quantise_start=quantise_start,
        quantise_rate=quantise_rate, batch_norm=batch_norm, density=density, block=block, method=method, scope=scope,
        elements=elements, prune_start=prune_start, prune_end=prune_end, warm_up=warm_up, exchange=exchange,
        freeze=tuple(freeze) if freeze else None, parts=parts, cut=tuple(cut) if cut else None, scheme=scheme,
        switch=switch, micro_batches=micro_batches))
    found = flow.train_network(told, output_dir, data_root=data_root, resume=resume, dry_run=dry_run,
                               processes=processes, patience=patience, steps=steps)
    if not flow.leads():
        return
    record: dict[str, object] = {"config": told.to_json()}
    lines = ["dry run: nothing was trained"]
    if found is not None and found.log:
        last = found.log[-1]
        record |= {"test_accuracy": last.test_accuracy, "train_accuracy": last.train_accuracy, "live": last.live}
        lines = [f"test accuracy {last.test_accuracy:.2%} after {last.epoch} epochs, "
                 f"{sum(last.live.values()):,} weights live"]
        if not steps.written:
            lines.append(f"done already: {output_dir} holds this very training, so nothing was trained or written")
    done(steps, as_json, record, lines)


@app.command()
@one_sentence
def compress(
    source: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="A training directory, a checkpoint, ONNX, or "
                                                                  "pretrained:NAME.")],
    output_dir: Annotated[Path, typer.Option(help="Where checkpoint and record go; what compress wrote there before "
                                                  "is replaced.")],
    method: Annotated[str, typer.Option(help="reconstruct (the weights that live are rebuilt on images), lamp, "
                                             "magnitude, erdos_renyi (by magnitude, small layers less), flat, "
                                             "triangular, relative, or rules (the best of these three)."
                                        )] = "reconstruct",
    density: Annotated[float | None, typer.Option(help="Fraction of weights that stay.")] = None,
    loss: Annotated[float | None, typer.Option(help="Or: accuracy points that the sparsest network may lose.")] = None,
    block: Annotated[int, typer.Option(help="Edge of the blocks in which weights die.")] = 1,
    images: Annotated[int | None, typer.Option(help="Of the training set, to rebuild on and choose by; default: 1000, "
                                                    "or all if there are fewer.")] = None,
    data: DataName = None,
    data_root: DataRoot = None,
    seed: Annotated[int, typer.Option(help="Of the draw of the images.")] = 0,
    top: Annotated[int, typer.Option(help="An image is recognised by any of so many largest logits (Top-1, "
                                          "Top-5).")] = 1,
    bits: Annotated[int | None, typer.Option(help="2..16: width of words, where the source has none yet (ONNX, "
                                                  "pretrained:NAME, a training in float32).")] = None,
    bit_loss: Annotated[float | None, typer.Option(help="Give the weights of each layer the fewest bits with which at "
                                                        "most so many accuracy points more are lost.")] = None,
    evaluations: Annotated[int | None, typer.Option(help="Choices of widths to try for --bit-loss, at most.")] = None,
    bias_bits: Annotated[int | None, typer.Option(help="2..16: width of biases; default: 16 in published networks, "
                                                       "else as the layer's weights, as the engine needs.")] = None,
    equalise: Annotated[bool | None, typer.Option("--equalise/--no-equalise", help="Scale channels so that narrow "
                                                  "weights lose less; default: if it does better.")] = None,
    test_images: Annotated[int | None, typer.Option(help="Of the test set, at most; default: all.")] = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Prune a trained network, or narrow its weights, without training it again: checkpoint and record."""
    steps = steps_told()
    request = flow.CompressRequest(
        method=method, density=density, loss=loss, block=block, images=images, data=data, data_root=data_root,
        seed=seed, top=top, bits=bits, bit_loss=bit_loss, evaluations=evaluations, bias_bits=bias_bits,
        equalise=equalise, test_images=test_images)
    content = flow.compress_network(source, output_dir, request, dry_run=dry_run, steps=steps)
    if content is None:
        done(steps, as_json, {}, ["dry run: nothing was compressed"])
        return
    done(steps, as_json, content, _compressed(content, top))


def _compressed(content: dict[str, Any], top: int) -> list[str]:
    """What compress tells people: what lives, how well it does, and in how many bits."""
    found = {figure["name"]: figure["value"] for figure in content["figures"]}
    lines = [f"{content['chosen'] or 'all that lived'}: {found['live weights']:,} weights live "
             f"({found['density']:.2%}), test accuracy{'' if top == 1 else f' (Top-{top})'} "
             f"{found['test accuracy after']:.2%}, before {found['test accuracy before']:.2%}"]
    if "choices of widths tried" in found:
        lines.append(f"{found['weight bits']:,} weight bits ({found['weight bits'] / found['live weights']:.2f} a live "
                     f"weight), {found['choices of widths tried']} choices of widths tried: "
                     + ", ".join(f"{layer['name']} {layer['weight_bits']}" for layer in content["layers"]))
    return lines


def _grid(text: str | None) -> tuple[int, int] | None:
    """Two whole numbers with an x between."""
    if text is None:
        return None
    parts = text.split("x")
    if len(parts) != 2 or not all(part.isdecimal() and int(part) for part in parts):
        raise DataError(f"A grid is tiles down and across, such as 4x4, not {text!r}")
    return int(parts[0]), int(parts[1])


@app.command("compile")
@one_sentence
def compile_command(
    source: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="A training directory, a checkpoint, or ONNX.")],
    output_dir: Annotated[Path, typer.Option(help="The build directory; an earlier build there is replaced.")],
    device: Annotated[str, typer.Option(help="The part; sets the limits.")] = "ecp5-85f",
    rows: Annotated[int | None, typer.Option(help="Of the lattice, a power of two up to 64; default: the fastest up to "
                                                  "16.")] = None,
    lanes: Annotated[int | None, typer.Option(help="Images computed together; default: the fastest.")] = None,
    grid: Annotated[str | None, typer.Option(help="Tiles, down and across, in which lanes hold the maps of an image, "
                                                  "such as 4x4; default: 1x1, a lane an image, unless a batch leaves "
                                                  "lanes over.")] = None,
    elements: Annotated[int | None, typer.Option(help="Processing elements that share the work of a layer, a power of "
                                                      "two up to 16: each a lattice of rows × lanes; default: 1.")
                        ] = None,
    trees: Annotated[int | None, typer.Option(help="Weights updated in a cycle by a processing element, a power of two "
                                                   "up to the rows; default: as many as make it faster.")] = None,
    pairs: Annotated[bool | None, typer.Option(help="Two products of words of at most 8 bits by each hard multiplier; "
                                                    "default: where the part can.")] = None,
    word_bits: Annotated[int | None, typer.Option(help="2..16; default: the network's widest word.")] = None,
    port_bits: Annotated[int | None, typer.Option(help="Of an AXI4 port to external memory, for activations that the "
                                                       "block RAMs do not hold; default: none, all on chip.")] = None,
    stream_weights: Annotated[bool | None, typer.Option("--stream-weights", help="Keep there weights of large layers "
                                                        "that the block RAMs do not hold, too.")] = None,
    multipliers: Annotated[int | None, typer.Option(help="At most so many, if the part has more.")] = None,
    block_rams: Annotated[int | None, typer.Option(help="At most so many, if the part has more.")] = None,
    machine: Annotated[Path | None, typer.Option(help="Use this machine.json: new weights, same hardware.")] = None,
    batch: Annotated[int | None, typer.Option(help="Images of a step on the machine; default: its lanes.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="On the machine; default: the recipe's.")] = None,
    momentum: Annotated[float | None, typer.Option()] = None,
    weight_decay: Annotated[float | None, typer.Option()] = None,
    data: Annotated[str, typer.Option(help="For ONNX: the data from which formats are chosen.")] = "digits",
    data_root: DataRoot = None,
    stop_after: Annotated[str | None, typer.Option(help="Stop after this pass and write nothing.")] = None,
    dump: Annotated[bool, typer.Option("--dump", help="Print what each pass made.")] = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Compile a network for a machine: Verilog, Program and memory images."""
    steps = steps_told()
    request = flow.CompileRequest(
        device=device, rows=rows, lanes=lanes, grid=_grid(grid), elements=elements, trees=trees, pairs=pairs,
        word_bits=word_bits, port_bits=port_bits, stream_weights=stream_weights, multipliers=multipliers,
        block_rams=block_rams, machine=machine, batch=batch, learning_rate=learning_rate, momentum=momentum,
        weight_decay=weight_decay, data=data, data_root=data_root)
    design = flow.compile_network(source, output_dir, request, stop_after=stop_after, dump_passes=dump,
                                  dry_run=dry_run, steps=steps)
    if design is None:
        done(steps, as_json, {"stopped_after": stop_after}, [f"stopped after {stop_after}: nothing was written"])
        return
    chosen = design.machine
    done(steps, as_json, {"machine": chosen.to_json()},
         [f"{design.graph.name} on "
          + (f"{chosen.elements} processing elements of " if chosen.elements > 1 else "") +
          f"{chosen.rows} rows × {chosen.lanes} lanes ({chosen.multipliers} multipliers"
          f"{' in pairs' if chosen.pairs else ''}), "
          + (f"{chosen.grid_y} × {chosen.grid_x} tiles an image, " if chosen.tiles > 1 else "") +
          f"{chosen.acc_bits}-bit accumulators" + (" (dry run: nothing was written)" if dry_run else ""),
          *([f"estimated: {design.estimated_use}"] if design.estimated_use else [])])


@app.command()
@one_sentence
def simulate(
    build: BuildFolder,
    data: DataName = None,
    data_root: DataRoot = None,
    steps: Annotated[int, typer.Option(help="Training steps.")] = 4,
    epochs: Annotated[int, typer.Option(help="Whole epochs, besides.")] = 0,
    traced: Annotated[int, typer.Option(help="Of these, the first ones in which every tensor is compared.")] = 1,
    test_images: Annotated[int, typer.Option(help="Test images recognised before and after, at most.")] = 1000,
    dense: Annotated[bool, typer.Option(help="Count the cycles of the dense network, too.")] = True,
    seed: Annotated[int, typer.Option(help="Of the order of the images.")] = 0,
    save: Annotated[Path | None, typer.Option(help="Write the trained state as a checkpoint.")] = None,
    memory_latency: Annotated[int, typer.Option(help="Of external memory, in cycles, for a machine with a port.")] = 30,
    memory_beat_cycles: Annotated[int, typer.Option(help="Cycles in which the port moves one beat.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Train in RTL simulation, compared bit for bit; count cycles."""
    progress = steps_told()
    content = flow.simulate(build, flow.SimulateRequest(
        data=data, data_root=data_root, steps=steps, epochs=epochs, traced=traced, test_images=test_images,
        dense=dense, seed=seed, save=save,
        memory=MemoryTiming(latency=memory_latency, beat_cycles=memory_beat_cycles)), progress)
    cycles = content["cycles"]
    against = f", dense {cycles['dense_step_cycles']:,}" if cycles["dense_step_cycles"] else ""
    done(progress, as_json, content,
         [f"{content['steps']} steps of {content['batch']} images: equal to the interpreter, bit for bit",
          f"{cycles['step_cycles']:,} cycles a step{against}",
          *([f"the dense network was not run: {cycles['dense_missing']}"] if cycles["dense_missing"] else []),
          *(f"{figure['name']}: {figure['value']:g} {figure['unit']} ({figure['provenance']})"
            for figure in content["figures"])])


@app.command()
@one_sentence
def verify(
    build: BuildFolder,
    data: DataName = None,
    data_root: DataRoot = None,
    steps: Annotated[int, typer.Option(help="Training steps.")] = 1,
    seed: Annotated[int, typer.Option(help="Of the order of the images.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Compare every tensor of training steps: RTL against the definition."""
    progress = steps_told()
    record = flow.verify(build, flow.VerifyRequest(data=data, data_root=data_root, steps=steps, seed=seed), progress)
    done(progress, as_json, record.to_json(),
         [f"0 of {record.words:,} words in {len(record.tensors)} tensors differ over {record.steps} steps"])


@app.command()
@one_sentence
def synth(
    build: BuildFolder,
    device: Annotated[str | None, typer.Option(help="Another part than the build's.")] = None,
    route: Annotated[bool, typer.Option(help="Place and route (ECP5), which takes long.")] = True,
    clock_period: Annotated[float, typer.Option(help="To aim for, in ns.")] = 20.0,
    seed: Annotated[int, typer.Option(help="Of the placer.")] = 1,
    timeout: Annotated[float, typer.Option(help="For each tool, in seconds.")] = 7200,
    as_json: AsJson = False,
) -> None:
    """Synthesise, place and route: area and clock."""
    progress = steps_told()
    content = flow.synth(build, flow.SynthRequest(device=device, route=route, clock_period_ns=clock_period, seed=seed,
                                                  timeout_seconds=timeout), progress)
    cells = [f"{figure['name']}: {figure['value']}" for figure in content["synthesis"]["figures"]]
    routed = content["routing"]
    clock = (f"fmax {routed['fmax_mhz']:.1f} MHz: {routed['limit']}" if routed
             else f"no clock is known: {content['not_routed']}")
    done(progress, as_json, content, [", ".join(cells), clock])


@app.command()
@one_sentence
def report(
    folders: Annotated[list[Path], typer.Argument(metavar="DIRECTORY...", help="That train and compile wrote.")],
    output: Annotated[Path | None, typer.Option(help="The page; default: report.html in the last directory.")] = None,
    title: Annotated[str | None, typer.Option()] = None,
    baseline: Annotated[Path | None, typer.Option(help="A training directory: the float32 dense accuracy.")] = None,
    as_json: AsJson = False,
) -> None:
    """Write one self-contained HTML page of everything that the directories hold."""
    progress = steps_told()
    page = output or folders[-1] / "report.html"
    found = flow.write_report(folders, page, title=title, baseline=baseline, steps=progress)
    done(progress, as_json, found.to_json(), [])


@app.command()
@one_sentence
def compare(
    output_dir: Annotated[Path, typer.Option(help="Where a training of each recipe and seed goes, and the table.")],
    recipes: Annotated[list[Path] | None, typer.Argument(metavar="RECIPE...", help=".yaml, .toml or .json.")] = None,
    network: Annotated[str | None, typer.Option(help="In the place of the recipes' own.")] = None,
    data: Annotated[str | None, typer.Option(help="In the place of the recipes' own, by name or path.")] = None,
    data_root: DataRoot = None,
    epochs: Annotated[int | None, typer.Option(help="Of all; times in a recipe keep their part of the run.")] = None,
    seeds: Annotated[str | None, typer.Option(help="Such as 0,1,2; default: each recipe's own.")] = None,
    rows: Annotated[int, typer.Option(help="Of the lattice on which cycles are counted.")] = 8,
    lanes: Annotated[int, typer.Option(help="Its images computed together.")] = 16,
    as_json: AsJson = False,
) -> None:
    """Train by several recipes, and tabulate accuracy, live weights, MACs, index bytes and cycles."""
    progress = steps_told()
    found = flow.compare(recipes or [], output_dir, flow.CompareRequest(
        network=network, data=data, data_root=data_root, epochs=epochs, seeds=flow.parse_seeds(seeds), rows=rows,
        lanes=lanes), steps=progress)
    done(progress, as_json, found.to_json(), found.table())


app.add_typer(opencl.app, name="opencl")
