"""Functions with products of data and embedding look-ups, in every style, and the names these have as layers."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from graph.zoo import ZOO, Entry, draw, kernel
from quantized_models import build

from qresearch.models.vit import ViT
from qresearch.rules import Rule, SiteRule

TENSOR = SiteRule(range="minmax")
ROWS = SiteRule(granularity="per_channel", range="minmax")
PRODUCTS = Rule("product:*", weight=TENSOR, input=TENSOR)
LOOKUPS = Rule("embedding:*", weight=ROWS)
KERNELS = Rule("*", weight=ROWS, input=TENSOR)
IN_FLOAT = Rule("*", weight=None, input=None)
KEY = jax.random.key(0)
IDS = jnp.asarray(np.random.default_rng(0).integers(0, 11, (4, 5)), jnp.int32)
HEADS = ("query", "key", "value")


def attention(params, x):
    """Softmax(q kᵀ) v, with projections of x [batch, time, 8]."""
    q, k, v = (x @ params[name] for name in HEADS)
    return jax.nn.softmax(q @ jnp.swapaxes(k, -1, -2)) @ v


def fused(params, x):
    q, k, v = ((x @ params[name]).reshape(*x.shape[:-1], 2, 4) for name in HEADS)
    return jax.nn.dot_product_attention(q, k, v)


def scoped(params, x):
    with jax.named_scope("a#b"):
        return attention(params, x)


class LinenBlock(nn.Module):
    dropout: float = 0.0
    train: bool = False

    @nn.compact
    def __call__(self, x):
        # Dropout changes the equations around the products, not the products.
        mixed = nn.MultiHeadDotProductAttention(2, dropout_rate=self.dropout, deterministic=not self.train, name="mha")
        return x + mixed(x)


class LinenStack(nn.Module):
    remat: bool = False

    @nn.compact
    def __call__(self, x):
        block = nn.remat(LinenBlock) if self.remat else LinenBlock
        step = nn.scan(
            lambda module, x, _: (module(x), None), variable_axes={"params": 0}, split_rngs={"params": True}, length=3
        )
        return step(block(name="blocks"), x, None)[0]


class TinyGPT(nn.Module):
    """Two blocks between an embedding and logits tied to it."""

    @nn.compact
    def __call__(self, ids):
        tokens = nn.Embed(11, 8, name="tokens")
        x = tokens(ids)
        for i in range(2):
            x = LinenBlock(name=f"block{i}")(x)
        return tokens.attend(x)


class NNXBlock(nnx.Module):
    def __init__(self, rngs):
        self.tokens = nnx.Embed(11, 8, rngs=rngs)
        self.attend = nnx.MultiHeadAttention(2, 8, decode=False, rngs=rngs)

    def __call__(self, ids):
        x = self.tokens(ids)
        return self.tokens.attend(x + self.attend(x))


def nnx_block():
    graphdef, state = nnx.split(NNXBlock(nnx.Rngs(0)))
    return Entry(lambda state, x: nnx.merge(graphdef, state)(x), state, IDS)


def of_linen(module, x, *extra):
    return Entry(lambda variables, x: module.apply(variables, x, *extra), module.init(KEY, x, *extra), x)


PARAMS = {name: kernel(i, 8, 8) for i, name in enumerate(HEADS)}
X = draw(3, 4, 6, 8)
ENTRIES = {
    "plain": Entry(attention, PARAMS, X),
    "jitted": Entry(jax.jit(attention), PARAMS, X),
    "vmapped": Entry(lambda p, x: jax.vmap(lambda row: attention(p, row))(x), PARAMS, X),
    "remat": Entry(jax.checkpoint(attention), PARAMS, X),
    "scoped": Entry(scoped, PARAMS, X),
    "dot_product_attention": Entry(fused, PARAMS, X),
    "linen": of_linen(LinenBlock(), X),
    "linen_scan": of_linen(LinenStack(), X),
    "linen_remat": of_linen(LinenStack(remat=True), X),
    "nnx": nnx_block(),
    "gpt": of_linen(TinyGPT(), IDS),
    "vit": of_linen(ViT(3, patch=2, width=8, depth=2, heads=2, drop_path=0.0), draw(5, 3, 4, 4, 1), False),
    "tied": ZOO["linen_tied"],
}
USES = ("", "#2")
NAMES = {
    "plain": ["product:dot_general", "product:dot_general#2"],
    "jitted": ["product:dot_general", "product:dot_general#2"],
    "vmapped": ["product:dot_general", "product:dot_general#2"],
    "remat": ["product:dot_general", "product:dot_general#2"],
    "scoped": ["product:a_b", "product:a_b#2"],
    "dot_product_attention": ["product:dot_general", "product:dot_general#2"],
    "linen": ["product:mha", "product:mha#2"],
    "linen_scan": ["product:blocks/mha", "product:blocks/mha#2"],
    "linen_remat": ["product:blocks/mha", "product:blocks/mha#2"],
    "nnx": ["embedding:tokens/embedding", "product:dot_general", "product:dot_general#2"],
    "gpt": ["embedding:tokens/embedding"] + [f"product:block{i}/mha{use}" for i in range(2) for use in USES],
    "vit": [f"product:block{i}/attention{use}" for i in range(2) for use in USES],
    "tied": ["embedding:Embed_0/embedding"],
}
every_entry = pytest.mark.parametrize("name", NAMES)


@functools.cache
def asked(name):
    """The model with all that a rule can ask for quantized, and nothing else."""
    rules = [rule for rule in (PRODUCTS, LOOKUPS) if any(n.startswith(rule.pattern[:-1]) for n in NAMES[name])]
    return build(ENTRIES[name], *rules, IN_FLOAT)


def names_of(layers):
    return [layer.name for layer in layers]
