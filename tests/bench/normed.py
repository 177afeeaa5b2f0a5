"""Small networks with batch norms, as torch modules and as graphs."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor, nn

from espalier.frontend.torch_export import from_torch
from espalier.ir.graph import Graph


class Residual(nn.Module):
    """On 8×8 digits: a stem, a residual block, a depthwise convolution, pooling and two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.conv2, self.bn2 = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6, eps=1e-3)
        self.conv3, self.bn3 = nn.Conv2d(6, 6, 3, padding=1, groups=6, bias=False), nn.BatchNorm2d(6)
        self.fc1, self.bn4 = nn.Linear(96, 12, bias=False), nn.BatchNorm1d(12)
        self.fc2 = nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, 8, 8) to logits (N, 10)."""
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.bn2(self.conv2(x)) + x)
        x = nn.functional.max_pool2d(torch.relu(self.bn3(self.conv3(x))), 2)
        return self.fc2(torch.relu(self.bn4(self.fc1(torch.flatten(x, 1)))))


def shaken(module: nn.Module, seed: int = 0) -> nn.Module:
    """``module`` with batch norms that have statistics, scales and shifts unlike those they start with."""
    generator = torch.Generator().manual_seed(seed)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.3, generator=generator)
            layer.running_var.uniform_(0.5, 2, generator=generator)
            with torch.no_grad():
                layer.weight.uniform_(0.5, 1.5, generator=generator)
                layer.bias.normal_(0, 0.3, generator=generator)
    return module


def residual(seed: int = 0) -> Residual:
    """The network with weights drawn from ``seed``, batch norms as they start."""
    torch.manual_seed(seed)
    return Residual()


def normed(module: nn.Module | None = None) -> tuple[Graph, dict[str, np.ndarray]]:
    """Its graph and parameters, batch norms kept."""
    if module is not None:
        return from_torch(module, (1, 8, 8), "normed", keep_batch_norm=True)
    graph, parameters = _fresh()
    return graph, dict(parameters)


@cache
def _fresh() -> tuple[Graph, dict[str, np.ndarray]]:
    return normed(residual())
