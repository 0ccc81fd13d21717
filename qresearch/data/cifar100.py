"""CIFAR-100: 50,000 training and 10,000 test images of 32x32x3, a hundred fine classes.

Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009,
https://www.cs.toronto.edu/~kriz/cifar.html.
A record has a coarse label (0 to 19) before the fine one (0 to 99), which is the target. Five thousand of the training
images (a fixed draw, 50 per class) are set aside for validation.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from qresearch.data.cifar_files import Layout, load_layout
from qresearch.data.dataset import Dataset

CIFAR100 = Layout(
    name="cifar100",
    title="CIFAR-100",
    folder="cifar-100-binary",
    train={"train.bin": 50_000},
    test={"test.bin": 10_000},
    labels=(("coarse label", 20), ("fine label", 100)),
)
# CIFAR-100's own channel statistics over the 50,000 training images, in [0, 1].
MEAN = np.array([0.5071, 0.4867, 0.4408], np.float32).reshape(1, 1, 1, 3)
STD = np.array([0.2675, 0.2565, 0.2761], np.float32).reshape(1, 1, 1, 3)


def prepare(inputs: Any) -> Any:
    """Computes ``(x / 255 - mean) / std`` per channel in float32. ``inputs``: [n, 32, 32, 3]."""
    return (inputs.astype(np.float32) / 255 - MEAN) / STD


def load_cifar100(folder: Path | None = None) -> Dataset:
    """Loads 45,000 / 5,000 / 10,000 uint8 images from ``folder`` or QRESEARCH_DATA: the layout or its parent."""
    return load_layout(CIFAR100, folder, prepare)
