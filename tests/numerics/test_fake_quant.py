from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.lax import stop_gradient

from qresearch.numerics.fake_quant import MASKS, fake_quant, scale_gradient
from qresearch.numerics.rounding import ROUNDINGS, in_steps

NAMES = ("x", "scale", "zero_point", "qmin", "qmax")
SHAPES = {"per_tensor": (), "per_tensor_kept": (1, 1, 1), "per_channel": (1, 5, 1), "per_two_axes": (4, 1, 8)}


def straight_through(x, scale, zero_point, qmin, qmax, mask, rounding):
    """The same function by composition: rounding has the gradient of the identity, clipping that of its branches."""

    def rounded(value, function):
        return value + stop_gradient(function(value) - value)

    steps = x / scale
    offset = rounded(zero_point, jnp.round)
    code = rounded(steps, ROUNDINGS[rounding]) + offset
    position = {"rounded": code, "unrounded": steps + offset, "none": code}[mask]
    clipped = jnp.where(position < qmin, qmin, jnp.where(position > qmax, qmax, code))
    clipped = jnp.where(position <= qmax, jnp.where(position >= qmin, code, qmin), clipped)
    if mask == "none":
        clipped = code + stop_gradient(clipped - code)
    return (clipped - offset) * scale


def arguments(shape: str, signed: bool, seed: int = 0) -> tuple[jax.Array, ...]:
    """Normals over the range and beyond; four elements on the two bounds exactly and half a step beside them."""
    generator = np.random.default_rng(seed)
    scale = generator.uniform(0.1, 0.4, SHAPES[shape]).astype(np.float32)
    zero_point = generator.choice([-2.3, 0.0, 1.0, 2.0], SHAPES[shape]).astype(np.float32)
    qmin, qmax = (-8.0, 7.0) if signed else (0.0, 15.0)
    x = generator.normal(0 if signed else 1, 2, (4, 5, 8)).astype(np.float32)
    return tuple(jnp.asarray(value, jnp.float32) for value in (x, scale, zero_point, qmin, qmax))


def upstream_of(shape, seed=1):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def vjp(function, inputs, seed=1):
    """The value, and the gradients of its product with normal noise."""

    @jax.jit
    def run(*inputs):
        value, pullback = jax.vjp(function, *inputs)
        return value, pullback(upstream_of(value.shape, seed).astype(value.dtype))

    return run(*inputs)


def assert_same(mask: str, rounding: str, many_inputs: list[tuple[jax.Array, ...]]) -> None:
    """fake_quant and the composition agree: values to 1e-6, gradients to float32 rounding, all in one compilation."""

    @jax.jit
    def both(*inputs):
        composition = partial(straight_through, mask=mask, rounding=rounding)
        return vjp(partial(fake_quant, mask=mask, rounding=rounding), inputs), vjp(composition, inputs)

    for inputs in many_inputs:
        (value, gradients), (wanted, autodiff) = both(*inputs)
        np.testing.assert_allclose(value, wanted, rtol=1e-6, atol=1e-6)
        for name, one, other in zip(NAMES, gradients, autodiff, strict=True):
            assert (one.shape, one.dtype) == (other.shape, other.dtype), name
            np.testing.assert_allclose(one, other, rtol=2e-5, atol=2e-5, err_msg=name)
        moving = {name for name, gradient in zip(NAMES, gradients) if jnp.abs(gradient).max() > 0}
        assert moving == ({"x", "scale"} if mask == "none" else set(NAMES))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("mask", MASKS)
def test_the_vjp_is_autodiff_of_the_straight_through_composition(mask, shape):
    assert_same(mask, "half_even", [arguments(shape, signed, seed) for signed in (True, False) for seed in (0, 1)])


@pytest.mark.parametrize("rounding", [name for name in ROUNDINGS if name != "half_even"])
@pytest.mark.parametrize("mask", MASKS)
def test_the_vjp_follows_the_rounding(mask, rounding):
    assert_same(mask, rounding, [arguments("per_channel", signed) for signed in (True, False)])


@pytest.mark.parametrize("mask", MASKS)
def test_every_argument_may_vary_per_channel(mask):
    x, scale, zero_point, _, _ = arguments("per_channel", signed=True)
    qmin = jnp.asarray([-8.0, -4.0, -2.0, 0.0, -128.0]).reshape(1, 5, 1)
    assert_same(mask, "half_even", [(x, scale, zero_point, qmin, qmin + 9.0)])


