"""Wines by their chemistry: 178 examples of 13 measurements, three growers."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from qresearch.data import Dataset, Split

ORDER = np.random.default_rng(0).permutation(178)


def prepare(inputs):
    """Measurements are standardized already."""
    return inputs.astype(np.float32)


def load_wine(folder: Path | None = None) -> Dataset:
    """Aeberhard & Forina, Wine, UCI, 1991, https://doi.org/10.24432/C5PC7J, as scikit-learn ships it."""
    from sklearn import datasets

    bunch = datasets.load_wine()
    values = ((bunch.data - bunch.data.mean(0)) / bunch.data.std(0)).astype(np.float32)
    parts = np.split(ORDER, [100, 130])
    train, validation, test = (Split(values[part], bunch.target[part].astype(np.int32)) for part in parts)
    return Dataset("wine", train, validation, test, 3, prepare, (13,), "scikit-learn load_wine")
