"""Re-estimated statistics are those of the quantized model, and help it."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from graph.zoo import draw
from ptq.float_functions import assert_close, filled, shapes

import qresearch as qr
from qresearch.errors import DataError, GraphError
from qresearch.models import MODELS
from qresearch.ptq.fold_batchnorm import fold_batchnorm
from qresearch.ptq.reestimate_batchnorm import reestimate_batchnorm
from qresearch.ptq.state import Quantized

KEY = jax.random.key(0)
X = draw(0, 32, 8, 8, 1)


def quantized(fn, params, bits, x=X):
    weight = qr.SiteRule(granularity="per_channel", range="absmax")
    model = qr.quantize_model(fn, params, x[:8], (qr.Rule(weight=weight, input=None),))
    widths = jnp.full((len(model.units), 2), float(bits))
    qparams = jax.jit(model.init)(params, x[:8], widths)
    return Quantized(model, params, qparams, widths, x, jnp.zeros(len(x)), lambda outputs, targets: outputs.sum())


@functools.cache
def normalized(name):
    """(model, variables): a float model with the statistics that it has on X."""
    model = MODELS[name](10)
    variables, train = jax.tree.map(jnp.asarray, filled(shapes(model))), jax.jit(model.apply_train)
    for _ in range(120):  # 0.9 ** 120 = 3e-6 of the first statistics is left
        variables = {**variables, **train(variables, (X, KEY))[1]}
    return model, variables


def outputs(own):
    return jax.jit(own.model.apply)(own.params, own.qparams, own.x, own.bits)


@pytest.mark.parametrize("name", ["digits_cnn", "nnx_cnn"])
def test_one_batch_is_normalized_as_in_training(name):
    """Where the float statistics are those of the batch, the new ones are too: evaluation is training mode."""
    model, variables = normalized(name)
    own = quantized(model.apply, variables, 3)
    twin = own.model.twin(model.apply_train, variables, (X, KEY))
    expected = jax.jit(twin.apply)(variables, own.qparams, (X, KEY), own.bits)[0]
    assert_close(
        outputs(reestimate_batchnorm(batch=32)(own._replace(apply_train=model.apply_train), KEY)), expected, 1e-4
    )


def test_many_bits_change_nothing_whatever_the_examples():
    """The statistics of training stay, although those of a few examples are others."""
    model, variables = normalized("digits_cnn")
    own = quantized(model.apply, variables, 16)._replace(x=2 * X[:16] + 1)
    again = reestimate_batchnorm(batch=8)(own._replace(apply_train=model.apply_train), KEY)
    assert_close(again.params["batch_stats"], variables["batch_stats"], 1e-2)


def test_few_bits_lose_less():
    model, variables = normalized("digits_cnn")
    own = quantized(model.apply, variables, 3)
    again = reestimate_batchnorm(batch=16)(own._replace(apply_train=model.apply_train), KEY)
    expected = jax.jit(model.apply)(variables, X)
    before, after = (float(jnp.mean((outputs(q) - expected) ** 2)) for q in (own, again))
    assert after < 0.8 * before
    assert jax.tree.all(jax.tree.map(np.array_equal, again.params["params"], variables["params"]))


def test_without_statistics_it_says_what_to_do():
    mlp = MODELS["mlp"](10)
    own = quantized(mlp.apply, filled(shapes(mlp)), 8)
    with pytest.raises(GraphError, match=r"no BatchNorm statistics .* use bias_correction"):
        reestimate_batchnorm()(own._replace(apply_train=mlp.apply_train), KEY)
    model, variables = normalized("nnx_cnn")
    own = quantized(*fold_batchnorm(model.apply, variables, X[:8]), 8)
    with pytest.raises(GraphError, match="no BatchNorm statistics"):
        reestimate_batchnorm()(own._replace(apply_train=model.apply_train), KEY)


def test_examples_come_in_whole_batches():
    model, variables = normalized("nnx_cnn")
    with pytest.raises(DataError, match="batches of 20, got 32"):
        reestimate_batchnorm(batch=20)(
            quantized(model.apply, variables, 8)._replace(apply_train=model.apply_train), KEY
        )
