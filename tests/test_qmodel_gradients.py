"""Gradients of quantized models: those of the straight-through composition, for dense and convolution alike."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from graph.zoo import IMAGE, ZOO, Entry, X, convolve, draw, kernel
from jax import lax
from quantized_models import (
    STEPS,
    build,
    case,
    clipping,
    full,
)

from qresearch.numerics.fake_quant import fake_quant
from qresearch.numerics.grid import integer_range
from qresearch.rules import Rule, SiteRule


def straight_through(x, scale, bits, signed):
    """Fake quantization by the textbook: clip, divide, round with the gradient of the identity, multiply."""
    qmin, qmax = integer_range(bits, signed)
    units = jnp.minimum(jnp.maximum(x / scale, qmin), qmax)
    return (units + lax.stop_gradient(jnp.round(units) - units)) * scale


@pytest.mark.parametrize("operation", ["dense", "conv"])
@pytest.mark.parametrize("bits", [2.0, 4.0])
def test_gradients_are_those_of_the_straight_through_composition(operation, bits):
    # Elsewhere dense gradients are the float ones and convolution gradients the straight-through ones.
    if operation == "dense":
        params, x = {"w": kernel(0, 8, 6)}, X

        def contract(w, x):
            return x @ w
    else:
        params, x = {"w": kernel(0, 3, 3, 3, 4)}, IMAGE

        def contract(w, x):
            return convolve(x, w)

    site = SiteRule("lsq", range="minmax", mask="unrounded")
    entry = Entry(lambda p, x: contract(p["w"], x), params, x)
    model, _, _, qparams, _ = build(entry, Rule(weight=site, input=site), at=bits)
    scales = clipping(qparams)
    target = draw(9, *contract(params["w"], x).shape)

    def actual(w, x):
        return jnp.sum(target * model.apply({"w": w}, scales, x, full(model, bits)))

    def by_hand(w, x):
        w = straight_through(w, scales["w"]["weight"].scale, bits, True)
        return jnp.sum(target * contract(w, straight_through(x, scales["w"]["input"].scale, bits, True)))

    mine, theirs = (jax.jit(jax.grad(loss, argnums=(0, 1)))(params["w"], x) for loss in (actual, by_hand))
    in_float = jax.grad(lambda w, x: jnp.sum(target * contract(w, x)), argnums=(0, 1))(params["w"], x)
    for gradient, expected, unquantized in zip(mine, theirs, in_float):
        np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-5)
        assert jnp.linalg.norm(unquantized - expected) > 0.05 * jnp.linalg.norm(expected)
        assert 0 < (expected == 0).mean() < 1  # clipped values get none


def test_steps_learn_through_the_model():
    # Against the composition of the primitive by hand, LSQ's gradient scale included.
    model, params, x, qparams, _ = case("mlp", STEPS)
    bits = jnp.array([[2.0, 4.0], [3.0, 3.0]])

    def quantize(x, site, width, signed):
        qmin, qmax = integer_range(width, signed)
        factor = 1 / jnp.sqrt(x.size / site.scale.size * jnp.maximum(qmax, 1.0))
        scale = site.scale * factor + lax.stop_gradient(site.scale * (1 - factor))
        return fake_quant(x, scale, 0.0, qmin, qmax, mask="unrounded")

    def by_hand(qparams):
        h = quantize(x, qparams["hidden/w"]["input"], bits[0, 1], True)
        h = h @ quantize(params["hidden"]["w"], qparams["hidden/w"]["weight"], bits[0, 0], True)
        h = quantize(jax.nn.relu(h + params["hidden"]["b"]), qparams["out/w"]["input"], bits[1, 1], False)
        h = h @ quantize(params["out"]["w"], qparams["out/w"]["weight"], bits[1, 0], True) + params["out"]["b"]
        return jnp.sum(h**2)

    mine = jax.jit(jax.grad(lambda q: jnp.sum(model.apply(params, q, x, bits) ** 2)))(qparams)
    theirs = jax.jit(jax.grad(by_hand))(qparams)
    for actual, expected in zip(jax.tree.leaves(mine), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-3)
        assert jnp.any(actual != 0)


def test_bits_receive_a_gradient_layer_by_layer():
    model, params, x, qparams, _ = case("scan_stack", STEPS, at=3.0)
    bits, steps = full(model, 3.0), clipping(qparams)
    gradient = jax.jit(jax.grad(lambda bits: jnp.sum(model.apply(params, steps, x, bits)[0] ** 2)))
    assert jnp.all(gradient(bits) != 0)
    assert gradient(bits).shape == (5, 2)


def test_every_iteration_has_bits_of_its_own():
    model, params, x, qparams, apply = case("scan_stack")
    base = full(model, 32.0)
    for i in range(3):
        bits = base.at[i, 0].set(2.0)
        unit = model.units[i]
        w = params["blocks"]["w"]
        rounded = unit.weight.apply(qparams[f"blocks/w@{i}"]["weight"], w[i], 2.0)
        other = params | {"blocks": params["blocks"] | {"w": w.at[i].set(rounded)}}
        outputs, expected = apply(params, qparams, x, bits)[0], ZOO["scan_stack"].fn(other, x)[0]
        np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-6)
        assert not np.allclose(outputs, apply(params, qparams, x, base)[0], atol=1e-3)


def test_scan_over_remat_trains_every_iteration():
    model, params, x, qparams, _ = case("linen_scan", STEPS, at=3.0)
    bits = full(model, 3.0)

    @jax.jit
    def gradients(params, qparams, bits):
        loss = jax.grad(lambda p, q, b: jnp.sum(model.apply(p, q, x, b) ** 2), argnums=(0, 1, 2))
        return loss(params, qparams, bits)

    in_params, in_qparams, in_bits = gradients(params, clipping(qparams), bits)
    assert jnp.all(jnp.any(in_params["params"]["blocks"]["Dense_0"]["kernel"] != 0, (1, 2)))
    assert all(jnp.any(leaf != 0) for leaf in jax.tree.leaves(in_qparams))
    assert jnp.all(in_bits[:, 0] != 0)
    assert jnp.isfinite(in_bits).all()
