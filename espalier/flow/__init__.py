"""From a network to a report: each stage a function that reads and writes directories, and can be run alone.

    train      network + data + recipe  ->  checkpoint.safetensors, log.jsonl, config.yaml
    compress   checkpoint + method      ->  checkpoint.safetensors with fewer live weights, compress.json
    compile    checkpoint + constraints ->  build directory: Verilog, memory images, manifest
    simulate   build + data             ->  simulate.json: training steps of the RTL, cycles, agreement
    verify     build + data             ->  verify.json: every tensor of a step, RTL against the definition
    synth      build + device           ->  synth.json: area and, where routed, clock
    report     any of these directories ->  one HTML page
    kernels    checkpoint or network    ->  OpenCL kernels, weights, manifest; run and time them
    compare    recipes × seeds          ->  a training each, compare.json, compare.html

Nothing is ever left half written: a stage that fails leaves earlier results as they were.
"""

from espalier.flow.comparison import CompareRequest, compare, parse_seeds
from espalier.flow.compilation import CompileRequest, compile_network
from espalier.flow.compression import CompressRequest, compress_network
from espalier.flow.kernels import (
    KernelsRequest,
    RunRequest,
    TuneRequest,
    estimate_kernels,
    run_kernels,
    time_kernels,
    tune_kernels,
    write_kernels,
)
from espalier.flow.recipes import TrainFlags, recipe
from espalier.flow.reporting import write_report
from espalier.flow.simulation import SimulateRequest, simulate
from espalier.flow.steps import Steps
from espalier.flow.synthesis import SynthRequest, synth
from espalier.flow.training import train_network
from espalier.flow.verification import VerifyRequest, verify
from espalier.train.crew import leads
from espalier.train.loop import TrainingInterrupted

__all__ = ["CompareRequest", "CompileRequest", "CompressRequest", "KernelsRequest", "RunRequest", "SimulateRequest",
           "Steps", "SynthRequest", "TrainFlags", "TrainingInterrupted", "TuneRequest", "VerifyRequest", "compare",
           "compile_network", "compress_network", "estimate_kernels", "leads", "parse_seeds", "recipe", "run_kernels",
           "simulate", "synth", "time_kernels", "train_network", "tune_kernels", "verify", "write_kernels",
           "write_report"]
