"""Published weights: files written here with random numbers, read back, and every way in which they can be wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from bench import published
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from espalier import zoo
from espalier.data import normalise
from espalier.errors import DataError
from espalier.zoo import pretrained
from espalier.zoo.pretrained import STANDARD_SCALE, PixelScale, for_classes, load, standardised, without_background
from espalier.zoo.squeezenet import SqueezeNet

RANDOM = np.random.default_rng(0)
#: Results near 1 in float32, summed in another order.
FLOAT32_TOLERANCE = 1e-4

Arrays = dict[str, NDArray]


@pytest.fixture(scope="module")
def resnet_arrays() -> Arrays:
    """The file of a ResNet-20 with two classes and statistics unlike those it starts with."""
    found = {}
    for name, tensor in zoo.build("resnet20", 3).state_dict().items():
        if "shortcut" not in name and not name.endswith("num_batches_tracked"):
            positive = name.endswith("running_var")
            found[name] = RANDOM.uniform(0.5, 1.5, tensor.shape) if positive else RANDOM.normal(0, 0.1, tensor.shape)
    return {name: array.astype(np.float32) for name, array in found.items()}


def save(path: Path, arrays: Arrays) -> str:
    np.savez(path, **arrays)
    return str(path)


def pixels(*shape: int) -> NDArray[np.uint8]:
    return RANDOM.integers(0, 256, shape).astype(np.uint8)


def test_names_are_files_of_the_data_folder() -> None:
    assert pretrained.names() == ("resnet20", "resnet56", "mobilenet_v1_0.25_128", "mobilenet_v1_1.0_224",
                                  "mobilenet_v2_1.0_224", "squeezenet_v1.0_deepcompressed")


def test_resnet(tmp_path: Path, resnet_arrays: Arrays) -> None:
    (tmp_path / "cifar10-weights").mkdir()
    save(tmp_path / "cifar10-weights/resnet20.npz", resnet_arrays)
    network = load("resnet20", tmp_path)
    assert (network.name, network.input_shape, network.first_class) == ("resnet20", (3, 32, 32), 0)
    assert not network.module.training
    state = network.module.state_dict()
    assert all(np.array_equal(state[name].numpy(), array) for name, array in resnet_arrays.items())
    assert network.module.layer3[0].shortcut.weight.sum() == 32
    images = pixels(2, 3, 32, 32)
    mean, deviation = (np.array(numbers).reshape(3, 1, 1) for numbers in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    expected = network.module(torch.from_numpy((images / 255 - mean) / deviation).float())
    torch.testing.assert_close(network.logits(images), expected.detach(), rtol=0, atol=FLOAT32_TOLERANCE)


def test_resnet_for_standard_images(tmp_path: Path, resnet_arrays: Arrays) -> None:
    network = load(save(tmp_path / "net.npz", resnet_arrays))
    standard = standardised(network)
    assert standard.scale == STANDARD_SCALE and standardised(standard) is standard
    assert network.module.conv1.bias is None and standard.module.conv1.bias.shape == (16,)
    images = pixels(2, 3, 32, 32)
    before, after = (part.module.conv1(part.scale(images))[:, :, 1:-1, 1:-1] for part in (network, standard))
    torch.testing.assert_close(after, before, rtol=0, atol=FLOAT32_TOLERANCE)
    assert np.array_equal(STANDARD_SCALE(images).numpy(), normalise(images))


def test_other_classes_get_a_new_last_layer(tmp_path: Path, resnet_arrays: Arrays) -> None:
    network = load(save(tmp_path / "net.npz", resnet_arrays))
    assert for_classes(network, 3, 0) is network
    before = torch.get_rng_state()
    first, again, other = (for_classes(network, 7, seed).module.state_dict() for seed in (0, 0, 1))
    assert torch.equal(before, torch.get_rng_state())
    assert first["linear.weight"].shape == (7, 64) and not first["linear.bias"].any()
    assert torch.equal(first["linear.weight"], again["linear.weight"])
    assert not torch.equal(first["linear.weight"], other["linear.weight"])
    assert all(torch.equal(first[name], tensor) for name, tensor in network.module.state_dict().items()
               if not name.startswith("linear"))
    with pytest.raises(DataError, match=r"^Network 'squeezed' ends in 'conv10' \(Conv2d\), and only an nn.Linear can "
                                        r"be replaced for 7 classes: use data with the classes it was trained on$"):
        for_classes(load(save(tmp_path / "squeezed.npz", squeezenet_arrays())), 7, 0)


def test_standardised_takes_the_channels_in_their_order(tmp_path: Path) -> None:
    network = load(save(tmp_path / "squeezed.npz", squeezenet_arrays()))
    images = pixels(1, 3, 20, 20)
    assert np.array_equal(network.scale(images).numpy(), images[:, ::-1] - np.float32([[[104]], [[117]], [[123]]]))
    standard = standardised(network)
    before, after = (part.module.conv1(part.scale(images)) for part in (network, standard))
    torch.testing.assert_close(after, before, rtol=1e-4, atol=FLOAT32_TOLERANCE)


def test_order_of_channels() -> None:
    scale = PixelScale((1.0, 2.0, 3.0), (1.0, 2.0, 4.0), (2, 0, 1))
    assert scale(np.array([10, 20, 31], np.uint8).reshape(1, 3, 1, 1)).flatten().tolist() == [30.0, 4.0, 4.25]


def squeezenet_arrays() -> Arrays:
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in SqueezeNet(4).state_dict().items()}
    return {name.replace(".", "/", 1) if name.startswith("fire") else name:
            RANDOM.normal(0, 0.05, shape).astype(np.float32) for name, shape in shapes.items()}


def test_squeezenet(tmp_path: Path) -> None:
    network = load(save(tmp_path / "squeezed.npz", squeezenet_arrays()))
    assert (network.name, network.input_shape) == ("squeezed", (3, 224, 224))
    assert sum(weight.numel() for weight in SqueezeNet(1000).parameters()) == 1_248_424
    with torch.inference_mode():
        assert network.module(torch.zeros(1, 3, 48, 48)).shape == (1, 4)


def tflite_arrays() -> Arrays:
    return published.tflite_arrays(RANDOM)


def test_tflite(tmp_path: Path) -> None:
    arrays = tflite_arrays()
    network = load(save(tmp_path / "mobile.npz", arrays))
    assert (network.input_shape, network.scale, network.first_class) == ((3, 8, 8), STANDARD_SCALE, 1)
    assert standardised(network) is network
    images = pixels(2, 3, 8, 8)

    def convolved(x: torch.Tensor, number: int, scale: object, zero: object, **options: int) -> torch.Tensor:
        real = (arrays[f"w{number}"].astype(np.float64) - np.reshape(zero, (-1, 1, 1, 1)))
        weight = torch.from_numpy(np.reshape(scale, (-1, 1, 1, 1)) * real)
        return functional.conv2d(x, weight, torch.from_numpy(arrays[f"b{number}"]).double(), **options)
    a = functional.pad(torch.from_numpy((images - 128.0) / 128), (0, 1, 0, 1))
    a = convolved(a, 0, 0.02, 120, stride=2).clamp(0, 6)
    b = convolved(a, 1, [0.01, 0.02, 0.03, 0.04], [100, 110, 120, 130], padding=1, groups=4)
    expected = convolved((a + b).relu().mean((2, 3), keepdim=True), 2, 0.1, 128)[:, 1:, 0, 0]
    torch.testing.assert_close(network.logits(images).double(), expected, rtol=1e-4, atol=FLOAT32_TOLERANCE)
    assert [name for name, _ in network.module.named_parameters()] == [
        "conv0.weight", "conv0.bias", "conv1.weight", "conv1.bias", "conv2.weight", "conv2.bias"]


def test_without_background(tmp_path: Path) -> None:
    network = load(save(tmp_path / "mobile.npz", tflite_arrays()))
    classes = without_background(network)
    images = pixels(2, 3, 8, 8)
    assert classes.first_class == 0 and classes.module.conv2.out_channels == 2
    assert torch.equal(classes.logits(images), network.logits(images)) and classes.logits(images).shape == (2, 2)
    assert network.module.conv2.out_channels == 3 and without_background(classes) is classes
    assert for_classes(classes, 2, 0) is classes


def test_image_shape_wrong(tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        load(save(tmp_path / "mobile.npz", tflite_arrays())).logits(pixels(1, 3, 9, 8))
    assert str(error.value) == "Network 'mobile' takes images (C, H, W) = (3, 8, 8), not (3, 9, 8): scale them"


def test_file_wrong(tmp_path: Path) -> None:
    def message(name: str, root: Path | None = None) -> str:
        with pytest.raises(DataError) as error:
            load(name, root)
        return str(error.value).replace(str(tmp_path), "DIR")
    assert message("resnet20") == ("The weights of 'resnet20' need the folder that holds "
                                   "cifar10-weights/resnet20.npz: give it, or the path of the file")
    assert message("resnet20", tmp_path) == ("The weights DIR/cifar10-weights/resnet20.npz cannot be read (No such "
                                             "file or directory): check the path")
    (tmp_path / "text.npz").write_bytes(b"no archive")
    assert message(str(tmp_path / "text.npz")).startswith(
        "DIR/text.npz is no readable .npz file without pickled objects (")
    np.savez(tmp_path / "pickled.npz", graph=np.array([object()], object))
    assert message(str(tmp_path / "pickled.npz")).startswith(
        "DIR/pickled.npz is no readable .npz file without pickled objects (")
    whole = Path(save(tmp_path / "whole.npz", tflite_arrays())).read_bytes()
    (tmp_path / "short.npz").write_bytes(whole[:len(whole) // 2])
    assert "short.npz is no readable .npz file" in message(str(tmp_path / "short.npz"))
    assert message(save(tmp_path / "other.npz", {"a": np.zeros(1), "b": np.zeros(1)})) == (
        "DIR/other.npz holds the weights of no known network (its first arrays are a, b): give one of resnet20, "
        "resnet56, mobilenet_v1_0.25_128, mobilenet_v1_1.0_224, mobilenet_v2_1.0_224, squeezenet_v1.0_deepcompressed, "
        "or a file of their kind")


@pytest.mark.parametrize(("change", "message"), [
    ({"bn1.bias": None}, "PATH must hold the 97 arrays of a ResNet of its size, and it lacks 'bn1.bias': get it again"),
    ({"linear.bias": None}, "PATH must hold the 97 arrays of a ResNet of its size, and it lacks 'linear.bias': "
     "get it again"),
    ({"more": np.zeros(1)},
     "PATH must hold the 97 arrays of a ResNet of its size, and it also holds 'more': get it again"),
    ({"conv1.weight": np.zeros((16, 3, 3, 2), np.float32)}, "'conv1.weight' of PATH must be floating-point numbers of "
     "shape (16, 3, 3, 3), and it is float32 of shape (16, 3, 3, 2): get it again"),
    ({"bn1.bias": np.zeros(16, np.int64)},
     "'bn1.bias' of PATH must be floating-point numbers of shape (16,), and it is int64 of shape (16,): "
     "get it again"),
    ({"bn1.bias": np.full(16, np.nan, np.float32)}, "'bn1.bias' of PATH must hold finite numbers only: get it again"),
    ({"layer1.7.conv1.weight": np.zeros(1)}, "PATH must hold a ResNet of 3, 9, 18 blocks a stage, not 4"),
], ids=["missing", "no classes", "surplus", "shape", "type", "not finite", "depth"])
def test_resnet_wrong(tmp_path: Path, resnet_arrays: Arrays, change: dict[str, NDArray | None], message: str) -> None:
    changed = {name: array for name, array in {**resnet_arrays, **change}.items() if array is not None}
    path = save(tmp_path / "net.npz", changed)
    with pytest.raises(DataError) as error:
        load(path)
    assert str(error.value) == message.replace("PATH", path)


def edited(old: str, new: str) -> NDArray:
    text = str(tflite_arrays()["graph"])
    assert old in text
    return np.array(text.replace(old, new, 1))


@pytest.mark.parametrize(("change", "message"), [
    ({"graph": np.array("{")},
     "The graph of PATH must be JSON of known operators, and it is not (Invalid JSON: EOF while parsing "
     "an object at line 1 column 1): get the file again"),
    ({"graph": edited('"op": "add"', '"op": "mul"')},
     "The graph of PATH must be JSON of known operators, and ops.2 is not (Input tag 'mul' found using "
     "'op' does not match any of the expected tags: 'conv', 'add', 'avgpool', 'reshape', 'softmax'): get the file "
     "again"),
    ({"graph": edited('"stride": [2, 2]', '"stride": [0, 2]')},
     "The graph of PATH must be JSON of known operators, and ops.0.conv.stride.0 is not (Input should "
     "be greater than or equal to 1): get the file again"),
    ({"graph": edited('"x2": "b"', '"x2": "d"')},
     "The graph of PATH reads 'd' before anything computes it: get the file again"),
    ({"graph": edited("[100, 110, 120, 130]", "[100, 110]")},
     "'w1' of PATH must have one scale and zero point, or 4, not 4 and 2: get the file again"),
    ({"w2": None},
     "'w2' of PATH must be unsigned bytes (out, in / groups, height, width) in 1 groups, and it is missing: "
     "get the file again"),
    ({"w1": np.zeros((6, 1, 3, 3), np.uint8)},
     "'w1' of PATH must be unsigned bytes (out, in / groups, height, width) in 4 "
     "groups, and it is uint8 of shape (6, 1, 3, 3): get the file again"),
    ({"b0": None}, "'b0' of PATH must be floating-point numbers of shape (4,), and it is missing: get it again"),
], ids=["text", "operator", "stride", "order", "scales", "no weight", "groups", "no bias"])
def test_tflite_wrong(tmp_path: Path, change: dict[str, NDArray | None], message: str) -> None:
    changed = {name: array for name, array in {**tflite_arrays(), **change}.items() if array is not None}
    path = save(tmp_path / "net.npz", changed)
    with pytest.raises(DataError) as error:
        load(path)
    assert str(error.value) == message.replace("PATH", path)


def test_modules_are_as_they_are_in_inference(tmp_path: Path, resnet_arrays: Arrays) -> None:
    for arrays in (resnet_arrays, tflite_arrays()):
        module = load(save(tmp_path / "net.npz", arrays)).module
        assert isinstance(module, nn.Module) and not any(layer.training for layer in module.modules())
        assert all(weight.dtype == torch.float32 and weight.device.type == "cpu" for weight in module.parameters())
