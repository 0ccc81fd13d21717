from __future__ import annotations

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closed_forms import compare
from conftest import golden_cases

from qresearch.errors import GraphError
from qresearch.numerics.codes import decode
from qresearch.numerics.granularity import per_channel
from qresearch.numerics.power_levels import additive_levels, power_of_two_levels
from qresearch.quantizers import QuantSpec
from qresearch.quantizers.apot import APoT, apot
from qresearch.quantizers.base import UnsupportedSpecError


@cache
def compiled(signed: bool, levels: str, normalize: bool | None = None):
    """(alpha, x, bits, dy) -> (x̂, the gradient of alpha, the gradient of x)."""
    apply = apot(QuantSpec(signed=signed), levels=levels, normalize=normalize).apply

    @jax.jit
    def run(alpha, x, bits, upstream):
        x_hat, pullback = jax.vjp(lambda alpha, x: apply(APoT(alpha), x, bits), alpha, x)
        return x_hat, *pullback(upstream)

    return run


def test_the_authors_computed_the_same():
    """Every weight and activation case; the authors' 2-bit weights are uniform, as the additive levels are there."""
    compared = 0
    for case, arrays in golden_cases("apot"):
        if "x" not in arrays:
            continue  # level sets: tests/numerics/test_power_levels.py
        name, signed = case["case"], case["case"].startswith("weight")
        x, upstream = (jnp.asarray(arrays[key]) for key in ("x", "dy"))
        alpha = jnp.full((1,) * x.ndim, case["alpha"], jnp.float32)
        used = ["uniform"] if "uniform" in name else ["additive", "uniform"] if name == "weight_b2" else ["additive"]
        for levels in used:
            found = compiled(signed, levels)(alpha, x, jnp.float32(case["bits"]), upstream)
            compared += compare(name, "y", found[0], arrays["y"], 1e-6)
            compared += compare(name, "dalpha", found[1], arrays["dalpha"], 2e-5)
            compared += compare(name, "dx", found[2], arrays["dx"], 2e-5)
    print(f"compared {compared} elements, none left out")
    assert compared == 5 * (72 + 72 + 1) + 4 * (96 + 96 + 1) + 4 * (101 + 101 + 1)


@pytest.mark.parametrize(("levels", "build"), [("additive", additive_levels), ("power_of_two", power_of_two_levels)])
@pytest.mark.parametrize("signed", [True, False])
def test_the_nearest_level_is_found_at_every_width(signed, levels, build):
    generator = np.random.default_rng(0)
    v = np.float32(generator.uniform(-1.2 if signed else -0.1, 1.2, 3000))
    for bits in range(1, 10):
        magnitudes = np.float32(build(min(bits - signed, 8)))
        grid = np.unique(np.concatenate([magnitudes, -magnitudes]) if signed else magnitudes)
        assert len(grid) <= (2 ** min(bits, 9) - 1 if signed else 2 ** min(bits, 8))
        wanted = grid[np.abs(np.clip(v, -1, 1)[:, None] - grid).argmin(1)]
        run = compiled(signed, levels, False)
        x_hat = run(jnp.full((1,), 2.0, jnp.float32), jnp.asarray(2 * v), jnp.float32(bits), jnp.zeros(3000))[0]
        distance = np.abs(np.abs(np.asarray(x_hat) / 2 - v) - np.abs(wanted - v))
        assert distance.max() < 1e-7, f"{bits} bits"


def test_a_weight_is_quantized_as_it_is_normalised():
    weight = jax.random.normal(jax.random.key(0), (64, 32))
    factor, offset = jnp.linspace(0.1, 5, 32).reshape(1, 32), jnp.linspace(-3, 3, 32).reshape(1, 32)

    @partial(jax.jit, static_argnums=0)
    def quantize(normalize, weight):
        quantizer = apot(QuantSpec(granularity=per_channel(1)), normalize=normalize)
        qparams = quantizer.init(weight, 4.0)
        return quantizer.apply(qparams, weight, 4.0), qparams.alpha

    x_hat, alpha = quantize(True, weight)
    assert (alpha == 3).all()
    moved, _ = quantize(True, weight * factor + offset)
    assert (jnp.abs(moved - x_hat) < 1e-5).mean() > 0.999  # but for elements at a threshold
    normalised = (weight - weight.mean(0, keepdims=True)) / weight.std(0, ddof=1, keepdims=True)
    assert ((x_hat - normalised) ** 2).mean() < 0.03
    raw, _ = quantize(False, weight * factor)
    assert (((raw - weight * factor) / factor) ** 2).mean() < 0.03


def test_a_negative_clipping_value_quantizes_like_its_magnitude_and_recovers():
    x = jax.random.normal(jax.random.key(0), (1, 500))
    run = compiled(True, "additive", False)
    plus, minus = (run(jnp.full((1, 1), alpha), x, jnp.float32(4), x) for alpha in (1.5, -1.5))
    np.testing.assert_array_equal(plus[0], minus[0])
    np.testing.assert_array_equal(plus[1], -minus[1])


def test_the_mask_says_where_gradients_pass():
    x, alpha = jnp.asarray([-3.0, -0.5, 0.5, 3.0]), jnp.ones(1)
    for signed, mask, wanted in (
        (True, None, [1, 1, 1, 1]),
        (True, "unrounded", [0, 1, 1, 0]),
        (False, None, [0, 0, 1, 0]),
        (False, "none", [1, 1, 1, 1]),
    ):
        apply = apot(QuantSpec(signed=signed, mask=mask), normalize=False).apply
        slopes = jax.grad(lambda x, apply=apply: apply(APoT(alpha), x, 4.0).sum())(x)
        np.testing.assert_array_equal(slopes, wanted)
    with pytest.raises(UnsupportedSpecError, match=r"apot.*'rounded'"):
        apot(QuantSpec(mask="rounded"))


def test_unknown_levels_are_refused_with_the_nearest_name():
    with pytest.raises(GraphError, match=r"no levels 'additiv'.*'additive'"):
        apot(QuantSpec(), levels="additiv")


def test_additive_levels_have_less_error_on_bell_shaped_weights_than_powers_of_two():
    weight = jax.random.normal(jax.random.key(1), (1, 5000))

    def least_error(levels, bits):
        run = compiled(True, levels, False)
        alphas = [jnp.full((1, 1), alpha, jnp.float32) for alpha in np.linspace(1.5, 4, 11)]
        return min(float(((run(a, weight, jnp.float32(bits), weight)[0] - weight) ** 2).mean()) for a in alphas)

    for bits in (4, 5, 6):
        assert least_error("additive", bits) < 0.9 * least_error("power_of_two", bits)


def test_stored_codes_are_the_simulated_values():
    x = jax.random.normal(jax.random.key(2), (8, 9))
    for levels in ("additive", "power_of_two", "uniform"):
        for signed in (True, False):
            quantizer = apot(QuantSpec(signed=signed), levels=levels)
            both = jax.jit(
                lambda x, bits, q=quantizer: (q.apply(q.init(x, bits), x, bits), q.encode(q.init(x, bits), x, bits))
            )
            for bits in (1.0, 2.0, 5.0, 8.0, 12.0):
                x_hat, codes = both(x, jnp.float32(bits))
                np.testing.assert_array_equal(decode(codes), x_hat)
