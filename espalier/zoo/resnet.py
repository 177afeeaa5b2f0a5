"""ResNet-20, 56 and 110 for 32x32 colour images (He et al., CVPR 2016, section 4.2)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

WIDTHS = (16, 32, 64)  #: channels of the three stages


def shortcut(in_channels: int, channels: int) -> nn.Conv2d:
    """The paper's parameter-free shortcut (option A) between stages, as a fixed convolution.

    Option A takes every second pixel and puts ``in_channels`` zero channels around the channels, half before
    and half after: ``pad(x[:, :, ::2, ::2], (0, 0, 0, 0, n, n))``. That is exactly a 1×1 convolution of
    stride 2 whose weight is 1 where output channel ``n + i`` meets input channel ``i`` and 0 elsewhere.
    In this form it needs no operation of its own, and costs what its ``in_channels`` ones cost where dead
    weights are skipped. Its weight is no parameter to train: ``requires_grad`` is False and
    ``initialise`` sets it. Published weights do not contain it.
    """
    return nn.Conv2d(in_channels, channels, 1, stride=2, bias=False).requires_grad_(False)


class LastNorm(nn.BatchNorm2d):
    """The batch norm that ends a block: it starts at zero, so that the block starts as its shortcut.

    Then a deep network is as easy to start as a shallow one (Goyal et al., arXiv:1706.02677, section 5.1),
    also after folding, when nothing normalises any more.
    """

    def reset_parameters(self) -> None:
        super().reset_parameters()
        nn.init.zeros_(self.weight)


class Block(nn.Module):
    """Two 3×3 convolutions, each with batch norm, and the shortcut around them."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        narrows = in_channels != channels
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=2 if narrows else 1, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = LastNorm(channels)
        self.shortcut = shortcut(in_channels, channels) if narrows else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) to (N, channels, H, W), or to half the height and width between stages."""
        inner = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(self.bn2(self.conv2(inner)) + self.shortcut(x))


class ResNet(nn.Module):
    """A convolution, three stages of ``depth`` blocks, the mean, a linear layer. Input (N, 3, 32, 32).

    Its ``state_dict`` has the names of github.com/akamaster/pytorch_resnet_cifar10, and two weights of
    shortcuts. Without those, 269,722, 853,018 and 1,727,962 parameters at depths 3, 9 and 18 for 10 classes:
    the paper's 0.27 M, 0.85 M and 1.7 M (table 6).
    """

    def __init__(self, depth: int, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, WIDTHS[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        self.layer1 = _stage(WIDTHS[0], WIDTHS[0], depth)
        self.layer2 = _stage(WIDTHS[0], WIDTHS[1], depth)
        self.layer3 = _stage(WIDTHS[1], WIDTHS[2], depth)
        self.linear = nn.Linear(WIDTHS[2], classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images to logits (N, classes)."""
        stages = self.layer3(self.layer2(self.layer1(functional.relu(self.bn1(self.conv1(x))))))
        logits: Tensor = self.linear(stages.mean((2, 3)))
        return logits


def _stage(in_channels: int, channels: int, depth: int) -> nn.Sequential:
    return nn.Sequential(Block(in_channels, channels), *(Block(channels, channels) for _ in range(depth - 1)))


def resnet(layers: int, classes: int) -> ResNet:
    """The ResNet of 6n + 2 ``layers`` with weights."""
    return ResNet((layers - 2) // 6, classes)
