"""LeNet-5 as quantization papers use it on MNIST: 32C5-MP2-64C5-MP2-512FC.

The Caffe variant of LeCun et al., "Gradient-based learning applied to document recognition", 1998, widened; with
padding, so that 1,663,370 parameters are those of McMahan et al., https://arxiv.org/abs/1602.05629, 2016, section 3.
"""

from __future__ import annotations

from flax import linen as nn
from jaxtyping import Array, Float

from qresearch.models.model import Model, from_linen, image


class LeNet5(nn.Module):
    """Two 5x5 convolutions, each with a pool, and two dense; inputs [batch, h, w, c], outputs [batch, classes]."""

    classes: int

    @nn.compact
    def __call__(self, inputs: Float[Array, "batch h w c"], train: bool) -> Float[Array, "batch classes"]:
        x = inputs
        for i, width in enumerate((32, 64), start=1):
            x = nn.relu(nn.Conv(width, (5, 5), padding=2, name=f"conv{i}")(x))
            x = nn.max_pool(x, (2, 2), (2, 2))
        x = x.reshape(x.shape[0], -1)
        x = nn.relu(nn.Dense(512, name="linear1")(x))
        return nn.Dense(self.classes, name="linear2")(x)


def lenet5(classes: int) -> Model:
    """Returns layers conv1, conv2, linear1, linear2: 1,663,370 parameters on MNIST."""
    return from_linen(LeNet5(classes), image(28, 1))
