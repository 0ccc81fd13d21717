"""A small convolutional network for 8x8 images: six unequal layers, so that mixed precision has a choice to make.

Adam with a cosine from 3e-3, batches of 64 and 20 epochs reach at least 98.5 % on digits' test images (seeds 0, 1, 2).
"""

from __future__ import annotations

from flax import linen as nn
from jaxtyping import Array, Float

from qresearch.models.model import Model, from_linen


class DigitsCNN(nn.Module):
    """Two 3x3 convolutions, pool, two more, pool, two dense; inputs [batch, h, w, c], outputs [batch, classes]."""

    classes: int

    @nn.compact
    def __call__(self, inputs: Float[Array, "batch h w c"], train: bool) -> Float[Array, "batch classes"]:
        x = inputs
        for i, width in enumerate((16, 16, 32, 32), start=1):
            x = nn.Conv(width, (3, 3), padding=1, use_bias=False, name=f"conv{i}")(x)
            x = nn.relu(nn.BatchNorm(not train, momentum=0.9, name=f"bn{i}")(x))
            if i % 2 == 0:
                x = nn.avg_pool(x, (2, 2), (2, 2))
        x = x.reshape(x.shape[0], -1)
        x = nn.relu(nn.Dense(64, name="linear1")(x))
        return nn.Dense(self.classes, name="linear2")(x)


def digits_cnn(classes: int) -> Model:
    """Returns layers conv1 to conv4, linear1, linear2: 25,370 parameters on 8x8x1 inputs and 10 classes."""
    return from_linen(DigitsCNN(classes))
