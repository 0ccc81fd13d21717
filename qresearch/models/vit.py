"""A vision transformer, ViT-tiny with the sizes of DeiT-Ti: 12 blocks of width 192, 3 heads, patches of 16.

Dosovitskiy et al., "An Image is Worth 16x16 Words", 2020, https://arxiv.org/abs/2010.11929; Touvron et al., "Training
data-efficient image transformers", 2020, https://arxiv.org/abs/2012.12877, table 1 (without the distillation token).
Query, key and value are layers of their own here, one fused layer there.
"""

from __future__ import annotations

import functools

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from qresearch.models.model import Model, from_linen
from qresearch.models.resnet_imagenet import IMAGENET_IMAGE
from qresearch.models.transformer import NORMAL, Block

EXACT_GELU = functools.partial(nn.gelu, approximate=False)


class ViT(nn.Module):
    """Patches with a class token and learned positions through blocks; inputs [batch, h, w, 3], outputs [batch,
    classes]. The number of positions is that of the image ``init`` saw.
    """

    classes: int
    patch: int
    width: int
    depth: int
    heads: int
    drop_path: float

    @nn.compact
    def __call__(self, inputs: Float[Array, "batch h w c"], train: bool) -> Float[Array, "batch classes"]:
        window = (self.patch, self.patch)
        x = nn.Conv(self.width, window, window, padding="VALID", name="patches")(inputs)
        x = x.reshape(x.shape[0], -1, self.width)
        token = self.param("class_token", NORMAL, (self.width,))
        x = jnp.concatenate([jnp.broadcast_to(token, (x.shape[0], 1, self.width)), x], axis=1)
        x = x + nn.Embed(x.shape[1], self.width, embedding_init=NORMAL, name="positions").embedding
        for i in range(self.depth):
            drop_path = self.drop_path * i / max(self.depth - 1, 1)
            x = Block(self.heads, EXACT_GELU, 1e-6, drop_path=drop_path, name=f"block{i}")(x, train)
        x = nn.LayerNorm(1e-6, name="norm")(x[:, 0])
        return nn.Dense(self.classes, kernel_init=NORMAL, name="linear")(x)


def vit_tiny(classes: int) -> Model:
    """Returns ViT-tiny: 74 layers, 5,717,416 parameters for 1000 classes on 224x224 images."""
    module = ViT(classes, patch=16, width=192, depth=12, heads=3, drop_path=0.1)
    return from_linen(module, IMAGENET_IMAGE)
