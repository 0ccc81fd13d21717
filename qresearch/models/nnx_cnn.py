"""A small convolutional network written in flax.nnx: nothing above this folder may depend on the style."""

from __future__ import annotations

from flax import nnx
from jaxtyping import Array, Float

from qresearch.models.model import Model
from qresearch.models.nnx_model import from_nnx


class NNXCNN(nnx.Module):
    """Three 3x3 convolutions, the mean over space, one dense; inputs [batch, h, w, c], outputs [batch, classes]."""

    def __init__(self, channels: int, classes: int, rngs: nnx.Rngs) -> None:
        self.conv1 = nnx.Conv(channels, 16, (3, 3), padding=1, use_bias=False, rngs=rngs)
        self.bn1 = nnx.BatchNorm(16, momentum=0.9, rngs=rngs)
        self.conv2 = nnx.Conv(16, 32, (3, 3), strides=2, padding=1, use_bias=False, rngs=rngs)
        self.bn2 = nnx.BatchNorm(32, momentum=0.9, rngs=rngs)
        self.conv3 = nnx.Conv(32, 32, (3, 3), padding=1, use_bias=False, rngs=rngs)
        self.bn3 = nnx.BatchNorm(32, momentum=0.9, rngs=rngs)
        self.linear = nnx.Linear(32, classes, rngs=rngs)

    def __call__(self, inputs: Float[Array, "batch h w c"], train: bool) -> Float[Array, "batch classes"]:
        x = nnx.relu(self.bn1(self.conv1(inputs), use_running_average=not train))
        x = nnx.relu(self.bn2(self.conv2(x), use_running_average=not train))
        x = nnx.relu(self.bn3(self.conv3(x), use_running_average=not train))
        return self.linear(x.mean(axis=(1, 2)))


def nnx_cnn(classes: int) -> Model:
    """Returns layers conv1, conv2, conv3, linear: 14,458 parameters on one channel and 10 classes."""
    return from_nnx(NNXCNN, classes)
