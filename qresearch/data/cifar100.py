"""CIFAR-100 in its official binary layout: 50,000 training and 10,000 test images of 32x32x3, a hundred fine classes.

Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009,
https://www.cs.toronto.edu/~kriz/cifar.html.
A record is a coarse label byte (0 to 19), a fine label byte (0 to 99) and 3,072 pixel bytes as in CIFAR-10. The fine
labels are the targets. Five thousand training images (a fixed draw, 50 per class) are set aside for validation.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from qresearch.data.cifar10 import channels_last
from qresearch.data.dataset import FOLDER_VARIABLE, Dataset, Split, require_folder, stratified_order
from qresearch.errors import DataError

LAYOUT = "cifar-100-binary"
RECORDS = {"train.bin": 50_000, "test.bin": 10_000}
RECORD_BYTES = 2 + 32 * 32 * 3
COARSE, CLASSES = 20, 100
VALIDATION = 5_000
SPLIT_SEED = 0  # fixed: every result on CIFAR-100 has the same validation images

# CIFAR-100's own channel statistics over the 50,000 training images, in [0, 1].
MEAN = np.array([0.5071, 0.4867, 0.4408], np.float32).reshape(1, 1, 1, 3)
STD = np.array([0.2675, 0.2565, 0.2761], np.float32).reshape(1, 1, 1, 3)

WHERE = (
    "get the binary version from https://www.cs.toronto.edu/~kriz/cifar.html, unpack it, and set data.folder "
    f"or {FOLDER_VARIABLE} to the folder that holds {LAYOUT}"
)


def prepare(inputs: Any) -> Any:
    """Computes ``(x / 255 - mean) / std`` per channel in float32. ``inputs``: [n, 32, 32, 3]."""
    return (inputs.astype(np.float32) / 255 - MEAN) / STD


def find_layout(folder: Path | None) -> Path:
    """Returns where the two files lie: the layout inside ``folder`` (else QRESEARCH_DATA), or ``folder`` itself."""
    resolved = require_folder("cifar100", folder, WHERE)
    places = (resolved / LAYOUT, resolved)
    found = next((place for place in places if any((place / name).is_file() for name in RECORDS)), None)
    if found is None:
        raise DataError(f"cifar100: no train.bin or test.bin in {resolved} or {resolved / LAYOUT}; {WHERE}")
    return found


def read_file(path: Path, records: int) -> Split:
    """Reads one file; DataError if missing, of another size, or with a coarse label above 19 or a fine one above 99."""
    expected = records * RECORD_BYTES
    if not path.is_file():
        raise DataError(f"cifar100: {path} is missing, expected a file of {expected:,} bytes; {WHERE}")
    size = path.stat().st_size
    if size != expected:
        raise DataError(
            f"cifar100: {path} has {size:,} bytes, expected {expected:,} ({records:,} records of 3,074), "
            f"so it is truncated or not the binary version; {WHERE}"
        )
    content = np.fromfile(path, np.uint8).reshape(records, RECORD_BYTES)
    for column, kind, classes in ((0, "coarse", COARSE), (1, "fine", CLASSES)):
        wrong = np.flatnonzero(content[:, column] >= classes)
        if wrong.size:
            raise DataError(
                f"cifar100: {path} has {kind} label {content[wrong[0], column]} at record {wrong[0]} ({wrong.size} "
                f"such records), expected 0 to {classes - 1}, so it is damaged; {WHERE}"
            )
    return Split(channels_last(content[:, 2:]), content[:, 1].astype(np.int32))


def load_cifar100(folder: Path | None = None) -> Dataset:
    """Loads 45,000 / 5,000 / 10,000 uint8 images from ``folder`` or QRESEARCH_DATA: the layout or its parent."""
    layout = find_layout(folder)
    test, everything = (read_file(layout / name, RECORDS[name]) for name in ("test.bin", "train.bin"))
    order = stratified_order(everything.targets, SPLIT_SEED)
    parts = np.sort(order[VALIDATION:]), np.sort(order[:VALIDATION])
    train, validation = (Split(everything.inputs[part], everything.targets[part]) for part in parts)
    return Dataset(
        name="cifar100",
        train=train,
        validation=validation,
        test=test,
        classes=CLASSES,
        prepare=prepare,
        example_shape=(32, 32, 3),
        source="CIFAR-100 binary version, Krizhevsky 2009",
    )
