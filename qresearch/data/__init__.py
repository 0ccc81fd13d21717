"""Data sets. ``DATASETS[name](folder)`` loads one; a set that a library ships needs no folder."""

from __future__ import annotations

from qresearch.data.cifar10 import load_cifar10
from qresearch.data.cifar100 import load_cifar100
from qresearch.data.dataset import Dataset, Loader, Split, Streamed, epoch_permutation, resolve_folder
from qresearch.data.digit_scenes import load_digit_scenes
from qresearch.data.digits import load_digits
from qresearch.data.imagefolder import load_imagefolder
from qresearch.data.mnist import load_fashion_mnist, load_mnist
from qresearch.data.text import load_text
from qresearch.registry import Registry

DATASETS: Registry[Loader] = Registry(
    "data",
    {
        "digits": load_digits,
        "mnist": load_mnist,
        "fashion_mnist": load_fashion_mnist,
        "cifar10": load_cifar10,
        "cifar100": load_cifar100,
        "imagefolder": load_imagefolder,
        "text": load_text,
        "digit_scenes": load_digit_scenes,
    },
)

__all__ = ["DATASETS", "Dataset", "Loader", "Split", "Streamed", "epoch_permutation", "resolve_folder"]
