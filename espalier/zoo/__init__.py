"""The reference networks as plain torch modules, and readers of published weights."""

from espalier.zoo.registry import build, input_shape, names

__all__ = ["build", "input_shape", "names"]
