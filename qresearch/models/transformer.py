"""The block that the transformers here share: attention and a perceptron, each after a LayerNorm, around shortcuts.

Vaswani et al., "Attention Is All You Need", 2017, https://arxiv.org/abs/1706.03762; LayerNorm first as in Radford et
al., "Language Models are Unsupervised Multitask Learners" (GPT-2), 2019.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

Initializer: TypeAlias = Callable[..., Array]
NORMAL: Initializer = nn.initializers.normal(0.02)  # as in GPT-2 and DeiT


def attention(
    query: Float[Array, "batch time heads d"],
    key: Float[Array, "batch time heads d"],
    value: Float[Array, "batch time heads d"],
    bias: Float[Array, "heads time time"] | None = None,
) -> Float[Array, "batch time heads d"]:
    """Computes softmax(q kᵀ / √d + bias) v for every head."""
    scores = jnp.einsum("bqhd,bkhd->bhqk", query, key) / query.shape[-1] ** 0.5
    if bias is not None:
        scores = scores + bias.astype(scores.dtype)
    return jnp.einsum("bhqk,bkhd->bqhd", nn.softmax(scores), value)


def alibi(heads: int, time: int) -> Float[Array, "heads time time"]:
    """Computes the bias m (k - q) where place q may look at place k, those up to its own; elsewhere it excludes.

    m is 2^(-8 h / heads) for head h = 1, 2, ...: near places come first, and the model needs no table of positions.
    Press, Smith & Lewis, "Train Short, Test Long: Attention with Linear Biases", 2021, https://arxiv.org/abs/2108.12409.
    """
    slopes = 2.0 ** (-8.0 * jnp.arange(1, heads + 1) / heads)
    place = jnp.arange(time)
    distance = place - place[:, None]
    # Half of the lowest number: with a score added it is still finite.
    return jnp.where(distance <= 0, slopes[:, None, None] * distance, jnp.finfo(jnp.float32).min / 2)


class Attention(nn.Module):
    """Multi-head self-attention with the layers query, key, value, out; [batch, time, width] in and out."""

    heads: int
    kernel_init: Initializer = NORMAL
    out_init: Initializer = NORMAL

    @nn.compact
    def __call__(
        self, inputs: Float[Array, "batch time width"], bias: Float[Array, "heads time time"] | None = None
    ) -> Float[Array, "batch time width"]:
        width = inputs.shape[-1]
        query, key, value = (
            nn.Dense(width, kernel_init=self.kernel_init, name=name)(inputs).reshape(*inputs.shape[:-1], self.heads, -1)
            for name in ("query", "key", "value")
        )
        mixed = attention(query, key, value, bias).reshape(inputs.shape)
        return nn.Dense(width, kernel_init=self.out_init, name="out")(mixed)


class Block(nn.Module):
    """x + attention, then x + perceptron of four times the width; [batch, time, width] in and out.

    bias: added to the attention scores. epsilon: of both LayerNorms. out_init: of the two kernels that write to the
    shortcut; kernel_init: of the others. drop_path: the share of examples that skip a branch in training (stochastic
    depth, https://arxiv.org/abs/1603.09382, 2016). mix: applied to what attention reads.
    """

    heads: int
    activation: Callable[[Array], Array]
    epsilon: float
    kernel_init: Initializer = NORMAL
    out_init: Initializer = NORMAL
    drop_path: float = 0.0
    mix: Callable[[Array], Array] = lambda x: x

    @nn.compact
    def __call__(
        self,
        inputs: Float[Array, "batch time width"],
        train: bool,
        bias: Float[Array, "heads time time"] | None = None,
    ) -> Float[Array, "batch time width"]:
        drop = nn.Dropout(self.drop_path, broadcast_dims=(1, 2), deterministic=not train)
        x = nn.LayerNorm(self.epsilon, name="norm1")(inputs)
        inputs = inputs + drop(
            Attention(self.heads, self.kernel_init, self.out_init, name="attention")(self.mix(x), bias)
        )
        x = nn.LayerNorm(self.epsilon, name="norm2")(inputs)
        x = self.activation(nn.Dense(4 * x.shape[-1], kernel_init=self.kernel_init, name="mlp1")(x))
        return inputs + drop(nn.Dense(inputs.shape[-1], kernel_init=self.out_init, name="mlp2")(x))
