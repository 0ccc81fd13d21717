"""CIFAR-10: 50,000 training and 10,000 test images of 32x32x3, ten classes.

Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009,
https://www.cs.toronto.edu/~kriz/cifar.html.
Five thousand of the training images (a fixed draw, 500 per class) are set aside for validation.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from qresearch.data.cifar_files import Layout, load_layout
from qresearch.data.dataset import Dataset

CIFAR10 = Layout(
    name="cifar10",
    title="CIFAR-10",
    folder="cifar-10-batches-bin",
    train={f"data_batch_{i}.bin": 10_000 for i in range(1, 6)},
    test={"test_batch.bin": 10_000},
    labels=(("label", 10),),
)
# ImageNet's channel statistics, not CIFAR-10's own: what the published CIFAR ResNets were trained with.
MEAN = np.array([0.485, 0.456, 0.406], np.float32).reshape(1, 1, 1, 3)
STD = np.array([0.229, 0.224, 0.225], np.float32).reshape(1, 1, 1, 3)


def prepare(inputs: Any) -> Any:
    """Computes ``(x / 255 - mean) / std`` per channel in float32. ``inputs``: [n, 32, 32, 3]."""
    return (inputs.astype(np.float32) / 255 - MEAN) / STD


def load_cifar10(folder: Path | None = None) -> Dataset:
    """Loads 45,000 / 5,000 / 10,000 uint8 images from ``folder`` or QRESEARCH_DATA: the layout or its parent."""
    return load_layout(CIFAR10, folder, prepare)
