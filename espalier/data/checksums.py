"""Which standard data set a content is: a note for logs and reports, never an error."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

from espalier.data.dataset import Dataset, Split


@dataclass(frozen=True, slots=True)
class Standard:
    """A well-known set of images.

    Parameters
    ----------
    name : str
        What ``load`` calls it.
    title : str
    images : int
        How many it has.
    sha256 : str or None
        Of its :func:`content_digest`; None where we never saw a copy.
    """

    name: str
    title: str
    images: int
    sha256: str | None


#: MNIST and Fashion-MNIST: from files whose MD5 sums are the published ones. CIFAR-10: from the copy that this
#: project measures on, recovered image by image, some from JPEG; the content of the published archive was never seen.
STANDARDS = (
    Standard("digits-train", "scikit-learn's digits, training part", 1438,
             "ed31a65c41e2e33c5c864f5f5f4f0af051bed9a79774426ec9752b746773957b"),
    Standard("digits-test", "scikit-learn's digits, test part", 359,
             "018d56301f235f3bff13173da42ae1e2f8f85e11fdaa44b5eee9218bbe097116"),
    Standard("mnist-train", "the MNIST training set", 60_000,
             "d18cfd466eb143ac1097fde604dba9eec4116885869d04cc648b510949f9e88c"),
    Standard("mnist-test", "the MNIST test set", 10_000,
             "a0863a96c44e5666edbb30c4071ee79ca0514c621e6349c5967fc78e7305c891"),
    Standard("fashion-mnist-train", "the Fashion-MNIST training set", 60_000,
             "1f243a60b4b748a44c48b9a6f6907be2a08bee3e4e226f0e86fbde8e147b745a"),
    Standard("fashion-mnist-test", "the Fashion-MNIST test set", 10_000,
             "9a494dc49efeb996f4076c469b31cd058152067b1594ba6ab85dd739fce3775e"),
    Standard("cifar10-train", "the recovered CIFAR-10 training set (93 images from JPEG)", 50_000,
             "e730c2253488d2f14b1d8a29b42bd1b5afa40d144775572d26e1e8724a88f33a"),
    Standard("cifar10-test", "the recovered CIFAR-10 test set", 10_000,
             "23d072a67e402745bbacd08a40c1e9c3587a930413de59138b02be736c60cda1"),
    Standard("svhn-train", "the SVHN training set", 73_257, None),
    Standard("svhn-test", "the SVHN test set", 26_032, None),
)


def content_digest(dataset: Dataset) -> str:
    """SHA-256 in hexadecimal of the images' elements in N C H W order, then the labels as 8-byte little-endian words.

    It does not depend on the file format the content came from.
    """
    digest = hashlib.sha256(dataset.images.tobytes())
    digest.update(dataset.labels.astype("<i8").tobytes())
    return digest.hexdigest()


def checksum_note(dataset: Dataset) -> str:
    """Which standard set this is, how it differs from the one it is called after, or that it is unknown."""
    digest = content_digest(dataset)
    known = next((standard for standard in STANDARDS if standard.sha256 == digest), None)
    namesake = next((standard for standard in STANDARDS if standard.name == dataset.name), None)
    if known:
        verdict = f"is {known.title}"
    elif namesake is None:
        verdict = "is no content known here"
    elif namesake.images != len(dataset):
        verdict = f"is not {namesake.title}: {len(dataset)} images instead of {namesake.images}"
    elif namesake.sha256 is None:
        verdict = f"has as many images as {namesake.title}; its content was not compared"
    else:
        verdict = f"is not {namesake.title}: as many images, but other content"
    return f"{dataset.name} {verdict} (sha256 {digest})"


def annotated(split: Split) -> Split:
    """``split`` with the checksum notes filled in."""
    return Split(*(replace(part, checksum=checksum_note(part)) for part in (split.train, split.test)))
