"""CIFAR residual networks, ResNet-20, ResNet-32 and ResNet-56.

He, Zhang, Ren & Sun, "Deep Residual Learning for Image Recognition", 2015, https://arxiv.org/abs/1512.03385,
section 4.2, with parameter-free shortcuts (option A). The padding is a symmetric 1 also at stride 2, where
flax's "SAME" would pad (0, 1): public weights expect the former. Parameter paths are ``conv1/kernel``,
``layer1/0/conv1/kernel``, ..., ``linear/kernel``, as in public weight files.
"""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from qresearch.models.model import Model, from_linen, image

CIFAR_IMAGE = image(32, 3)


def conv3x3(features: int, strides: int, name: str) -> nn.Conv:
    """Builds a 3x3 convolution without bias."""
    he_normal = nn.initializers.he_normal()
    return nn.Conv(features, (3, 3), strides, padding=1, use_bias=False, kernel_init=he_normal, name=name)


def batch_norm(train: bool, name: str) -> nn.BatchNorm:
    """Builds a BatchNorm with torch's momentum (0.1 there) and epsilon."""
    return nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=1e-5, name=name)


def shortcut(x: Float[Array, "batch h w c"], features: int, strides: int) -> Float[Array, "batch h2 w2 c2"]:
    """Computes option A: every ``strides``-th pixel; the new channels are zero, half before and half after."""
    added = features - x.shape[-1]
    if added == 0 and strides == 1:
        return x
    return jnp.pad(x[:, ::strides, ::strides], ((0, 0), (0, 0), (0, 0), (added // 2, added - added // 2)))


class Block(nn.Module):
    """Two 3x3 convolutions around a shortcut; inputs and outputs [batch, h, w, channels]."""

    features: int
    strides: int

    @nn.compact
    def __call__(self, inputs: Float[Array, "batch h w c"], train: bool) -> Float[Array, "batch h2 w2 c2"]:
        x = nn.relu(batch_norm(train, "bn1")(conv3x3(self.features, self.strides, "conv1")(inputs)))
        x = batch_norm(train, "bn2")(conv3x3(self.features, 1, "conv2")(x))
        return nn.relu(x + shortcut(inputs, self.features, self.strides))


class Stage(nn.Module):
    """Blocks "0", "1", ... of one kind and width; the first divides the resolution by ``strides``."""

    block: Callable[..., nn.Module]
    features: int
    strides: int
    blocks: int

    @nn.compact
    def __call__(self, inputs: Float[Array, "batch h w c"], train: bool) -> Float[Array, "batch h2 w2 c2"]:
        x = inputs
        for i in range(self.blocks):
            x = self.block(self.features, self.strides if i == 0 else 1, name=str(i))(x, train)
        return x


class ResNet(nn.Module):
    """Depth ``6 * blocks + 2``. Inputs [batch, h, w, 3]; outputs [batch, classes]."""

    classes: int
    blocks: int

    @nn.compact
    def __call__(self, inputs: Float[Array, "batch h w c"], train: bool) -> Float[Array, "batch classes"]:
        x = nn.relu(batch_norm(train, "bn1")(conv3x3(16, 1, "conv1")(inputs)))
        for i, features in enumerate((16, 32, 64), start=1):
            x = Stage(Block, features, 1 if i == 1 else 2, self.blocks, name=f"layer{i}")(x, train)
        return nn.Dense(self.classes, kernel_init=nn.initializers.he_normal(), name="linear")(x.mean((1, 2)))


def resnet20(classes: int) -> Model:
    """Returns ResNet-20: 20 layers, 269,722 parameters for 10 classes."""
    return from_linen(ResNet(classes, blocks=3), CIFAR_IMAGE)


def resnet32(classes: int) -> Model:
    """Returns ResNet-32: 32 layers, 464,154 parameters for 10 classes."""
    return from_linen(ResNet(classes, blocks=5), CIFAR_IMAGE)


def resnet56(classes: int) -> Model:
    """Returns ResNet-56: 56 layers, 853,018 parameters for 10 classes (855,770 are those of projections, option B)."""
    return from_linen(ResNet(classes, blocks=9), CIFAR_IMAGE)
