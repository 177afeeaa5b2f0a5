"""Programs that ``torch.export.save`` wrote, and files that are none."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from espalier.errors import DataError, UnsupportedError
from espalier.frontend.exported_file import module_from_exported
from espalier.frontend.torch_export import from_torch
from espalier.ir.interpret import interpret

IMAGE = (2, 6, 8)


class Small(nn.Module):
    """A convolution with a batch norm, and a view that says the size of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU())
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(3 * 4 * 6, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        logits: Tensor = self.fc(self.drop(y.view(y.size(0), -1)))
        return logits


@pytest.fixture(scope="module")
def small() -> nn.Module:
    torch.manual_seed(0)
    return Small().eval()


def save(module: nn.Module, path: Path, *images: Tensor, varies: tuple[int, ...] = ()) -> str:
    shapes = tuple({axis: torch.export.Dim.DYNAMIC for axis in varies} for _ in images)
    torch.export.save(torch.export.export(module, images, dynamic_shapes=shapes), path)
    return str(path)


@pytest.mark.parametrize(("batch", "varies"), [(1, ()), (2, ()), (7, ()), (3, (0,))])
def test_the_graph_is_that_of_the_module(batch: int, varies: tuple[int, ...], small: nn.Module, tmp_path: Path) -> None:
    path = save(small, tmp_path / "net.pt2", torch.zeros(batch, *IMAGE), varies=varies)
    module, shape = module_from_exported(path)
    assert shape == IMAGE
    (graph, parameters), (known, state) = from_torch(module, shape, "net"), from_torch(small, IMAGE, "net")
    images = np.random.default_rng(0).normal(size=(3, *IMAGE))
    found, expected = (interpret(one, {one.inputs[0].name: images, **weights})[one.outputs[0].name]
                       for one, weights in ((graph, parameters), (known, state)))
    assert np.array_equal(found, expected) and list(parameters) == list(state)
    assert [op.out.name for op in graph.ops] == [op.out.name for op in known.ops]


def test_files_that_are_no_programs(small: nn.Module, tmp_path: Path) -> None:
    whole = Path(save(small, tmp_path / "net.pt2", torch.zeros(1, *IMAGE))).read_bytes()
    path = tmp_path / "bad.pt2"
    with pytest.raises(DataError, match=r"^There is no file '.*bad.pt2': write one by torch.export.save$"):
        module_from_exported(str(path))
    with zipfile.ZipFile(tmp_path / "net.pt2") as archive:
        weights = archive.read("net/data/weights/weight_0")
    torch.save(small.state_dict(), tmp_path / "state.pt")
    for content in (b"", b"weights", whole[:5000], whole[:-50], whole.replace(b'"graph_module"', b'"graph_muddle"'),
                    whole.replace(weights, bytes(len(weights))), (tmp_path / "state.pt").read_bytes()):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"^'.*bad.pt2' is damaged, or no program of torch.export that this version "
                                            r"of torch reads: write it by torch.export.save\(.*, '.*bad.pt2'\)$"):
            module_from_exported(str(path))


def test_programs_that_take_something_else(small: nn.Module, tmp_path: Path) -> None:
    class Sum(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x + y

    for path, told in (
            (save(Sum(), tmp_path / "a.pt2", torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 3, 4)),
             r"\(1, 2, 3, 4\), \(1, 2, 3, 4\)"),
            (save(nn.Linear(3, 4), tmp_path / "b.pt2", torch.zeros(1, 3)), r"\(1, 3\)"),
            (save(nn.Conv2d(1, 1, 3), tmp_path / "c.pt2", torch.zeros(2, 1, 8, 9), varies=(0, 2)),
             r"\(.*, 1, .*, 9\)")):
        with pytest.raises(UnsupportedError, match=r"must take one batch of images \(N, C, H, W\), of which only N may "
                                                   rf"vary, not {told}: export it so$"):
            module_from_exported(path)
