"""Modules of the zoo: flax.linen, flax.nnx, and a dataclass that is a pytree, as in Equinox."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import nnx
from graph.zoo_parts import IMAGE, Entry, X, draw, filled, kernel

# --- linen -------------------------------------------------------------------------------------------------------


class LinenCNN(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.Conv(4, (3, 3), use_bias=False)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        x = nn.Conv(4, (3, 3), strides=2, feature_group_count=4)(x)
        x = nn.ConvTranspose(2, (2, 2), strides=(2, 2))(x)
        x = nn.Dropout(0.5, deterministic=not train)(x).reshape(x.shape[0], -1)
        return nn.Dense(3)(x)


class LinenTransformer(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = x + nn.MultiHeadDotProductAttention(num_heads=2)(nn.LayerNorm()(x))
        return x + nn.Dense(8)(nn.gelu(nn.Dense(12)(nn.LayerNorm()(x))))


class TiedEmbedding(nn.Module):
    @nn.compact
    def __call__(self, tokens):
        embed = nn.Embed(7, 8)
        return embed.attend(nn.Dense(8)(embed(tokens)))


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return x + nn.Dense(8)(nn.relu(nn.Dense(6)(x))), None


class LinenScan(nn.Module):
    length: int = 3

    @nn.compact
    def __call__(self, x):
        block = nn.remat(Block, policy=jax.checkpoint_policies.dots_saveable, prevent_cse=False)
        stack = nn.scan(block, variable_axes={"params": 0}, split_rngs={"params": True}, length=self.length)
        return nn.Dense(3, name="head")(stack(name="blocks")(x, None)[0])


class HalfPrecision(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(16, dtype=jnp.bfloat16)(x))
        return nn.Dense(3, dtype=jnp.bfloat16)(x)


def linen(module: nn.Module, x: Any, *arguments: Any) -> Entry:
    """A linen module as an entry; its evaluation mode."""
    shapes = jax.eval_shape(lambda key: module.init(key, x, *arguments), jax.random.key(7))
    return Entry(lambda p, x: module.apply(p, x, *arguments), filled(shapes), x)


def linen_train() -> Entry:
    """Training mode: batch statistics come out, dropout's key is an input."""
    module = LinenCNN()
    variables = linen(module, IMAGE, False).params

    def fn(variables, x):
        image, key = x
        return module.apply(variables, image, True, rngs={"dropout": key}, mutable=["batch_stats"])

    return Entry(fn, variables, (IMAGE, jax.random.key(8)))


# --- nnx ---------------------------------------------------------------------------------------------------------


class NNXModel(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(3, 4, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.layers = nnx.List([nnx.Linear(4, 4, rngs=rngs), nnx.Linear(4, 3, rngs=rngs)])

    def __call__(self, x):
        x = nnx.relu(self.norm(self.conv(x))).mean((1, 2))
        return self.layers[1](nnx.gelu(self.layers[0](self.dropout(x))))


def nnx_train() -> Entry:
    """Training mode; the state that comes out holds batch statistics and the dropout's counter."""
    graphdef, state = nnx.split(nnx.eval_shape(lambda: NNXModel(nnx.Rngs(0))))

    def fn(state, x):
        module = nnx.merge(graphdef, state)
        outputs = module(x)
        return outputs, nnx.state(module, nnx.BatchStat)

    return Entry(fn, filled(state), IMAGE)


def nnx_eval() -> Entry:
    """Evaluation mode with params as a plain dict, everything else closed over."""
    module = nnx.eval_shape(lambda: NNXModel(nnx.Rngs(0)))
    module.eval()
    graphdef, params, rest = nnx.split(module, nnx.Param, ...)
    rest = filled(rest)
    return Entry(lambda p, x: nnx.merge(graphdef, p, rest)(x), nnx.to_pure_dict(filled(params)), IMAGE)


class NNXStack(nnx.Module):
    def __init__(self, rngs):
        make = nnx.vmap(lambda rngs: nnx.Linear(8, 8, rngs=rngs))
        self.stack = nnx.split_rngs(splits=3)(make)(rngs)

    def __call__(self, x):
        step = nnx.scan(nnx.remat(lambda x, layer: nnx.relu(layer(x))), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        return step(x, self.stack)


def nnx_scan() -> Entry:
    """nnx.scan over nnx.remat, through ``nnx.split`` and ``nnx.merge``."""
    graphdef, state = nnx.split(nnx.eval_shape(lambda: NNXStack(nnx.Rngs(0))))
    return Entry(lambda p, x: nnx.merge(graphdef, p)(x), filled(state), X)


# --- a module that is a pytree, as in Equinox ----------------------------------------------------------------------


@functools.partial(jax.tree_util.register_dataclass, data_fields=["weight", "bias"], meta_fields=["activation"])
@dataclass
class PytreeLinear:
    weight: jax.Array
    bias: jax.Array
    activation: Callable[[jax.Array], jax.Array]

    def __call__(self, x):
        return self.activation(self.weight @ x + self.bias)


@functools.partial(jax.tree_util.register_dataclass, data_fields=["query", "value", "layers"], meta_fields=[])
@dataclass
class PytreeModel:
    query: jax.Array
    value: jax.Array  # a field of this name is not an nnx Variable's
    layers: list[PytreeLinear]

    def __call__(self, x):
        x = jax.nn.softmax(self.query @ x) * (self.value @ x)
        for layer in self.layers:
            x = layer(x)
        return x


PYTREE = PytreeModel(
    kernel(0, 6, 8),
    kernel(1, 6, 8),
    [PytreeLinear(kernel(2, 8, 6), draw(3, 8), jnp.tanh), PytreeLinear(kernel(4, 3, 8), draw(5, 3), jax.nn.gelu)],
)
