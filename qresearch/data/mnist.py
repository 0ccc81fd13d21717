"""MNIST and Fashion-MNIST from their official files: 60,000 training and 10,000 test images of 28x28, ten classes.

LeCun, Bottou, Bengio & Haffner, "Gradient-based learning applied to document recognition", 1998.
Xiao, Rasul & Vollgraf, "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning Algorithms", 2017,
https://arxiv.org/abs/1708.07747. Both have the same file names; the checksums keep them apart.
Five thousand training images (a fixed draw, the classes in proportion) are set aside for validation.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from qresearch.data.dataset import FOLDER_VARIABLE, Dataset, Split, require_folder, stratified_order
from qresearch.data.idx import IdxFile, read_idx
from qresearch.errors import DataError

CLASSES = 10
VALIDATION = 5_000
SPLIT_SEED = 0  # fixed: every result has the same validation images
IMAGES, LABELS = "images-idx3-ubyte.gz", "labels-idx1-ubyte.gz"


class Source(NamedTuple):
    """The four official files of one data set: images and labels of train, then of test."""

    name: str
    train: tuple[IdxFile, IdxFile]
    test: tuple[IdxFile, IdxFile]
    validation: int
    where: str
    citation: str


def _source(name: str, link: str, citation: str, md5: tuple[str, str, str, str]) -> Source:
    def pair(prefix: str, count: int, images: str, labels: str) -> tuple[IdxFile, IdxFile]:
        return IdxFile(f"{prefix}-{IMAGES}", (count, 28, 28), images), IdxFile(f"{prefix}-{LABELS}", (count,), labels)

    where = (
        f"get the four files train-{IMAGES}, train-{LABELS}, t10k-{IMAGES}, t10k-{LABELS} from {link} and set "
        f"data.folder or {FOLDER_VARIABLE} to the folder that holds them or {name}/"
    )
    return Source(name, pair("train", 60_000, *md5[:2]), pair("t10k", 10_000, *md5[2:]), VALIDATION, where, citation)


MNIST = _source(
    "mnist",
    "http://yann.lecun.com/exdb/mnist/",
    "MNIST, LeCun et al. 1998",
    (
        "6bbc9ace898e44ae57da46a324031adb",
        "a25bea736e30d166cdddb491f175f624",
        "2646ac647ad5339dbf082846283269ea",
        "27ae3e4e09519cfbb04c329615203637",
    ),
)
FASHION_MNIST = _source(
    "fashion_mnist",
    "https://github.com/zalandoresearch/fashion-mnist",
    "Fashion-MNIST, Xiao et al. 2017",
    (
        "f4a8712d7a061bf5bd6d2ca38dc4d50a",
        "9018921c3c673c538a1fc5bad174d6f9",
        "8181f5470baa50b63fa0f6fddb340f0a",
        "15d484375f8d13e6eb1aabb0c3f46965",
    ),
)


def prepare(inputs: Any) -> Any:
    """Computes ``x / 255`` in float32. ``inputs``: [n, 28, 28, 1]."""
    return inputs.astype(np.float32) / 255


def find_files(source: Source, folder: Path) -> Path | None:
    """Returns where any of the four files lies: ``<folder>/<name>``, else ``folder`` itself, else None."""
    names = [file.name for file in (*source.train, *source.test)]
    # The data set's own folder first: a folder for all data may hold the other one's files, which have the same names.
    places = (folder / source.name, folder)
    return next((place for place in places if any((place / name).is_file() for name in names)), None)


def read_split(source: Source, place: Path, files: tuple[IdxFile, IdxFile]) -> Split:
    """Reads images and labels; DataError also for a label above 9."""
    images, labels = (read_idx(source.name, place / file.name, file, source.where) for file in files)
    wrong = np.flatnonzero(labels >= CLASSES)
    if wrong.size:
        raise DataError(
            f"{source.name}: {place / files[1].name} has label {labels[wrong[0]]} at record {wrong[0]} "
            f"({wrong.size} such records), expected 0 to {CLASSES - 1}, so it is damaged; {source.where}"
        )
    return Split(images[..., None], labels.astype(np.int32))


def load_source(source: Source, folder: Path | None) -> Dataset:
    """Loads the three splits of one source from ``folder`` or QRESEARCH_DATA."""
    resolved = require_folder(source.name, folder, source.where)
    place = find_files(source, resolved)
    if place is None:
        raise DataError(
            f"{source.name}: no {source.test[0].name} in {resolved} or {resolved / source.name}; {source.where}"
        )
    everything, test = read_split(source, place, source.train), read_split(source, place, source.test)
    order = stratified_order(everything.targets, SPLIT_SEED)
    parts = np.sort(order[source.validation :]), np.sort(order[: source.validation])
    train, validation = (Split(everything.inputs[part], everything.targets[part]) for part in parts)
    return Dataset(source.name, train, validation, test, CLASSES, prepare, (28, 28, 1), source.citation)


def load_mnist(folder: Path | None = None) -> Dataset:
    """Loads MNIST, 55,000 / 5,000 / 10,000 uint8 images, from its idx.gz files or the folder ``mnist`` of them."""
    return load_source(MNIST, folder)


def load_fashion_mnist(folder: Path | None = None) -> Dataset:
    """Loads Fashion-MNIST, 55,000 / 5,000 / 10,000 uint8 images, from its idx.gz files or ``fashion_mnist`` of them."""
    return load_source(FASHION_MNIST, folder)
