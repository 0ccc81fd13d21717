"""A small one-stage, anchor-free detector in flax.nnx: seven convolutions to stride 8, one prediction per cell.

The output grid of Redmon et al., "You Only Look Once", 2016, https://arxiv.org/abs/1506.02640, with one box per cell.
"""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from qresearch.models.model import Model, image
from qresearch.models.nnx_model import from_nnx

LAYERS = ((16, 1), (32, 2), (32, 1), (64, 2), (64, 1), (64, 2), (64, 1))  # (width, stride)


def _rare_objects(key: Array, shape: tuple[int, ...], dtype: jnp.dtype) -> Array:
    """Zero, but the objectness starts at sigmoid(-3) = 0.05: three objects in 64 cells. Otherwise the first steps only
    learn that cells are empty (RetinaNet's prior, https://arxiv.org/abs/1708.02002, 2017, section 4.1).
    """
    return jnp.zeros(shape, dtype).at[0].set(-3.0)


class Detector(nnx.Module):
    """Inputs [batch, h, w, c]; outputs [batch, h / 8, w / 8, 5 + classes], raw.

    Of a cell: objectness logit; offsets of the centre (y, x), decoded as (cell + sigmoid(offset)) / cells; height and
    width logits, decoded as the share sigmoid(logit) of the image's; class logits.
    """

    def __init__(self, channels: int, classes: int, rngs: nnx.Rngs) -> None:
        for i, (width, strides) in enumerate(LAYERS, start=1):
            conv = nnx.Conv(channels, width, (3, 3), strides=strides, padding=1, use_bias=False, rngs=rngs)
            setattr(self, f"conv{i}", conv)
            setattr(self, f"bn{i}", nnx.BatchNorm(width, momentum=0.9, rngs=rngs))
            channels = width
        self.head = nnx.Conv(channels, 5 + classes, (1, 1), bias_init=_rare_objects, rngs=rngs)

    def __call__(self, inputs: Float[Array, "batch h w c"], train: bool) -> Float[Array, "batch h2 w2 outputs"]:
        x = inputs
        for i in range(1, len(LAYERS) + 1):
            conv, norm = getattr(self, f"conv{i}"), getattr(self, f"bn{i}")
            x = nnx.relu(norm(conv(x), use_running_average=not train))
        return self.head(x)


def detector(classes: int) -> Model:
    """Returns layers conv1 to conv7, head: 144,639 parameters for one channel and 10 classes."""
    return from_nnx(Detector, classes, image(64, 1))
