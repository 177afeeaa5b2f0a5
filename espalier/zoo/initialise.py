"""The initial weights of the reference networks."""

import torch
from torch import nn


def initialise(module: nn.Module, seed: int) -> None:
    """Set every weight and bias of ``module`` in place, in the order of its layers, from ``seed``.

    Convolutions: He normal (standard deviation sqrt(2 / fan-in)). Linear layers: Glorot uniform
    (±sqrt(6 / (fan-in + fan-out))). Biases: zero.
    """
    generator = torch.Generator().manual_seed(seed)
    for layer in module.modules():
        match layer:
            case nn.Conv2d():
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
            case nn.Linear():
                nn.init.xavier_uniform_(layer.weight, generator=generator)
            case _:
                continue
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
