"""Your own torch module: train it, compile it, and verify the accelerator bit for bit.

    python examples/own_network.py --output-dir runs/own

The same from the command line:

    espalier train --network examples/own_network.py:make --epochs 2 --output-dir runs/own/train
    espalier compile runs/own/train --rows 1 --lanes 2 --output-dir runs/own/build
    espalier verify runs/own/build
"""

from __future__ import annotations

import argparse
from pathlib import Path

from torch import nn

from espalier.flow import (
    CompileRequest,
    Steps,
    TrainFlags,
    VerifyRequest,
    compile_network,
    recipe,
    train_network,
    verify,
)


class Small(nn.Module):
    """A network as people write them: any module that torch.export takes, of layers that the machine runs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.pool = nn.MaxPool2d(2)
        self.fc = nn.Linear(4 * 4 * 4, 10)

    def forward(self, images):
        """Logits (N, 10) of images (N, 1, 8, 8)."""
        features = self.pool(self.conv(images).relu())
        return self.fc(features.flatten(1))


def make() -> nn.Module:
    """What ``FILE.py:make`` names on the command line."""
    return Small()


def main() -> None:
    """Train for two epochs, compile for one row and two lanes, compare one training step."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output-dir", type=Path, default=Path("runs/own"))
    output, steps = parser.parse_args().output_dir, Steps()
    trained, build = output / "train", output / "build"
    checkpoint = train_network(recipe(None, TrainFlags(network=f"{__file__}:make", epochs=2)), trained, steps=steps)
    assert checkpoint is not None
    print(f"test accuracy {checkpoint.log[-1].test_accuracy:.1%}")
    compile_network(trained, build, CompileRequest(rows=1, lanes=2), steps=steps)
    record = verify(build, VerifyRequest(), steps)
    print(f"{record.words:,} words in {len(record.tensors)} tensors compared, {record.differing} differ")


if __name__ == "__main__":
    main()
