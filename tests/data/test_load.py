"""Every data set by name and by path."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from PIL import Image

from espalier.data import load, names
from espalier.errors import DataError


@pytest.fixture(autouse=True)
def no_variable(monkeypatch):
    monkeypatch.delenv("ESPALIER_DATA", raising=False)


def pack(path, files):
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"cifar-10/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def test_names():
    assert names() == ("digits", "mnist", "fashion-mnist", "cifar10", "svhn", "imagenet-sample")


def test_load_digits_needs_nothing():
    split = load("digits")
    assert (split.train.image_shape, len(split.train), len(split.test)) == ((1, 8, 8), 1438, 359)
    assert split.train.images.max() == 255 and split.train.images.min() == 0
    assert split.train.checksum.startswith("digits-train is scikit-learn's digits, training part (sha256 ")
    assert split.test.checksum.startswith("digits-test is scikit-learn's digits, test part (sha256 ")


@pytest.mark.parametrize("folder", ["mnist", "MNIST/raw", "."])
def test_load_mnist(folder, idx_files, write_files, tmp_path):
    write_files(tmp_path / folder, idx_files)
    split = load("mnist", tmp_path)
    assert (len(split.train), len(split.test), split.train.class_count) == (20, 10, 10)
    assert "mnist-train is not the MNIST training set: 20 images instead of 60000 (sha256 " in split.train.checksum


def test_load_root_is_the_working_folder(idx_files, write_files, tmp_path, monkeypatch):
    monkeypatch.chdir(write_files(tmp_path, idx_files))
    assert len(load("mnist", Path()).train) == len(load(".").train) == 20


def test_load_root_from_environment(idx_files, write_files, tmp_path, monkeypatch):
    write_files(tmp_path / "fashion-mnist", idx_files)
    monkeypatch.setenv("ESPALIER_DATA", str(tmp_path))
    assert load("fashion-mnist").train.class_names[9] == "ankle boot"


@pytest.mark.parametrize("folder", ["cifar10/cifar-10-batches-bin", "cifar10", "cifar-10-batches-bin", "."])
def test_load_cifar10_binary(folder, binary_batches, colour, write_files, tmp_path):
    write_files(tmp_path / folder, binary_batches)
    assert np.array_equal(load("cifar10", tmp_path).train.images, colour[0])


@pytest.mark.parametrize("folder", ["cifar10/cifar-10-batches-py", "cifar-10-batches-py"])
def test_load_cifar10_python(folder, python_batches, colour, write_files, tmp_path):
    write_files(tmp_path / folder, python_batches)
    assert np.array_equal(load("cifar10", tmp_path).train.images, colour[0])


@pytest.mark.parametrize("version", ["binary", "python"])
def test_load_cifar10_archive(version, binary_batches, python_batches, colour, tmp_path):
    path = tmp_path / f"cifar-10-{version}.tar.gz"
    pack(path, binary_batches if version == "binary" else python_batches)
    assert np.array_equal(load("cifar10", tmp_path).train.images, colour[0])
    assert np.array_equal(load(str(path)).test.labels, colour[1])


@pytest.mark.parametrize("by_name", [True, False])
def test_load_svhn(by_name, colour, tmp_path):
    (tmp_path / "svhn").mkdir()
    for part in ("train", "test"):
        variables = {"X": colour[0].transpose(2, 3, 1, 0), "y": colour[1] + 1}
        scipy.io.savemat(tmp_path / f"svhn/{part}_32x32.mat", variables)
    split = load("svhn", tmp_path) if by_name else load(str(tmp_path / "svhn"))
    assert np.array_equal(split.test.labels, (colour[1] + 1) % 10)
    assert "svhn-train is not the SVHN training set: 10 images instead of 73257 (sha256 " in split.train.checksum


def test_load_paths(idx_files, binary_batches, grey, write_files, tmp_path):
    assert len(load(str(write_files(tmp_path / "i", idx_files))).train) == 20
    assert len(load(str(write_files(tmp_path / "c", binary_batches))).test) == 10
    np.savez(tmp_path / "n.npz", images=grey[0], labels=grey[1])
    split = load(str(tmp_path / "n.npz"))
    assert split.train.name == "n-train"
    assert split.train.checksum.startswith("n-train is no content known here (sha256 ")


def test_load_image_folder_of_a_size(grey, tmp_path):
    for index, (image, label) in enumerate(zip(*grey, strict=True)):
        (tmp_path / str(label)).mkdir(exist_ok=True)
        Image.fromarray(image[0]).save(tmp_path / str(label) / f"{index}.png")
    assert load(str(tmp_path), image_size=(3, 2)).train.image_shape == (1, 3, 2)
    with pytest.raises(DataError) as error:
        load(str(tmp_path), image_size=(0, 2))
    assert str(error.value) == "An image size (height, width) must be at least (1, 1), not (0, 2)"


def test_load_size_of_other_formats_wrong():
    assert load("digits", image_size=(8, 8)).train.image_shape == (1, 8, 8)
    with pytest.raises(DataError) as error:
        load("digits", image_size=(16, 8))
    assert str(error.value) == ("Only image folders and archives are scaled; 'digits' has images of 8x8: leave the "
                                "image size (16, 8) out")


def test_load_without_root_wrong():
    with pytest.raises(DataError) as error:
        load("mnist")
    assert str(error.value) == ("Data set 'mnist' needs the folder that holds it: give it, or set ESPALIER_DATA (only "
                                "'digits' needs none)")


def test_load_empty_root_wrong(tmp_path):
    with pytest.raises(DataError) as error:
        load("mnist", tmp_path)
    assert str(error.value) == (f"Data set 'mnist' is not in {tmp_path}/mnist, {tmp_path}/MNIST/raw, {tmp_path}: put "
                                "its original files into one of these, or point the data folder or "
                                "ESPALIER_DATA elsewhere")


@pytest.mark.parametrize("name", ["fashion-mnist", "cifar10", "svhn"])
def test_load_missing_root_wrong(name, tmp_path):
    with pytest.raises(DataError, match=f"^Data set '{name}' is not in "):
        load(name, tmp_path / "nowhere")


def test_load_unknown_name_wrong():
    with pytest.raises(DataError) as error:
        load("imagenet", Path())
    assert str(error.value) == ("There is no data set 'imagenet': give one of digits, mnist, fashion-mnist, cifar10, "
                                "svhn, imagenet-sample, or the path of an existing folder or file")


def test_load_unknown_format_wrong(tmp_path):
    (tmp_path / "readme.txt").write_text("no data")
    with pytest.raises(DataError) as error:
        load(str(tmp_path))
    assert str(error.value) == (
        f"{tmp_path} holds no data set of a known format: give a folder with IDX files, CIFAR-10 batches, SVHN's "
        "train_32x32.mat and test_32x32.mat, an archive of images beside classes.csv, or one image folder per class; "
        "an .npz file; or a tar archive of CIFAR-10")


def test_load_corrupt_archive_wrong(tmp_path):
    (tmp_path / "x.tar.gz").write_bytes(b"not an archive")
    with pytest.raises(DataError, match="is corrupt or truncated"):
        load(str(tmp_path / "x.tar.gz"))
