"""ImageNet residual networks, ResNet-18 and ResNet-50, laid out as in torchvision.

He, Zhang, Ren & Sun, "Deep Residual Learning for Image Recognition", 2015, https://arxiv.org/abs/1512.03385, table 1.
Where torchvision, and we, differ: a bottleneck has its stride in the 3x3 convolution ("v1.5"), not in the first 1x1.
Padding is symmetric.
"""

from __future__ import annotations

from flax import linen as nn
from jaxtyping import Array, Float

from qresearch.models.model import Model, from_linen, image
from qresearch.models.resnet import Stage, batch_norm

IMAGENET_IMAGE = image(224, 3)
HE_FAN_OUT = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def _conv(features: int, size: int, strides: int, name: str) -> nn.Conv:
    window, padding = (size, size), size // 2
    return nn.Conv(features, window, strides, padding, use_bias=False, kernel_init=HE_FAN_OUT, name=name)


def _shortcut(inputs: Array, outputs: Array, strides: int, train: bool) -> Array:
    """The input itself, or projected where the shape changes."""
    if inputs.shape == outputs.shape:
        return inputs
    x = _conv(outputs.shape[-1], 1, strides, "downsample_conv")(inputs)
    return batch_norm(train, "downsample_bn")(x)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut; inputs and outputs [batch, h, w, channels]."""

    features: int
    strides: int

    @nn.compact
    def __call__(self, inputs: Float[Array, "batch h w c"], train: bool) -> Float[Array, "batch h2 w2 c2"]:
        x = nn.relu(batch_norm(train, "bn1")(_conv(self.features, 3, self.strides, "conv1")(inputs)))
        x = batch_norm(train, "bn2")(_conv(self.features, 3, 1, "conv2")(x))
        return nn.relu(x + _shortcut(inputs, x, self.strides, train))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions around a shortcut; outputs [batch, h, w, 4 * features]."""

    features: int
    strides: int

    @nn.compact
    def __call__(self, inputs: Float[Array, "batch h w c"], train: bool) -> Float[Array, "batch h2 w2 c2"]:
        x = nn.relu(batch_norm(train, "bn1")(_conv(self.features, 1, 1, "conv1")(inputs)))
        x = nn.relu(batch_norm(train, "bn2")(_conv(self.features, 3, self.strides, "conv2")(x)))
        x = batch_norm(train, "bn3")(_conv(4 * self.features, 1, 1, "conv3")(x))
        return nn.relu(x + _shortcut(inputs, x, self.strides, train))


class ImageNetResNet(nn.Module):
    """A 7x7 convolution and a pool at stride 4, four stages of blocks; inputs [batch, h, w, 3], outputs [batch,
    classes].
    """

    classes: int
    block: type[BasicBlock | Bottleneck]
    blocks: tuple[int, int, int, int]

    @nn.compact
    def __call__(self, inputs: Float[Array, "batch h w c"], train: bool) -> Float[Array, "batch classes"]:
        x = nn.relu(batch_norm(train, "bn1")(_conv(64, 7, 2, "conv1")(inputs)))
        x = nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
        for i, blocks in enumerate(self.blocks):
            x = Stage(self.block, 64 * 2**i, min(i + 1, 2), blocks, name=f"layer{i + 1}")(x, train)
        return nn.Dense(self.classes, name="linear")(x.mean((1, 2)))


def resnet18(classes: int) -> Model:
    """Returns ResNet-18: 21 layers with the projections, 11,689,512 parameters for 1000 classes."""
    return from_linen(ImageNetResNet(classes, BasicBlock, (2, 2, 2, 2)), IMAGENET_IMAGE)


def resnet50(classes: int) -> Model:
    """Returns ResNet-50: 54 layers with the projections, 25,557,032 parameters for 1000 classes."""
    return from_linen(ImageNetResNet(classes, Bottleneck, (3, 4, 6, 3)), IMAGENET_IMAGE)
