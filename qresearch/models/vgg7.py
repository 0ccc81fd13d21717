"""VGG-7 for CIFAR: 2x(128C3)-MP2-2x(256C3)-MP2-2x(512C3)-MP2-1024FC, each with BatchNorm before the ReLU.

The network of Li, Zhang & Liu, "Ternary Weight Networks", 2016, https://arxiv.org/abs/1605.04711, section 3.
"""

from __future__ import annotations

from flax import linen as nn
from jaxtyping import Array, Float

from qresearch.models.model import Model, from_linen
from qresearch.models.resnet import CIFAR_IMAGE, batch_norm, conv3x3


class VGG7(nn.Module):
    """Six 3x3 convolutions, three pools, two dense; inputs [batch, h, w, c], outputs [batch, classes]."""

    classes: int

    @nn.compact
    def __call__(self, inputs: Float[Array, "batch h w c"], train: bool) -> Float[Array, "batch classes"]:
        x = inputs
        for i, width in enumerate((128, 128, 256, 256, 512, 512), start=1):
            x = nn.relu(batch_norm(train, f"bn{i}")(conv3x3(width, 1, f"conv{i}")(x)))
            if i % 2 == 0:
                x = nn.max_pool(x, (2, 2), (2, 2))
        x = nn.Dense(1024, use_bias=False, name="linear1")(x.reshape(x.shape[0], -1))
        x = nn.relu(batch_norm(train, "bn7")(x))
        return nn.Dense(self.classes, name="linear2")(x)


def vgg7(classes: int) -> Model:
    """Returns layers conv1 to conv6, linear1, linear2: 12,979,082 parameters on CIFAR-10."""
    return from_linen(VGG7(classes), CIFAR_IMAGE)
