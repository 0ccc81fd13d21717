"""SmoothQuant keeps the function, and takes outliers of a channel out of the inputs."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from graph.zoo import SEQUENCE, X, draw, kernel
from ptq.float_functions import assert_close, filled

import qresearch as qr
from qresearch.errors import ConfigError, DataError
from qresearch.graph.handlers import record
from qresearch.models import MODELS
from qresearch.models.model import from_linen
from qresearch.models.vit import ViT
from qresearch.ptq.smoothquant import smoothed_layers, smoothquant

OUTLIERS = np.array([3, 17])
IMAGES, TOKENS = draw(0, 4, 16, 16, 3), jnp.arange(4 * 12).reshape(4, 12) % 7
READERS = {"norm1": ("attention/query", "attention/key", "attention/value"), "norm2": ("mlp1",)}


@functools.cache
def transformer(name):
    """(fn, params, x) of two blocks, with two channels of every block's inputs 40 times the others, and the rows of
    the kernels that read them as much smaller.
    """
    model, x = SMALL[name]
    params = filled(jax.eval_shape(model.init, jax.random.key(0), x))
    for block in (params["params"][f"block{i}"] for i in range(2)):
        for norm, readers in READERS.items():
            for leaf in ("scale", "bias"):
                block[norm][leaf][OUTLIERS] *= 40
            for reader in readers:
                path = functools.reduce(dict.__getitem__, reader.split("/"), block)
                path["kernel"][OUTLIERS] /= 40
    return model.apply, params, x


VIT = from_linen(ViT(classes=5, patch=8, width=32, depth=2, heads=2, drop_path=0.0))
SMALL = {"vit": (VIT, IMAGES), "gpt": (MODELS["gpt"](7), TOKENS)}
transformers = pytest.mark.parametrize("name", SMALL)


@functools.cache
def measured(name):
    """params -> (outputs, squared error relative to them with all layers at 8 bits per tensor, what layers see)."""
    fn, params, x = transformer(name)
    per_tensor = qr.SiteRule(range="absmax", signed=True)
    model = qr.quantize_model(fn, params, x, (qr.Rule(weight=per_tensor, input=per_tensor),))
    bits = jnp.full((len(model.units), 2), 8.0)

    @jax.jit
    def measure(params):
        outputs, seen = model.graph(params, x).run(record, params, x)
        error = model.apply(params, model.init(params, x, bits), x, bits) - outputs
        return outputs, jnp.sum(error**2) / jnp.sum(outputs**2), seen

    return measure


@transformers
def test_planted_outliers_cost_less_and_the_function_stays(name):
    fn, params, x = transformer(name)
    same, smoothed = smoothquant(fn, params, x)
    assert same is fn
    (expected, before, _), (actual, after, _) = map(measured(name), (params, smoothed))
    assert_close(actual, expected)
    assert after < 0.2 * before


@transformers
def test_inputs_and_kernels_share_the_difficulty(name):
    """After alpha = 1/2, max|X_j| = max|W_j| in every channel."""
    fn, params, x = transformer(name)
    _, smoothed = smoothquant(fn, params, x)
    found = measured(name)(smoothed)[2]
    for readers in READERS.values():
        names = [f"block1/{reader}/kernel" for reader in readers]
        weights = np.max([np.abs(found[n]["weight"][0]).max(1) for n in names], axis=0)
        np.testing.assert_allclose(np.abs(found[names[0]]["input"]).max((0, 1, 2)), weights, rtol=1e-4)


@transformers
def test_what_follows_a_normalization_or_the_values_is_smoothed(name):
    fn, params, x = transformer(name)
    readers = [f"{reader}/kernel" for names in READERS.values() for reader in names]
    blocks = {f"block{i}/{reader}" for i in range(2) for reader in (*readers, "attention/out/kernel")}
    # The last normalization's reader: GPT's is the embedding, which is read elsewhere too.
    assert set(smoothed_layers(fn, params, x)) == blocks | ({"linear/kernel"} if name == "vit" else set())


def test_alpha_says_how_much_moves():
    fn, params, x = transformer("vit")
    bounds = {}
    for alpha in (0.0, 1.0):
        _, smoothed = smoothquant(fn, params, x, alpha=alpha)
        found = measured("vit")(smoothed)[2]["block0/mlp1/kernel"]
        bounds[alpha] = np.abs(found["weight"][0]).max(1), np.abs(found["input"]).max((0, 1, 2))
    np.testing.assert_allclose(bounds[0.0][0], 1, rtol=1e-4)  # all difficulty is left in the inputs
    np.testing.assert_allclose(bounds[1.0][1], 1, rtol=1e-4)


def test_the_layer_before_is_divided_where_there_is_no_normalization():
    params = {"a": kernel(0, 8, 6) * jnp.array([50.0, 1, 1, 1, 1, 1]), "b": draw(1, 6), "c": kernel(2, 6, 3)}

    def fn(params, x):
        return jax.nn.relu(x @ params["a"] + params["b"]) @ params["c"]

    _, smoothed = smoothquant(fn, params, X)
    assert_close(fn(smoothed, X), fn(params, X))
    assert jnp.abs(smoothed["a"][:, 0]).max() < 0.5 * jnp.abs(params["a"][:, 0]).max()


def test_channels_that_are_never_active_stay():
    params = {"scale": draw(0, 8).at[2].set(0), "w": kernel(1, 8, 4).at[5].set(0)}

    def fn(params, x):
        return (params["scale"] * jnp.tanh(x)) @ params["w"]

    _, smoothed = smoothquant(fn, params, X)
    assert_close(fn(smoothed, X), fn(params, X))
    np.testing.assert_array_equal(smoothed["w"][2], params["w"][2])
    assert smoothed["scale"][5] == params["scale"][5]


UNSMOOTHED = {
    "no factor": (lambda p, x: jnp.tanh(x) @ p["w"], {"w": kernel(0, 8, 4)}, X),
    "a residual": (lambda p, x: (x * p["s"] + x) @ p["w"], {"w": kernel(0, 8, 4), "s": draw(1, 8)}, X),
    "read twice": (lambda p, x: (x * p["s"]) @ p["w"] + p["s"].sum(), {"w": kernel(0, 8, 4), "s": draw(1, 8)}, X),
    "per place": (lambda p, x: (x * p["s"][:, None]) @ p["w"], {"w": kernel(0, 8, 4), "s": draw(1, 5)}, SEQUENCE),
}


@pytest.mark.parametrize("name", UNSMOOTHED)
def test_inputs_that_nothing_makes_are_left_alone(name):
    fn, params, x = UNSMOOTHED[name]
    assert smoothquant(fn, params, x) == (fn, params)
    assert smoothed_layers(fn, params, x) == ()


def test_arguments_are_checked():
    fn, params, x = transformer("vit")
    with pytest.raises(ConfigError, match="between 0 and 1, got 2"):
        smoothquant(fn, params, x, alpha=2)
    with pytest.raises(DataError, match="calibration examples"):
        smoothquant(fn, params, jax.ShapeDtypeStruct(x.shape, x.dtype))