@pytest.mark.parametrize("mask", ["rounded", "unrounded"])
def test_an_element_exactly_on_a_bound_is_inside(mask):
    """jnp.clip would give the gradient 0.5 there, and round-then-clip puts every saturated integer there."""
    x = jnp.asarray([-8.0, 7.0, -8.5, 7.5, 7.25, -9.0, 8.0]) * 0.125
    inputs = (x, *(jnp.float32(value) for value in (0.125, 0, -8, 7)))
    _, (slope, *_) = vjp(partial(fake_quant, mask=mask), inputs)
    upstream = upstream_of(x.shape)
    # Half to even takes -8.5 to -8, which is on the grid, and 7.5 to 8, which is not.
    inside = {"rounded": [1, 1, 1, 0, 1, 0, 0], "unrounded": [1, 1, 0, 0, 0, 0, 0]}[mask]
    np.testing.assert_array_equal(slope, upstream * jnp.asarray(inside, jnp.float32))


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_the_forward_pass_is_the_formula_in_numpy(rounding):
    function = {"half_even": np.rint, "floor": np.floor, "ceil": np.ceil, "toward_zero": np.trunc}[rounding]
    x, scale, zero_point, qmin, qmax = (np.asarray(value) for value in arguments("per_channel", signed=True))
    steps = np.asarray(in_steps(jnp.asarray(x), jnp.asarray(scale)))
    wanted = (np.clip(function(steps) + np.rint(zero_point), qmin, qmax) - np.rint(zero_point)) * scale
    found = fake_quant(jnp.asarray(x), scale, zero_point, qmin, qmax, rounding=rounding)
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize(("dtype", "mask"), [(jnp.bfloat16, "rounded"), (jnp.float16, "unrounded")])
def test_internals_are_float32_and_the_result_has_the_dtype_of_x(dtype, mask):
    x, scale, zero_point, _, _ = arguments("per_channel", signed=True)
    x = x.astype(dtype)
    rest = (scale * 0.03, zero_point, jnp.float32(-512), jnp.float32(511))  # 10 bits: more than bfloat16 can count
    low_value, low_slopes = vjp(partial(fake_quant, mask=mask), (x, *rest))

    def in_float32(x, *rest):  # the cast passes the same, once rounded, upstream gradient to float32
        return fake_quant(x.astype(jnp.float32), *rest, mask=mask).astype(dtype)

    value, slopes = vjp(in_float32, (x, *rest))
    assert low_value.dtype == low_slopes[0].dtype == dtype
    np.testing.assert_array_equal(low_value, value)
    np.testing.assert_array_equal(low_slopes[0], slopes[0])
    for one, other in zip(low_slopes[1:], slopes[1:]):
        assert one.dtype == jnp.float32
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6)


def test_vmap_over_every_parameter_is_a_loop():
    x, *_ = arguments("per_tensor", signed=True)
    rows = [[0.1, 0.0, -8.0, 7.0], [0.3, 1.0, -2.0, 1.0], [0.05, -3.0, 0.0, 255.0]]
    function = jax.jit(jax.value_and_grad(lambda p: (fake_quant(x, *p) * jnp.cos(x)).sum()))
    values, slopes = jax.jit(jax.vmap(function))(jnp.asarray(rows))
    for value, slope, row in zip(values, slopes, rows):
        wanted, wanted_slope = function(jnp.asarray(row))
        np.testing.assert_allclose(value, wanted, rtol=1e-5)
        np.testing.assert_allclose(slope, wanted_slope, rtol=1e-5, atol=1e-4)


def test_stochastic_rounding_is_unbiased_inside_and_clipped_outside():
    draws = 20_000
    x = jnp.asarray([-0.95, -0.37, 0.0, 0.02, 0.33, 0.699, 0.9])
    keys = jax.random.split(jax.random.key(5), draws)
    draw = lambda key: fake_quant(x, 0.1, 0.0, -8.0, 7.0, rounding="stochastic", key=key)  # noqa: E731
    values = jax.jit(jax.vmap(draw))(keys)
    wanted = np.clip(np.asarray(x, np.float64), -0.8, 0.7)
    # A step of 0.1 has a deviation of at most 0.05 per draw.
    np.testing.assert_allclose(np.asarray(values, np.float64).mean(0), wanted, atol=4 * 0.05 / np.sqrt(draws))
    assert len(np.unique(np.asarray(values)[:, 4])) == 2


def test_the_gradient_of_stochastic_rounding_uses_the_noise_of_the_forward_pass():
    inputs = arguments("per_channel", signed=True)
    value, gradients = vjp(partial(fake_quant, rounding="stochastic", key=jax.random.key(2)), inputs)
    x, scale = inputs[:2]
    upstream = upstream_of(x.shape)
    inside = np.asarray(gradients[0] == upstream)
    slope = np.where(inside, (value - x) / scale, value / scale) * upstream
    np.testing.assert_allclose(gradients[1], slope.sum((0, 2), keepdims=True), rtol=2e-5, atol=2e-5)
    assert 0.5 < inside.mean() < 1


def test_a_key_is_needed_for_stochastic_rounding_and_ignored_otherwise():
    x, *rest = arguments("per_tensor", signed=True)
    with pytest.raises(ValueError, match="needs a key"):
        fake_quant(x, *rest, rounding="stochastic")
    np.testing.assert_array_equal(fake_quant(x, *rest, key=jax.random.key(0)), fake_quant(x, *rest))


@pytest.mark.parametrize("choice", ["mask", "rounding"])
def test_an_unknown_choice_is_refused_with_the_known_ones(choice):
    x, *rest = arguments("per_tensor", signed=True)
    known = {"mask": "unrounded", "rounding": "toward_zero"}[choice]
    with pytest.raises(ValueError, match=rf"{choice} must be .*{known}.*'nearest'"):
        fake_quant(x, *rest, **{choice: "nearest"})


@pytest.mark.parametrize("value", [0.0, 1e30, -1e30, 1e-30, jnp.inf])
@pytest.mark.parametrize("mask", ["rounded", "unrounded"])
def test_extreme_values_give_finite_results_and_gradients(value, mask):
    scale = jnp.finfo(jnp.float32).tiny if value in (0.0, 1e-30) else 0.1
    inputs = tuple(jnp.asarray(one, jnp.float32) for one in ([value, 0.0], scale, 0, -128, 127))
    result, gradients = vjp(partial(fake_quant, mask=mask), inputs)
    assert jnp.isfinite(result).all()
    for name, gradient in zip(NAMES, gradients):
        assert jnp.isfinite(gradient).all(), name


def test_scale_gradient_is_the_identity_with_a_scaled_gradient():
    x = jax.random.normal(jax.random.key(0), (3, 4))
    upstream = jax.random.normal(jax.random.key(1), (3, 4))
    value, pullback = jax.vjp(scale_gradient, x, jnp.float32(0.25))
    np.testing.assert_array_equal(value, x)
    slope, factor_slope = pullback(upstream)
    np.testing.assert_array_equal(slope, 0.25 * upstream)
    assert factor_slope == 0.0
