"""Folding keeps the function, removes what it folds, and leaves alone what it cannot."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import shared_path
from flax import linen as nn
from graph.zoo import IMAGE, SEQUENCE, ZOO, X, draw, kernel
from ptq.float_functions import assert_close, batch, filled, normalize, shapes, statistics

import qresearch as qr
from qresearch.data.cifar10 import CIFAR10, prepare
from qresearch.data.cifar_files import read_file
from qresearch.errors import GraphError
from qresearch.graph import find_layers
from qresearch.models import MODELS, load_npz
from qresearch.ptq.fold_batchnorm import fold_batchnorm, why_not_folded

LARGE = ("resnet32", "resnet56", "resnet18", "resnet50", "mobilenet_v2", "vit_tiny", "gpt", "vgg7")


def names(fn, params, x):
    return [(layer.name, layer.parameter.removeprefix("params/"), layer.macs) for layer in find_layers(fn, params, x)]


def normalizations(fn, params, x):
    return sum(equation.primitive.name == "rsqrt" for equation in jax.make_jaxpr(fn)(params, x).eqns)


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] if n in LARGE else []) for n in MODELS])
def test_every_model_of_the_registry_keeps_its_outputs_and_layers(name):
    model = MODELS[name](10)
    variables, x = shapes(model), batch(model)
    if "batch_stats" not in variables:
        assert fold_batchnorm(model.apply, variables, x) == (model.apply, variables)
        return
    variables = filled(variables)
    folded_fn, folded = fold_batchnorm(model.apply, variables, x)
    assert_close(jax.jit(folded_fn)(folded, x), jax.jit(model.apply)(variables, x))
    layers = names(model.apply, variables, x)
    assert names(folded_fn, folded, x) == layers
    left = normalizations(folded_fn, folded, x)
    assert left == normalizations(model.apply, variables, x) - len(folded["folded"])
    assert (left > 0) == ("preact" in name)  # there BatchNorm stands before most contractions
    kept, known = why_not_folded(model.apply, variables, x), {layer for layer, _, _ in layers}
    assert known == {*folded["folded"], *(known & set(kept))}
    assert len(set(kept) - known) == left
    assert all(layer.endswith("/scale") for layer in set(kept) - known)


def dense(params, x):
    return jnp.tanh(normalize(params["bn"], x @ params["w"] + params["b"])) @ params["out"]


def transposed(params, x):
    """The kernel on the left, channels first; then a reshape and a transpose on the way to the normalization."""
    y = jnp.einsum("oi,bti->obt", params["w"], x) * -1.0
    y = y.reshape(6, -1).T.reshape(*x.shape[:2], 6)
    return jax.nn.relu(normalize(params["bn"], y))


def heads(params, x):
    """Two channel axes; per-channel factors over both."""
    y = jnp.einsum("bti,hio->btho", x, params["w"])
    return jnp.tanh((params["shift"] - y) / params["scale"])


def experts(params, x):
    """One matrix per expert: a channel axis that is a batch axis of the contraction, neither first nor last."""
    y = jnp.einsum("bei,ieo->beo", x[:, :3], params["w"])
    return jax.nn.relu(normalize({**params["bn"], "shift": params["shift"]}, y))


def jitted(params, x):
    """The normalization under a jit of its own, the contraction under another."""
    y = jax.jit(lambda w, x: x @ w.T)(params["w"], x)
    return jax.nn.relu(jax.jit(normalize)(params["bn"], y))


def rematerialized(params, x):
    block = jax.checkpoint(lambda p, x: normalize(p["bn"], x @ p["w"]), policy=jax.checkpoint_policies.dots_saveable)
    return jnp.sin(block(params, x) * params["gain"])


def layer_scale(params, x):
    return x + params["gamma"] * (x @ params["w"] + params["b"])


def channels_first(params, x):
    y = jax.lax.conv_general_dilated(
        jnp.moveaxis(x, -1, 1), params["w"], (1, 1), "SAME", dimension_numbers=("NCHW", "OIHW", "NCHW"),
        feature_group_count=3,
    )  # fmt: skip
    bn = {key: entry[:, None, None] for key, entry in params["bn"].items()}
    return jax.nn.relu(normalize(bn, y))


EXPERTS = {"w": kernel(0, 8, 3, 4), "bn": statistics(4), "shift": draw(1, 3, 1)}
FUNCTIONS = {
    "dense": (dense, {"w": kernel(0, 8, 6), "b": draw(1, 6), "bn": statistics(6), "out": kernel(2, 6, 3)}, X, "w"),
    "transposed": (transposed, {"w": kernel(0, 6, 8), "bn": statistics(6)}, SEQUENCE, "w"),
    "heads": (heads, {"w": kernel(0, 2, 8, 3), "shift": draw(1, 2, 3), "scale": draw(2, 2, 1)}, SEQUENCE, "w"),
    "experts": (experts, EXPERTS, SEQUENCE, "w"),
    "jitted": (jitted, {"w": kernel(0, 6, 8), "bn": statistics(6)}, X, "w"),
    "rematerialized": (rematerialized, {"w": kernel(0, 8, 6), "bn": statistics(6), "gain": draw(5)}, X, "w"),
    "layer_scale": (layer_scale, {"w": kernel(0, 8, 8), "b": draw(1, 8), "gamma": draw(2, 8)}, X, "w"),
    "channels_first": (channels_first, {"w": kernel(0, 6, 1, 3, 3), "bn": statistics(6)}, IMAGE, "w"),
    "linen_cnn": (*ZOO["linen_cnn"], "Conv_0/kernel"),
    "nnx_eval": (*ZOO["nnx_eval"], "conv/kernel"),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_in_every_style(name):
    fn, params, x, layer = FUNCTIONS[name]
    folded_fn, folded = fold_batchnorm(fn, params, x)
    assert list(folded["folded"]) == [layer]
    other = jnp.concatenate([x, -2 * x])  # another batch size
    assert_close(jax.jit(folded_fn)(folded, other), jax.jit(fn)(params, other))
    assert names(folded_fn, folded, x) == names(fn, params, x)
    assert normalizations(folded_fn, folded, x) == 0
    assert fold_batchnorm(folded_fn, folded, x) == (folded_fn, folded)
    again, _ = fold_batchnorm(fn, jax.tree.map(jnp.array, params), other)
    assert (again, hash(again)) == (folded_fn, hash(folded_fn))


def test_jit_grad_and_vmap():
    fn, params, x, layer = FUNCTIONS["dense"]
    folded_fn, folded = fold_batchnorm(fn, params, x)
    assert_close(jax.jit(lambda p: fold_batchnorm(fn, p, x)[1])(params), folded)
    loss = jax.jit(lambda fn, p, x: jnp.sum(jnp.sin(jax.tree.leaves(fn(p, x))[0])), static_argnums=0)
    assert_close(jax.grad(loss, 2)(folded_fn, folded, x), jax.grad(loss, 2)(fn, params, x), 1e-4)
    assert jnp.any(jax.grad(loss, 1, allow_int=True)(folded_fn, folded, x)["folded"][layer] != 0)
    stacked = jnp.stack([x, -x])
    assert_close(jax.vmap(folded_fn, (None, 0))(folded, stacked), jnp.stack([fn(params, x), fn(params, -x)]))


def test_half_precision_folds_to_its_own_rounding():
    class Half(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Conv(4, (3, 3), dtype=jnp.bfloat16)(x)
            return nn.relu(nn.BatchNorm(use_running_average=True, dtype=jnp.bfloat16)(x))

    module = Half()
    variables = filled(jax.eval_shape(module.init, jax.random.key(0), IMAGE))
    folded_fn, folded = fold_batchnorm(module.apply, variables, IMAGE)
    assert list(folded["folded"]) == ["Conv_0/kernel"]
    assert_close(folded_fn(folded, IMAGE), module.apply(variables, IMAGE), 2**-6)


def test_a_folded_function_is_quantized_as_any_other():
    fn, params, x, _ = FUNCTIONS["dense"]
    folded_fn, folded = fold_batchnorm(fn, params, x)
    rules = (qr.Rule(weight=qr.SiteRule(range="absmax"), input=qr.SiteRule(range="absmax")),)
    quantized = qr.quantize_model(folded_fn, folded, x, rules)
    assert quantized is qr.quantize_model(fold_batchnorm(fn, params, x)[0], folded, x, rules)
    bits = jnp.full((2, 2), 16.0)
    assert_close(quantized.apply(folded, quantized.init(folded, x, bits), x, bits), fn(params, x), 1e-2)


def shared(params, x):
    y = jax.nn.relu(normalize(params["first"], x @ params["w"]))
    return jax.nn.relu(normalize(params["second"], y @ params["w"]))


def batch_statistics(params, x):
    y = x @ params["w"]
    return (y - y.mean(0)) * params["scale"]


def read_twice(params, x):
    y = x @ params["w"]
    return normalize(params["bn"], y) + y


def flattened(params, x):
    """A scale for every place and channel is none for a channel."""
    return (x @ params["w"]).reshape(x.shape[0], -1) * params["gain"]


def scanned(params, x):
    return jax.lax.scan(lambda x, layer: (jnp.tanh(normalize(layer["bn"], x @ layer["w"])), None), x, params)[0]


W = {"w": kernel(0, 8, 6)}
STACKED = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(statistics(8, seed) for seed in (1, 2)))
REFUSED = {
    "shared": (shared, {"w": kernel(0, 8, 8), "first": statistics(8), "second": statistics(8, 9)}, X, "more than once"),
    "merged": (
        lambda p, x: normalize(p["bn"], x @ (p["w"] + p["lora"])),
        {**W, "lora": kernel(1, 8, 6), "bn": statistics(6)},
        X,
        "computed from several",
    ),
    "batch_statistics": (batch_statistics, {**W, "scale": draw(1, 6)}, X, "output is used more than once"),
    "data_scale": (lambda p, x: (x @ p["w"]) * x[:, :1], W, X, "followed by 'mul'"),
    "reciprocal": (lambda p, x: p["gain"] / (x @ p["w"]), {**W, "gain": draw(1, 6)}, X, "followed by 'div'"),
    "read_twice": (read_twice, {**W, "bn": statistics(6)}, X, "output is used more than once"),
    "plain": (lambda p, x: (x @ p["w"] + p["b"]) * 0.5, {**W, "b": draw(1, 6)}, X, "the function's"),
    "per_place": (lambda p, x: p["gain"][:, None] * (x @ p["w"]), {**W, "gain": draw(1, 5)}, SEQUENCE, "'mul'"),
    "flattened": (flattened, {**W, "gain": draw(1, 30)}, SEQUENCE, "merged with other axes"),
    "scanned": (scanned, {"w": kernel(0, 2, 8, 8), "bn": STACKED}, X, "scan"),
    "linen_train": (*ZOO["linen_train"], "output is used more than once"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_folded_is_left_alone_and_says_why(name):
    fn, params, x, reason = REFUSED[name]
    folded_fn, folded = fold_batchnorm(fn, params, x)
    assert (folded_fn is fn, folded is params) == (True, True)
    assert reason in next(iter(why_not_folded(fn, params, x).values()))


def test_a_batchnorm_that_follows_no_layer_is_reported():
    fn, params, _, _ = FUNCTIONS["dense"]
    first = {**params, "first": statistics(8), "last": statistics(3)}

    def preceded(params, x):
        y = fn(params, jnp.tanh(normalize(params["first"], x)))
        return jnp.tanh(normalize(params["last"], y + x[:, :3]))

    folded_fn, folded = fold_batchnorm(preceded, first, X)
    assert list(folded["folded"]) == ["w"]
    assert_close(folded_fn(folded, X), preceded(first, X))
    assert why_not_folded(preceded, first, X) == {
        "out": "no scale follows: it is followed by 'add'",
        "first/scale": "it scales an input",
        "last/scale": "it follows 'add', not a layer",
    }
    fn, params, x, _ = REFUSED["read_twice"]
    assert why_not_folded(fn, params, x)["bn/scale"] == "it follows w, which cannot take it"


def test_an_entry_of_that_name_is_refused():
    params = {**W, "bn": statistics(6), "folded": draw(0)}
    with pytest.raises(GraphError, match="already have an entry 'folded'"):
        fold_batchnorm(lambda p, x: normalize(p["bn"], x @ p["w"]) + p["folded"], params, X)


@pytest.mark.slow
def test_published_resnet20_predicts_the_same(cifar10_folder):
    model = MODELS["resnet20"](10)
    variables = load_npz(shared_path("data", "weights", "resnet20_cifar10.npz"), shapes(model))
    inputs = prepare(read_file(CIFAR10, next(cifar10_folder.rglob("test_batch.bin"))).inputs[:256])
    folded_fn, folded = fold_batchnorm(model.apply, variables, inputs)
    expected, actual = jax.jit(model.apply)(variables, inputs), jax.jit(folded_fn)(folded, inputs)
    assert_close(actual, expected)
    np.testing.assert_array_equal(actual.argmax(-1), expected.argmax(-1))
