from __future__ import annotations

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closed_forms import assert_exact, gradients64
from conftest import golden_cases
from jax.lax import stop_gradient

from qresearch.numerics.fake_quant import fake_quant
from qresearch.numerics.granularity import PER_TENSOR, per_channel, per_group
from qresearch.numerics.grid import integer_range
from qresearch.quantizers import QuantSpec, make_quantizer
from qresearch.quantizers.base import UnsupportedSpecError
from qresearch.quantizers.lsq import LSQ, lsq


def closed_form(x, step, qmin, qmax, upstream):
    """LSQ's gradients as the paper prints them, in float64: of the input, and summed of the step."""
    ratio = x / step
    inside = (qmin < ratio) & (ratio < qmax)
    slope = np.where(ratio <= qmin, qmin, np.where(ratio >= qmax, qmax, np.rint(ratio) - ratio))
    return upstream * inside, (upstream * slope).sum()


def composition(x, step, qmin, qmax):
    """x̂ = s round(clip(x / s, qmin, qmax)) with a straight-through round and no clip gradient of one half."""
    ratio = x / step
    clipped = jnp.where(ratio <= qmin, qmin, jnp.where(ratio >= qmax, qmax, ratio))
    return step * (clipped + stop_gradient(jnp.round(clipped) - clipped))


