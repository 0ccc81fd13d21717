"""Equalization keeps the function and makes the ranges of weights on both sides of a channel equal."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from graph.zoo import IMAGE, SEQUENCE, X, draw, kernel
from ptq.float_functions import assert_close, batch, filled, shapes

import qresearch as qr
from qresearch.errors import ConfigError
from qresearch.graph import find_layers
from qresearch.models import MODELS
from qresearch.ptq.equalize import equalize, why_not_equalized
from qresearch.ptq.fold_batchnorm import fold_batchnorm

LARGE = ("resnet32", "resnet56", "resnet18", "resnet50", "mobilenet_v2", "vit_tiny", "gpt", "vgg7")


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] if n in LARGE else []) for n in MODELS])
def test_every_model_of_the_registry_keeps_its_outputs(name):
    model = MODELS[name](10)
    x = batch(model)
    fn, params = fold_batchnorm(model.apply, filled(shapes(model)), x)
    same, equalized = equalize(fn, params, x)
    assert same is fn
    assert jax.tree.structure(equalized) == jax.tree.structure(params)
    assert_close(jax.jit(fn)(equalized, x), jax.jit(fn)(params, x))
    kept, layers = why_not_equalized(fn, params, x), [layer.name for layer in find_layers(fn, params, x)]
    assert set(kept) < set(layers)
    for layer in set(layers) - set(kept):
        assert not np.allclose(leaf(equalized, layer), leaf(params, layer), rtol=1e-3)


def leaf(params, layer):
    for part in ("params/" + layer).split("/"):
        params = params[part]
    return params


class Separable(nn.Module):
    """Pointwise, depthwise, pointwise, a mean and a perceptron; the scales of its channels differ by 1,000."""

    @nn.compact
    def __call__(self, x):
        x = nn.leaky_relu(nn.Conv(16, (1, 1), name="expand")(x))
        x = nn.relu(nn.Conv(16, (3, 3), feature_group_count=16, name="depthwise")(x))
        x = nn.relu(nn.max_pool(nn.Conv(8, (1, 1), name="project")(x), (2, 2), (2, 2)))
        return nn.Dense(3, name="linear")(x.reshape(x.shape[0], -1))


def separable():
    module = Separable()
    params = filled(jax.eval_shape(module.init, jax.random.key(0), IMAGE))
    scales = np.logspace(-1.5, 1.5, 16).astype(np.float32)
    own = params["params"]
    for name, by in (("expand", scales), ("depthwise", scales[::-1])):
        own[name] = jax.tree.map(lambda array, by=by: array * by, own[name])
    own["project"]["kernel"] = own["project"]["kernel"] / np.sqrt(scales)[:, None]
    return module.apply, params


def quantization_error(fn, params, layer):
    """Mean squared error of the outputs, relative to theirs, with the weights of one layer at 8 bit per tensor."""
    weight = qr.SiteRule(range="absmax")
    rules = (qr.Rule(layer, weight=weight, input=None), qr.Rule("*", weight=None, input=None))
    model = qr.quantize_model(fn, params, IMAGE, rules)
    bits = jnp.full((1, 2), 8.0)
    error = model.apply(params, model.init(params, IMAGE, bits), IMAGE, bits) - fn(params, IMAGE)
    return float(jnp.sum(error**2) / jnp.sum(fn(params, IMAGE) ** 2))


def test_badly_scaled_depthwise_channels_lose_far_less_to_per_tensor_weights():
    fn, params = separable()
    _, equalized = equalize(fn, params, IMAGE)
    assert_close(fn(equalized, IMAGE), fn(params, IMAGE))
    for layer in ("expand/kernel", "depthwise/kernel"):
        assert quantization_error(fn, equalized, layer) < 0.1 * quantization_error(fn, params, layer)


def test_ranges_on_both_sides_are_equal_afterwards():
    fn, params = separable()
    own = equalize(fn, params, IMAGE, iterations=100)[1]["params"]
    largest = {name: np.abs(np.asarray(own[name]["kernel"])) for name in own}
    made, between = largest["expand"].max((0, 1, 2)), largest["depthwise"].max((0, 1, 2))
    np.testing.assert_allclose(made, between, rtol=1e-3)
    np.testing.assert_allclose(between, largest["project"].max((0, 1, 3)), rtol=1e-3)
    flat = largest["linear"].reshape(-1, 8, 3)  # a flattened image: every channel at every place
    np.testing.assert_allclose(largest["project"].max((0, 1, 2)), flat.max((0, 2)), rtol=1e-3)


def test_a_dead_channel_stays():
    params = {"a": kernel(0, 8, 6).at[:, 2].set(0), "b": draw(1, 6), "c": kernel(2, 6, 3).at[4].set(0)}

    def fn(params, x):
        return jax.nn.relu(x @ params["a"] + params["b"]) @ params["c"]

    _, equalized = equalize(fn, params, X)
    assert_close(fn(equalized, X), fn(params, X))
    for i in (2, 4):
        np.testing.assert_array_equal(equalized["a"][:, i], params["a"][:, i])
        assert equalized["b"][i] == params["b"][i]


A, C = {"a": kernel(0, 8, 6)}, {"a": kernel(0, 8, 6), "c": kernel(1, 6, 4)}
ATTENTION = {name: kernel(i, 8, 2, 4) for i, name in enumerate("qkv")} | {"o": kernel(3, 2, 4, 8)}


def attention(params, x):
    """Channels over two axes, one of them a batch axis of the products with the probabilities."""
    q, k, v = (jnp.einsum("bti,ihd->bthd", x, params[name]) for name in "qkv")
    mixed = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k)), v)
    return jnp.einsum("bqhd,hdo->bqo", mixed, params["o"])


def gated(params, x):
    """The channels pass a product with other data, a choice by their own sign, and reach two layers."""
    y = (x @ params["a"]) * jax.nn.sigmoid(x[..., :6])
    y = jnp.where(y > 0, y, 0.3 * y)
    return y @ params["c"] + jnp.pad(y[:, ::2], ((0, 0), (0, 2), (0, 0)))[:, :5] @ params["d"]


def transposed(params, x):
    return params["c"].T @ jax.nn.relu(params["a"].T @ x.T + params["b"][:, None])


def taken_apart(params, x):
    """Half of the channels come from the place before; two of the others are read once more, elsewhere."""
    y = x @ params["a"]
    now, before, rest = jnp.split(y, [2, 4], axis=-1)
    before = jnp.concatenate([jnp.zeros_like(before[:, :1]), before[:, :-1]], axis=1)
    return jnp.concatenate([now, before, rest], axis=-1) @ params["c"] + y[..., 4:] @ params["d"]


FOUND = {
    "taken_apart": (taken_apart, {**C, "d": kernel(2, 2, 4)}, SEQUENCE, {"a"}),
    "attention": (attention, ATTENTION, SEQUENCE, {"v"}),
    "gated": (gated, {**C, "d": kernel(2, 6, 4)}, SEQUENCE, {"a"}),
    "transposed": (transposed, {**C, "b": draw(2, 6)}, X, {"a"}),
}


@pytest.mark.parametrize("name", FOUND)
def test_channels_are_followed_through_what_is_homogeneous(name):
    fn, params, x, layers = FOUND[name]
    _, equalized = equalize(fn, params, x)
    assert_close(fn(equalized, x), fn(params, x))
    assert set(params) - set(why_not_equalized(fn, params, x)) - {"b"} == layers
    assert all(not np.allclose(equalized[layer], params[layer]) for layer in layers)


REFUSED = {
    "relu6": (lambda p, x: jax.nn.relu6(x @ p["a"]) @ p["c"], C, "'min'"),
    "gelu": (lambda p, x: jax.nn.gelu(x @ p["a"]) @ p["c"], C, "'integer_pow'"),
    "squared": (lambda p, x: (lambda y: y * y)(x @ p["a"]) @ p["c"], C, "not homogeneous"),
    "threshold": (lambda p, x: jax.nn.relu(x @ p["a"] - 1.0) @ p["c"], C, "same for several channels"),
    "one_bias": (lambda p, x: (x @ p["a"] + p["b"]) @ p["c"], {**C, "b": draw(1)}, "same for several channels"),
    "residual": (lambda p, x: (x[:, :6] + x @ p["a"]) @ p["c"], C, "other data"),
    "output": (lambda p, x: (lambda y: (y @ p["c"], y))(x @ p["a"]), C, "the function's output"),
    "alone": (lambda p, x: x @ p["a"], A, "the function's output"),
    "mixed": (lambda p, x: (x @ p["a"]).sum(-1, keepdims=True) @ p["c"], {**A, "c": kernel(1, 1, 4)}, "'reduce_sum'"),
    "summed_with_data": (lambda p, x: (x @ p["a"]) @ x[:, :6].T, C, "summed over with data"),
    "shared_kernel": (lambda p, x: jax.nn.relu(x @ p["a"]) @ p["a"], {"a": kernel(0, 8, 8)}, "more than once"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_rescaled_is_left_alone_and_says_why(name):
    fn, params, reason = REFUSED[name]
    assert equalize(fn, params, X) == (fn, params)
    assert reason in why_not_equalized(fn, params, X)["a"]


def test_iterations_are_checked():
    with pytest.raises(ConfigError, match="at least 1 iteration, got 0"):
        equalize(attention, ATTENTION, SEQUENCE, iterations=0)
