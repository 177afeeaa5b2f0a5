"""Images in class folders."""

import numpy as np
import pytest
from PIL import Image

from espalier.data.image_folder import read_split
from espalier.errors import DataError


def draw(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def pictures(tmp_path, colour):
    """``train`` and ``test`` with three cats and two dogs each, in colour."""
    for part in ("train", "test"):
        for index, name in enumerate(("cat/1", "cat/2", "cat/3", "dog/1", "dog/2")):
            draw(tmp_path / part / f"{name}.png", colour[0][index].transpose(1, 2, 0))
    return tmp_path


def test_image_folder(pictures, colour):
    (pictures / "train/cat/notes.txt").write_text("passed over")
    (pictures / "train/.hidden").mkdir()
    split = read_split(pictures, "pets")
    for part in (split.train, split.test):
        assert np.array_equal(part.images, colour[0][:5])
        assert part.labels.tolist() == [0, 0, 0, 1, 1]
        assert part.classes == ("cat", "dog")
    assert (split.train.name, split.test.name) == ("pets-train", "pets-test")


def test_image_folder_scaled(pictures):
    draw(pictures / "train/dog/3.png", np.full((9, 7, 3), 50, np.uint8))
    split = read_split(pictures, "pets", size=(6, 8))
    assert split.train.image_shape == split.test.image_shape == (3, 6, 8)
    assert (split.train.images[-1] == 50).all()


def test_image_folder_grey_without_parts(tmp_path, grey):
    for index, (image, label) in enumerate(zip(*grey, strict=True)):
        draw(tmp_path / str(label) / f"{index:02}.png", image[0])
    split = read_split(tmp_path, "toy")
    assert split.train.image_shape == (1, 5, 4)
    assert (len(split.train), len(split.test)) == (20, 10)
    read = {(image.tobytes(), label) for part in (split.train, split.test)
            for image, label in zip(part.images, part.labels.tolist(), strict=True)}
    assert read == {(image.tobytes(), label) for image, label in zip(grey[0], grey[1].tolist(), strict=True)}


def test_image_folder_one_grey_image_among_colour(pictures):
    draw(pictures / "test/dog/2.png", np.full((32, 32), 9, np.uint8))
    split = read_split(pictures, "pets")
    assert split.test.image_shape == (3, 32, 32)
    assert (split.test.images[-1] == 9).all()


def test_image_folder_sizes_wrong(pictures):
    draw(pictures / "train/dog/2.png", np.zeros((9, 7, 3), np.uint8))
    with pytest.raises(DataError) as error:
        read_split(pictures, "pets")
    assert str(error.value) == (f"Without an image size all images must be equally large; {pictures}/train/dog/2.png "
                                "is (C, H, W) = (3, 9, 7), the first one (3, 32, 32): scale them alike, or give "
                                "load() an image size")


def test_image_folder_classes_wrong(pictures):
    (pictures / "test/dog").rename(pictures / "test/fox")
    with pytest.raises(DataError) as error:
        read_split(pictures, "pets")
    assert str(error.value) == (f"{pictures}/train and {pictures}/test must have the same class folders, not cat, dog "
                                "and cat, fox")


def test_image_folder_empty_class_wrong(pictures):
    for part in ("train", "test"):
        (pictures / part / "eel").mkdir()
    with pytest.raises(DataError) as error:
        read_split(pictures, "pets")
    assert str(error.value) == ("Every class folder must hold an image (.bmp, .gif, .jpeg, .jpg, .pbm, .pgm, .png, "
                                f".ppm, .tif, .tiff, .webp); {pictures}/train/eel has none")


@pytest.mark.parametrize("kept", [0, 20, -300])
def test_image_folder_damaged_wrong(kept, pictures):
    file = pictures / "test/cat/2.png"
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(DataError) as error:
        read_split(pictures, "pets")
    assert str(error.value).startswith(f"{file} is no readable image (")
    assert str(error.value).endswith("): replace or remove it")


@pytest.mark.parametrize(("kind", "mode"), [(np.uint16, "I;16"), (np.int32, "I"), (np.float32, "F")])
def test_image_folder_of_wide_pixels_wrong(kind, mode, pictures):
    draw(pictures / "test/dog/2.tif", np.full((32, 32), 1000).astype(kind))
    with pytest.raises(DataError) as error:
        read_split(pictures, "pets")
    assert str(error.value) == (f"Images must have at most 8 bits a channel, and {pictures}/test/dog/2.tif has the "
                                f"pixel mode {mode!r}: save it with 8 bits")