@pytest.mark.parametrize(("bits", "signed"), [(2, True), (3, False), (4, True), (8, True), (8, False)])
def test_the_closed_form_is_autodiff_and_ours_in_float64(bits, signed):
    generator = np.random.default_rng(bits)
    qmin, qmax = (-(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1) if signed else (0.0, 2.0**bits - 1)
    step = np.float64(np.float32(3 / qmax))
    x = np.float64(generator.normal(0, 2, 4000).astype(np.float32))
    upstream = np.float64(generator.normal(0, 1, 4000).astype(np.float32))
    dx, dstep = closed_form(x, step, qmin, qmax, upstream)
    with jax.enable_x64(True):
        _, pullback = jax.vjp(lambda x, s: composition(x, s, qmin, qmax), jnp.asarray(x), jnp.asarray(step))
        autodiff = [np.asarray(value) for value in pullback(jnp.asarray(upstream))]
    assert autodiff[1].dtype == np.float64
    np.testing.assert_allclose(autodiff[0], dx, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(autodiff[1], dstep, rtol=1e-12, atol=1e-12)

    apply = make_quantizer("lsq", QuantSpec(signed=signed)).apply
    _, ours, ours_dx = gradients64("lsq", apply, LSQ(np.full((1,), step)), x, float(bits), upstream)
    factor = np.float64(np.float32(1) / np.sqrt(np.float32(4000 * qmax)))  # a constant of training, in float32
    assert_exact(ours_dx, dx)
    assert_exact(ours.scale / factor, dstep)


@pytest.mark.parametrize("granularity", [PER_TENSOR, per_channel(0, 1), per_group(-1, 16)])
@pytest.mark.parametrize("signed", [True, False])
def test_the_gradient_of_a_step_is_scaled_by_the_elements_that_share_it(granularity, signed):
    spec = QuantSpec(signed=signed, granularity=granularity)
    x = granularity.view(jax.random.normal(jax.random.key(0), (6, 4, 32)))
    quantizer = lsq(spec)

    @jax.jit
    def both(bits):
        qparams, (qmin, qmax) = quantizer.init(x, bits), integer_range(bits, signed)
        plain = partial(fake_quant, x, zero_point=0.0, qmin=qmin, qmax=qmax, mask="unrounded")
        ours = jax.grad(lambda q: (quantizer.apply(q, x, bits) * jnp.sin(x)).sum())(qparams).scale
        raw = jax.grad(lambda s: (plain(s) * jnp.sin(x)).sum())(qparams.scale)
        return ours, raw, qmax

    for bits in (1.0, 2.0, 4.0):
        ours, raw, qmax = both(jnp.float32(bits))
        elements = x.size / raw.size
        np.testing.assert_allclose(ours, raw / np.sqrt(elements * max(float(qmax), 1)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("granularity", [PER_TENSOR, per_channel(1), per_group(0, 2)])
@pytest.mark.parametrize("signed", [True, False])
def test_the_initial_step_is_the_papers(granularity, signed):
    x = np.random.default_rng(0).normal(0, 2, (6, 4, 10)).astype(np.float32)
    quantizer = make_quantizer("lsq", QuantSpec(signed=signed, granularity=granularity))
    view = np.asarray(granularity.view(x))
    mean = np.abs(view).mean(granularity.shared_axes(view.ndim), keepdims=True)
    for bits in (2, 4, 8):
        qmax = 2.0 ** (bits - 1) - 1 if signed else 2.0**bits - 1
        np.testing.assert_allclose(
            quantizer.init(jnp.asarray(x), float(bits)).scale, 2 * mean / np.sqrt(qmax), rtol=1e-6
        )


def test_an_mse_range_starts_with_less_error_than_the_papers_step():
    x = jax.random.normal(jax.random.key(0), (4096,))
    error = {}
    for name in (None, "mse"):
        quantizer = make_quantizer("lsq", QuantSpec(range=name))
        error[name] = jax.jit(lambda bits, q=quantizer: ((q.apply(q.init(x, bits), x, bits) - x) ** 2).mean())
    for bits, gain in {2.0: 1.3, 4.0: 2.0, 8.0: 10.0}.items():  # 0.221/0.149, 0.0303/0.0119, 0.0017/0.000088
        assert error[None](jnp.float32(bits)) > gain * error["mse"](jnp.float32(bits))


def test_a_negative_step_quantizes_like_its_magnitude_and_recovers():
    x = jax.random.normal(jax.random.key(0), (4096,))
    apply = make_quantizer("lsq", QuantSpec()).apply

    def loss(qparams):
        return ((apply(qparams, x, 3.0) - x) ** 2).mean()

    @jax.jit
    def descend(scale):
        step = lambda scale, _: (scale - 20.0 * jax.grad(loss)(LSQ(scale)).scale, None)  # noqa: E731
        return jax.lax.scan(step, scale, None, length=400)[0]

    at = jax.jit(lambda scale: jax.value_and_grad(loss)(LSQ(scale)))
    wrong, right = jnp.full((1,), -0.2), jnp.full((1,), 0.2)
    assert at(wrong)[0] == at(right)[0]
    assert at(wrong)[1].scale == -at(right)[1].scale != 0
    assert abs(abs(descend(wrong).item()) - 0.6018) < 0.02  # the MSE-optimal step of N(0, 1) at 3 bits
    for tiny in (0.0, 1e-20, -1e-9):
        value, slope = at(jnp.full((1,), tiny, jnp.float32))
        assert jnp.isfinite(value)
        assert jnp.isfinite(slope.scale).all()


def test_the_step_is_learned():
    assert make_quantizer("lsq", QuantSpec()).learnable == ("scale",)


def test_the_default_mask_is_the_papers_and_the_spec_may_choose_another():
    x = jnp.asarray([7.25, 7.0, 6.9, -8.4, 8.0]) * 0.5  # 7.25 and -8.4 round onto the grid from outside it
    for mask, passes in {None: [0, 1, 1, 0, 0], "rounded": [1, 1, 1, 1, 0], "none": [1, 1, 1, 1, 1]}.items():
        apply = make_quantizer("lsq", QuantSpec(mask=mask)).apply
        slope = jax.jit(jax.grad(lambda x, apply=apply: apply(LSQ(jnp.full((1,), 0.5)), x, 4.0).sum()))(x)
        np.testing.assert_array_equal(slope, passes)


@pytest.mark.parametrize("signed", [True, False])
def test_an_affine_grid_is_refused(signed):
    with pytest.raises(UnsupportedSpecError, match="no zero-point"):
        lsq(QuantSpec(signed=signed, symmetric=False))


def test_lsq_net_computed_the_same():
    """Its per-channel gradients use the elements of the whole tensor; ours, of the channel: sqrt(channels) larger."""
    modes = {"signed": {}, "symmetric": {"narrow": True}, "positive": {"signed": False}}
    cases = [case for case in golden_cases("lsqnet_lsq") if "note" in case[0]]  # the others have a step of our choice
    assert len(cases) == 24

    @cache
    def compiled(mode, per_step):
        quantizer = make_quantizer(
            "lsq", QuantSpec(granularity=per_channel(0) if per_step else PER_TENSOR, **modes[mode])
        )

        @jax.jit
        def run(x, scale, dy, bits):
            value, pullback = jax.vjp(lambda q, x: quantizer.apply(q, x, bits), LSQ(scale), x)
            return quantizer.init(x, bits), value, *pullback(dy)

        return run

    for case, arrays in cases:
        x, scale, dy = (jnp.asarray(array) for array in (arrays["x"], arrays["scale"].reshape(-1, 1), arrays["dy"]))
        start, value, slope, dx = compiled(case["mode"], case["per_channel"])(x, scale, dy, jnp.float32(case["bits"]))
        np.testing.assert_allclose(start.scale, scale, rtol=1e-6)
        np.testing.assert_allclose(value, arrays["y"], rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(dx, arrays["dx"], rtol=2e-5, atol=2e-5)
        wanted = arrays["dscale"].reshape(scale.shape) * np.sqrt(scale.size)
        np.testing.assert_allclose(slope.scale, wanted, rtol=2e-5, atol=2e-5)
