"""CIFAR-10 in its official binary layout: 50,000 training and 10,000 test images of 32x32x3, ten classes.

Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009,
https://www.cs.toronto.edu/~kriz/cifar.html.
A record is one label byte and 3,072 pixel bytes: 32x32 red, then green, then blue. Five thousand of the
50,000 training images (a fixed draw, 500 per class) are set aside for validation.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32, UInt8

from qresearch.data.dataset import FOLDER_VARIABLE, Dataset, Split, resolve_folder, stratified_order
from qresearch.errors import DataError

LAYOUT = "cifar-10-batches-bin"
TRAIN_FILES = tuple(f"data_batch_{i}.bin" for i in range(1, 6))
TEST_FILE = "test_batch.bin"
CLASSES = 10
RECORDS, RECORD_BYTES = 10_000, 1 + 32 * 32 * 3
FILE_BYTES = RECORDS * RECORD_BYTES
VALIDATION = 5_000
SPLIT_SEED = 0  # fixed: every result on CIFAR-10 has the same validation images

# ImageNet's channel statistics, not CIFAR-10's own: what the published CIFAR ResNets were trained with.
MEAN = np.array([0.485, 0.456, 0.406], np.float32).reshape(1, 1, 1, 3)
STD = np.array([0.229, 0.224, 0.225], np.float32).reshape(1, 1, 1, 3)

WHERE = (
    "get the binary version from https://www.cs.toronto.edu/~kriz/cifar.html, unpack it, and set data.folder "
    f"or {FOLDER_VARIABLE} to the folder that holds {LAYOUT}"
)


def prepare(inputs: Any) -> Any:
    """Computes ``(x / 255 - mean) / std`` per channel in float32. ``inputs``: [n, 32, 32, 3]."""
    return (inputs.astype(np.float32) / 255 - MEAN) / STD


def find_layout(folder: Path | None) -> Path:
    """Returns where the six files lie: ``folder`` (else QRESEARCH_DATA) itself, or the layout inside it."""
    resolved = resolve_folder(folder)
    if resolved is None:
        raise DataError(f"cifar10: no data folder given, and CIFAR-10 is not part of qresearch; {WHERE}")
    candidates = (resolved, resolved / LAYOUT)
    for candidate in candidates:
        if any((candidate / name).is_file() for name in (*TRAIN_FILES, TEST_FILE)):
            return candidate
    raise DataError(f"cifar10: no {TEST_FILE} in {candidates[0]} or {candidates[1]}; {WHERE}")


def read_file(path: Path) -> Split:
    """Reads one file of 10,000 records; DataError if missing, of another size, or with a label above 9."""
    if not path.is_file():
        raise DataError(f"cifar10: {path} is missing, expected a file of {FILE_BYTES:,} bytes; {WHERE}")
    size = path.stat().st_size
    if size != FILE_BYTES:
        raise DataError(
            f"cifar10: {path} has {size:,} bytes, expected {FILE_BYTES:,} (10,000 records of 3,073), "
            f"so it is truncated or not the binary version; {WHERE}"
        )
    records = np.fromfile(path, np.uint8).reshape(RECORDS, RECORD_BYTES)
    wrong = np.flatnonzero(records[:, 0] >= CLASSES)
    if wrong.size:
        raise DataError(
            f"cifar10: {path} has label {records[wrong[0], 0]} at record {wrong[0]} ({wrong.size} such records), "
            f"expected 0 to {CLASSES - 1}, so it is damaged; {WHERE}"
        )
    return Split(channels_last(records[:, 1:]), records[:, 0].astype(np.int32))


def channels_last(pixels: UInt8[np.ndarray, "n 3072"]) -> UInt8[np.ndarray, "n 32 32 3"]:
    """Computes images from rows of 32x32 red, then green, then blue bytes."""
    return np.ascontiguousarray(pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))


def _split_indices(targets: Int32[np.ndarray, "n"]) -> tuple[np.ndarray, np.ndarray]:
    order = stratified_order(targets, SPLIT_SEED)
    return np.sort(order[VALIDATION:]), np.sort(order[:VALIDATION])


def load_cifar10(folder: Path | None = None) -> Dataset:
    """Loads 45,000 / 5,000 / 10,000 uint8 images from ``folder`` or QRESEARCH_DATA: the layout or its parent."""
    layout = find_layout(folder)
    test = read_file(layout / TEST_FILE)
    batches = [read_file(layout / name) for name in TRAIN_FILES]
    images = np.concatenate([batch.inputs for batch in batches])
    targets = np.concatenate([batch.targets for batch in batches])
    train, validation = (Split(images[part], targets[part]) for part in _split_indices(targets))
    return Dataset(
        name="cifar10",
        train=train,
        validation=validation,
        test=test,
        classes=CLASSES,
        prepare=prepare,
        example_shape=(32, 32, 3),
        source="CIFAR-10 binary version, Krizhevsky 2009",
    )
