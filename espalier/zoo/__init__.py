"""The reference networks as plain torch modules: convolutions, ReLU, max pooling, linear layers, nothing else."""

from espalier.zoo.registry import build, input_shape, names

__all__ = ["build", "input_shape", "names"]
