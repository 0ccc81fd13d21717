"""Handwritten digits, the default that needs no download: 1,797 images of 8x8 pixels, ten classes.

Alpaydin & Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998,
https://doi.org/10.24432/C50P49; the 1,797 images are that set's test part, as scikit-learn ships it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from qresearch.data.dataset import Dataset, Split, stratified_order

TRAIN, VALIDATION, TEST = 1097, 300, 400
SPLIT_SEED = 0  # fixed: every result on digits is on the same 400 test images


def prepare(inputs: Any) -> Any:
    """Computes ``x / 16`` in float32: pixel values 0..16 become 0..1. ``inputs``: [n, 8, 8, 1]."""
    return inputs.astype(np.float32) / 16


def load_digits(folder: Path | None = None) -> Dataset:
    """Loads 1,097 / 300 / 400 images, stratified by class, from scikit-learn; ``folder`` is not used."""
    from sklearn import datasets  # here: importing scikit-learn takes a second that `--help` should not pay

    bunch = datasets.load_digits()
    images = bunch.images.astype(np.uint8)[..., None]
    targets = bunch.target.astype(np.int32)
    parts = np.split(stratified_order(targets, SPLIT_SEED), [TRAIN, TRAIN + VALIDATION])
    train, validation, test = (Split(images[part], targets[part]) for part in map(np.sort, parts))
    return Dataset(
        name="digits",
        train=train,
        validation=validation,
        test=test,
        classes=10,
        prepare=prepare,
        example_shape=(8, 8, 1),
        source="scikit-learn load_digits (UCI optical recognition of handwritten digits)",
    )
