"""CIFAR residual networks with BatchNorm and ReLU before each convolution, PreAct ResNet-20.

He, Zhang, Ren & Sun, "Identity Mappings in Deep Residual Networks", 2016, https://arxiv.org/abs/1603.05027, figure 1b.
Where we differ: shortcuts have no parameters here also where the width changes (option A of the first paper, as in
the networks that PACT and DoReFa results in Distiller are about); there they are 1x1 convolutions.
"""

from __future__ import annotations

from flax import linen as nn
from jaxtyping import Array, Float

from qresearch.models.model import Model, from_linen
from qresearch.models.resnet import CIFAR_IMAGE, Stage, batch_norm, conv3x3, shortcut


class PreActBlock(nn.Module):
    """x + F(x) with F: BatchNorm, ReLU, convolution, twice; inputs and outputs [batch, h, w, channels]."""

    features: int
    strides: int

    @nn.compact
    def __call__(self, inputs: Float[Array, "batch h w c"], train: bool) -> Float[Array, "batch h2 w2 c2"]:
        x = nn.relu(batch_norm(train, "bn1")(inputs))
        x = conv3x3(self.features, self.strides, "conv1")(x)
        x = nn.relu(batch_norm(train, "bn2")(x))
        x = conv3x3(self.features, 1, "conv2")(x)
        return x + shortcut(inputs, self.features, self.strides)


class PreActResNet(nn.Module):
    """Depth ``6 * blocks + 2``. Inputs [batch, h, w, 3]; outputs [batch, classes]."""

    classes: int
    blocks: int

    @nn.compact
    def __call__(self, inputs: Float[Array, "batch h w c"], train: bool) -> Float[Array, "batch classes"]:
        x = conv3x3(16, 1, "conv1")(inputs)
        for i, features in enumerate((16, 32, 64), start=1):
            x = Stage(PreActBlock, features, 1 if i == 1 else 2, self.blocks, name=f"layer{i}")(x, train)
        x = nn.relu(batch_norm(train, "bn")(x)).mean((1, 2))
        return nn.Dense(self.classes, kernel_init=nn.initializers.he_normal(), name="linear")(x)


def preact_resnet20(classes: int) -> Model:
    """Returns PreAct ResNet-20: 20 layers, 269,722 parameters for 10 classes, as many as ResNet-20 has."""
    return from_linen(PreActResNet(classes, blocks=3), CIFAR_IMAGE)
