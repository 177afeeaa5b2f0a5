"""The initial weights of the reference networks."""

import torch
from torch import Tensor, nn


def initialise(module: nn.Module, seed: int) -> None:
    """Set every parameter and buffer of ``module`` in place, in the order of its layers, from ``seed``.

    Convolutions: He normal (standard deviation sqrt(2 / fan-in)); those that are not trained
    (``requires_grad`` False): see ``centre_channels``. Linear layers: Glorot uniform
    (±sqrt(6 / (fan-in + fan-out))). Biases: zero. Batch norms: as they reset
    themselves, the identity but for their epsilon, or zero at the end of a residual block.
    """
    generator = torch.Generator().manual_seed(seed)
    for layer in module.modules():
        match layer:
            case nn.Conv2d() if not layer.weight.requires_grad:
                centre_channels(layer.weight)
            case nn.Conv2d():
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
            case nn.Linear():
                nn.init.xavier_uniform_(layer.weight, generator=generator)
            case nn.BatchNorm2d():
                layer.reset_parameters()
                continue
            case _:
                continue
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def centre_channels(weight: Tensor) -> None:
    """Set the ``weight`` (O, I, 1, 1) of a convolution so that it copies its I channels to the middle of its O."""
    outputs, inputs, *_ = weight.shape
    before = (outputs - inputs) // 2
    with torch.no_grad():
        weight.zero_()
        weight[before:before + inputs, :, 0, 0] = torch.eye(inputs)
