"""MobileNetV2: inverted residuals with depthwise convolutions, laid out as in torchvision.

Sandler, Howard, Zhu, Zhmoginov & Chen, "MobileNetV2: Inverted Residuals and Linear Bottlenecks", 2018,
https://arxiv.org/abs/1801.04381, table 2.
"""

from __future__ import annotations

from flax import linen as nn
from jaxtyping import Array, Float

from qresearch.models.model import Model, from_linen
from qresearch.models.resnet import batch_norm
from qresearch.models.resnet_imagenet import HE_FAN_OUT, IMAGENET_IMAGE

# (expansion, width, blocks, stride of the first block): table 2 of the paper.
STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


def _conv_norm(x: Array, features: int, size: int, train: bool, name: str, strides: int = 1, groups: int = 1) -> Array:
    """A convolution without bias and its BatchNorm."""
    window, padding = (size, size), size // 2
    x = nn.Conv(
        features,
        window,
        strides,
        padding,
        feature_group_count=groups,
        use_bias=False,
        kernel_init=HE_FAN_OUT,
        name=f"{name}_conv",
    )(x)
    return batch_norm(train, f"{name}_bn")(x)


class InvertedResidual(nn.Module):
    """Expand (unless by 1), depthwise 3x3, project without a nonlinearity; [batch, h, w, channels] in and out."""

    expansion: int
    features: int
    strides: int

    @nn.compact
    def __call__(self, inputs: Float[Array, "batch h w c"], train: bool) -> Float[Array, "batch h2 w2 c2"]:
        x, width = inputs, inputs.shape[-1] * self.expansion
        if self.expansion > 1:
            x = nn.relu6(_conv_norm(x, width, 1, train, "expand"))
        x = nn.relu6(_conv_norm(x, width, 3, train, "depthwise", self.strides, groups=width))
        x = _conv_norm(x, self.features, 1, train, "project")
        return x + inputs if x.shape == inputs.shape else x


class MobileNetV2(nn.Module):
    """A stem, 17 inverted residuals, a head, dropout; inputs [batch, h, w, 3], outputs [batch, classes]."""

    classes: int

    @nn.compact
    def __call__(self, inputs: Float[Array, "batch h w c"], train: bool) -> Float[Array, "batch classes"]:
        x = nn.relu6(_conv_norm(inputs, 32, 3, train, "stem", strides=2))
        strides = [(t, c, s if i == 0 else 1) for t, c, n, s in STAGES for i in range(n)]
        for i, (expansion, features, stride) in enumerate(strides, start=1):
            x = InvertedResidual(expansion, features, stride, name=f"block{i}")(x, train)
        x = nn.relu6(_conv_norm(x, 1280, 1, train, "head")).mean((1, 2))
        x = nn.Dropout(0.2, deterministic=not train)(x)
        return nn.Dense(self.classes, kernel_init=nn.initializers.normal(0.01), name="linear")(x)


def mobilenet_v2(classes: int) -> Model:
    """Returns MobileNetV2: 53 layers, 17 of them depthwise, 3,504,872 parameters for 1000 classes."""
    return from_linen(MobileNetV2(classes), IMAGENET_IMAGE)
