"""What each compiler pass made, as text for people (``--dump``)."""

from __future__ import annotations

from dataclasses import fields

from espalier.compiler.pipeline import Build
from espalier.ir.text import dump
from espalier.program.program import Command


def describe(name: str, build: Build) -> str:
    """The result of the pass ``name``; byte-identical for equal input."""
    match name:
        case "differentiate":
            return dump(build.graph)
        case "legalise":
            return _legalised(build)
        case "place":
            return _placed(build)
        case "schedule":
            return _scheduled(build)
        case "emit":
            return _emitted(build)
        case _:
            raise AssertionError(f"there is no pass {name!r}")


def _legalised(build: Build) -> str:
    return "".join(f"{layer.name}: {'×'.join(map(str, layer.in_shape))} -> {'×'.join(map(str, layer.out_shape))}, "
                   f"weight {'×'.join(map(str, layer.weight_shape))}{', bias' if layer.bias else ''}"
                   f"{f', stride {layer.stride}' if layer.stride != (1, 1) else ''}"
                   f"{f', plus {layer.addend}' if layer.addend else ''}{', relu' if layer.rectify else ''}"
                   f"{f' up to {layer.clip}' if layer.clip else ''}"
                   f"{', pool' if layer.pool else ''}\n" for layer in build.layers)


def _placed(build: Build) -> str:
    assert build.memory is not None
    memory = build.memory
    lines = [f"image at activation 0, {memory.activation_depth} vectors in all; gradients {memory.gradient_depth} deep"]
    lines += [f"{layer.out}: activation {memory.activations[layer.out]}, gradient {memory.gradients[layer.out]}"
              for layer in build.layers]
    return "\n".join(lines) + "\n"


def _scheduled(build: Build) -> str:
    lines = []
    for item in build.blocks:
        _, _, height, width = item.layer.weight_shape
        total = item.out_blocks * item.source_blocks * height * width
        lines.append(f"{item.layer.name}: {len(item.blocks)} of {total} blocks live, columns up to {item.columns}\n")
    return "".join(lines)


def _emitted(build: Build) -> str:
    assert build.program is not None
    lines = [f"{position}: {_command(command)}\n" for position, command in enumerate(build.program.commands)]
    return "".join(lines) + f"{len(build.program.entries)} entries, {len(build.program.table)} segment pointers\n"


def _command(command: Command) -> str:
    """Opcode, layer and the fields that are not zero."""
    given = [f"{field.name}={getattr(command, field.name)}" for field in fields(command)
             if field.name not in ("opcode", "layer") and getattr(command, field.name)]
    return " ".join([command.opcode.name, command.layer, *given])
