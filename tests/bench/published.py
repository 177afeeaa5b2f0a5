"""Files as published networks come in, with random weights, and as samples of ImageNet come in."""

from __future__ import annotations

import json
import tarfile
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def tflite_arrays(random: np.random.Generator) -> dict[str, NDArray]:
    """Arrays of a file: asymmetric padding, groups, a residual, a mean, a classifier of background and two classes."""
    operators = [
        {"op": "conv", "x": "image", "y": "a", "p": 0, "stride": [2, 2], "pad_lrtb": [0, 1, 0, 1], "groups": 1,
         "act": "relu6", "wq": {"scale": [0.02], "zero_point": [120]}, "q": {"scale": 1.0}},
        {"op": "conv", "x": "a", "y": "b", "p": 1, "stride": [1, 1], "pad_lrtb": [1, 1, 1, 1], "groups": 4,
         "act": "none", "wq": {"scale": [0.01, 0.02, 0.03, 0.04], "zero_point": [100, 110, 120, 130]}},
        {"op": "add", "x": "a", "x2": "b", "y": "c", "act": "relu"},
        {"op": "avgpool", "x": "c", "y": "d", "kernel": [4, 4], "stride": [2, 2]},
        {"op": "conv", "x": "d", "y": "e", "p": 2, "stride": [1, 1], "pad_lrtb": [0, 0, 0, 0], "groups": 1,
         "act": "none", "wq": {"scale": [0.1], "zero_point": [128]}},
        {"op": "reshape", "x": "e", "y": "f"}, {"op": "softmax", "x": "f", "y": "g"}]
    image = {"name": "image", "shape_nhwc": [1, 8, 8, 3], "scale": 0.0078125, "zero_point": 128}
    shapes = ((4, 3, 3, 3), (4, 1, 3, 3), (3, 4, 1, 1))
    return {"graph": np.array(json.dumps({"input": image, "ops": operators, "info": {}})),
            **{f"w{number}": random.integers(0, 256, shape).astype(np.uint8) for number, shape in enumerate(shapes)},
            **{f"b{number}": random.normal(size=shape[0]).astype(np.float32) for number, shape in enumerate(shapes)}}


def save_sample(folder: Path, random: np.random.Generator, count: int) -> None:
    """An archive of pictures (3, 16, 16) of the classes 0 and 1, in turn, beside ``classes.csv``."""
    (folder / "classes.csv").write_text("index,wnid,name\n0,n0,a\n1,n1,b\n")
    with tarfile.open(folder / "images.tar", "w") as archive:
        for number in range(count):
            buffer = BytesIO()
            Image.fromarray(random.integers(0, 256, (16, 16, 3)).astype(np.uint8)).save(buffer, "PNG")
            member = tarfile.TarInfo(f"n{number % 2}/{number}.png")
            member.size = buffer.tell()
            buffer.seek(0)
            archive.addfile(member, buffer)
