"""Data sets. ``DATASETS[name](folder)`` loads one; a set that a library ships needs no folder."""

from __future__ import annotations

from qresearch.data.cifar10 import load_cifar10
from qresearch.data.dataset import Dataset, Loader, Split, epoch_permutation, resolve_folder
from qresearch.data.digits import load_digits

DATASETS: dict[str, Loader] = {
    "digits": load_digits,
    "cifar10": load_cifar10,
}

__all__ = ["DATASETS", "Dataset", "Loader", "Split", "epoch_permutation", "resolve_folder"]
