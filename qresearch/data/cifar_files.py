"""The official binary layout of CIFAR-10 and CIFAR-100: records of label bytes and 3,072 pixel bytes.

Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009,
https://www.cs.toronto.edu/~kriz/cifar.html.
The pixels of a record are 32x32 red, then green, then blue.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from qresearch.data.dataset import FOLDER_VARIABLE, Dataset, Prepare, Split, require_folder, stratified_order
from qresearch.errors import DataError

SHAPE = (32, 32, 3)
VALIDATION = 5_000  # of the 50,000 training images
SPLIT_SEED = 0  # fixed: every result has the same validation images


class Layout(NamedTuple):
    """One of the two sets. folder: as it unpacks. train, test: files and their records, in order. labels: what each
    label byte says and how many classes it has; the last one is the target.
    """

    name: str
    title: str
    folder: str
    train: dict[str, int]
    test: dict[str, int]
    labels: tuple[tuple[str, int], ...]

    @property
    def record_bytes(self) -> int:
        return len(self.labels) + 32 * 32 * 3

    @property
    def files(self) -> dict[str, int]:
        return self.train | self.test

    @property
    def where(self) -> str:
        """What to do where the files are not found."""
        return (
            "get the binary version from https://www.cs.toronto.edu/~kriz/cifar.html, unpack it, and set data.folder "
            f"or {FOLDER_VARIABLE} to the folder that holds {self.folder}"
        )


def load_layout(layout: Layout, folder: Path | None, prepare: Prepare) -> Dataset:
    """45,000 / 5,000 / 10,000 uint8 images from ``folder`` or QRESEARCH_DATA: the layout or its parent. Validation has
    the same number of every class.
    """
    place = find_layout(layout, folder)
    (test,) = (read_file(layout, place / name) for name in layout.test)
    parts = [read_file(layout, place / name) for name in layout.train]
    images, targets = (np.concatenate(arrays) for arrays in zip(*((part.inputs, part.targets) for part in parts)))
    order = stratified_order(targets, SPLIT_SEED)
    splits = np.sort(order[VALIDATION:]), np.sort(order[:VALIDATION])
    train, validation = (Split(images[split], targets[split]) for split in splits)
    source = f"{layout.title} binary version, Krizhevsky 2009"
    return Dataset(layout.name, train, validation, test, layout.labels[-1][1], prepare, SHAPE, source)


def find_layout(layout: Layout, folder: Path | None) -> Path:
    """Where the files lie: ``folder`` (else QRESEARCH_DATA) itself, or the layout's folder inside it."""
    resolved = require_folder(layout.name, folder, layout.where)
    places = (resolved, resolved / layout.folder)
    found = next((place for place in places if any((place / name).is_file() for name in layout.files)), None)
    if found is None:
        names = " or ".join(layout.test)
        raise DataError(f"{layout.name}: no {names} in {places[0]} or {places[1]}; {layout.where}")
    return found


def read_file(layout: Layout, path: Path) -> Split:
    """One file; DataError if it is missing, of another size, or with a label that there is no class for."""
    records = layout.files[path.name]
    expected = records * layout.record_bytes
    if not path.is_file():
        raise DataError(f"{layout.name}: {path} is missing, expected a file of {expected:,} bytes; {layout.where}")
    size = path.stat().st_size
    if size != expected:
        raise DataError(
            f"{layout.name}: {path} has {size:,} bytes, expected {expected:,} ({records:,} records of "
            f"{layout.record_bytes:,}), so it is truncated or not the binary version; {layout.where}"
        )
    content = np.fromfile(path, np.uint8).reshape(records, layout.record_bytes)
    for column, (kind, classes) in enumerate(layout.labels):
        wrong = np.flatnonzero(content[:, column] >= classes)
        if wrong.size:
            raise DataError(
                f"{layout.name}: {path} has {kind} {content[wrong[0], column]} at record {wrong[0]} ({wrong.size} such "
                f"records), expected 0 to {classes - 1}, so it is damaged; {layout.where}"
            )
    labels = len(layout.labels)
    return Split(_channels_last(content[:, labels:]), content[:, labels - 1].astype(np.int32))


def _channels_last(pixels: UInt8[np.ndarray, "n 3072"]) -> UInt8[np.ndarray, "n 32 32 3"]:
    return np.ascontiguousarray(pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
