"""SqueezeNet 1.0 (Iandola et al., arXiv 1602.07360) for 224x224 colour images."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional

#: Input channels, squeezed channels and channels of each expansion of fire2 to fire9.
FIRES = ((96, 16, 64), (128, 16, 64), (128, 32, 128), (256, 32, 128), (256, 48, 192), (384, 48, 192), (384, 64, 256),
         (512, 64, 256))
POOLED_BEFORE = (2, 5, 9)  #: the fires that a pooling stands before


class Fire(nn.Module):
    """A 1×1 convolution to few channels, and a 1×1 and a 3×3 convolution whose results stand side by side."""

    def __init__(self, in_channels: int, squeezed: int, expanded: int) -> None:
        super().__init__()
        self.squeeze1x1 = nn.Conv2d(in_channels, squeezed, 1)
        self.expand1x1 = nn.Conv2d(squeezed, expanded, 1)
        self.expand3x3 = nn.Conv2d(squeezed, expanded, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) to (N, 2 * expanded, H, W)."""
        squeezed = functional.relu(self.squeeze1x1(x))
        return functional.relu(torch.cat([self.expand1x1(squeezed), self.expand3x3(squeezed)], 1))


class SqueezeNet(nn.Module):
    """A 7×7 convolution, eight fires, a 1×1 convolution to the classes, the mean. Input (N, 3, 224, 224).

    Its ``state_dict`` has the names of the authors' Caffe layers, with a dot for the slash. 1,248,424
    parameters for 1000 classes: the paper's 50 times fewer than AlexNet's 61 M.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 96, 7, stride=2)
        fires = OrderedDict((f"fire{number}", Fire(*sizes)) for number, sizes in enumerate(FIRES, start=2))
        for name, fire in fires.items():
            self.add_module(name, fire)
        self.conv10 = nn.Conv2d(512, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Images to logits (N, classes)."""
        x = functional.relu(self.conv1(x))
        for number in range(2, 2 + len(FIRES)):
            if number in POOLED_BEFORE:
                x = functional.max_pool2d(x, 3, 2, ceil_mode=True)
            x = self.get_submodule(f"fire{number}")(x)
        return functional.relu(self.conv10(x)).mean((2, 3))
