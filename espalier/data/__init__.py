"""Readers of the standard image data sets, and how their images are ordered, augmented and turned into numbers."""

from espalier.data.augment import augment
from espalier.data.batches import batches
from espalier.data.dataset import Dataset, Split
from espalier.data.image_archive import read_archive
from espalier.data.load import data_folder, load, names, scales
from espalier.data.normalise import normalise
from espalier.data.stratified import stratified

__all__ = ["Dataset", "Split", "augment", "batches", "data_folder", "load", "names", "normalise", "read_archive",
           "scales", "stratified"]
