from __future__ import annotations

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closed_forms import assert_exact, compare, gradients64, on_cpu, samples
from conftest import golden_cases

from qresearch.numerics.codes import decode
from qresearch.numerics.granularity import PER_TENSOR, per_channel, per_group
from qresearch.numerics.grid import integer_range
from qresearch.quantizers import QuantSpec
from qresearch.quantizers.lsq_plus import LSQPlus, lsq_plus


def closed_form(x, scale, offset, bits, signed, upstream):
    """LSQ+'s x̂ and its gradients to s, β and x, as the paper prints them; with β = 0 they are LSQ's."""
    qmin, qmax = (-(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1) if signed else (0.0, 2.0**bits - 1)
    t = (x - offset) / scale
    inside = (qmin <= t) & (t <= qmax)
    code = np.rint(np.clip(t, qmin, qmax))
    return scale * code + offset, upstream * np.where(inside, code - t, code), upstream * ~inside, upstream * inside


@pytest.mark.parametrize("bits", [2.0, 3.0, 8.0])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("signed", [True, False])
def test_the_gradients_are_the_papers(signed, symmetric, bits):
    """Symmetric specs are LSQ itself. One element a step, so that the gradient factor is 1 / sqrt(qmax)."""
    x, upstream = samples(int(bits), 4000, 2.0)
    qmax = 2.0 ** (bits - 1) - 1 if signed else 2.0**bits - 1
    scale = np.full(4000, 2.0 / qmax)
    offset = np.zeros(4000) if symmetric else np.resize([0.3, -0.7, -1.9], 4000)
    apply = lsq_plus(QuantSpec(signed=signed, symmetric=symmetric, granularity=per_channel(0))).apply
    wanted, of_scale, of_offset, of_x = closed_form(x, scale, offset, bits, signed, upstream)
    factor = np.float64(np.float32(1) / np.sqrt(np.float32(qmax)))  # a constant of training, computed in float32
    x_hat, ours, ours_x = gradients64("lsq_plus", apply, LSQPlus(scale, offset), x, bits, upstream)
    assert_exact(x_hat, wanted)
    assert_exact(ours.scale, of_scale * factor)
    assert_exact(ours_x, of_x)
    if not symmetric:
        assert_exact(ours.offset, of_offset * factor)
    assert 0.1 < (of_offset != 0).mean() < 0.9

    qparams = jax.tree.map(jnp.float32, LSQPlus(scale, offset))
    _, pullback = jax.vjp(lambda q, x: apply(q, x, bits), qparams, jnp.float32(x))
    low, low_x = pullback(jnp.float32(upstream))
    steps = (x - offset) / scale
    away = (np.abs(np.abs(steps % 1) - 0.5) > 1e-4) & (np.abs(steps - np.rint(steps)) > 1e-4)
    np.testing.assert_array_equal(np.asarray(low_x)[away], of_x[away])
    np.testing.assert_allclose(np.asarray(low.scale)[away], (of_scale * factor)[away], rtol=2e-5, atol=2e-5)


@cache
def torch_like(signed: bool):
    """(scale, offset, x, bits, dy, dy of kept elements) -> x̂, dx, and the two summed gradients without their factor."""
    apply = lsq_plus(QuantSpec(signed=signed, symmetric=False, mask="rounded")).apply

    @jax.jit
    def run(scale, offset, x, bits, dy, kept):
        value, pullback = jax.vjp(lambda q, x: apply(q, x, bits), LSQPlus(scale, offset), x)
        factor = jnp.sqrt(x.size * integer_range(bits, signed)[1])
        slopes = pullback(kept)[0]
        return value, pullback(dy)[1], slopes.scale * factor, slopes.offset * factor

    return run


@on_cpu
def test_torch_learnable_fake_quantize_computed_the_same():
    """torch learns (s, z) with x̂ = s (clip(round(x / s) + ⌊z⌉) - ⌊z⌉): our grid for β = -⌊z⌉ s, ties aside.

    By the chain rule its gradients are dz = -s dβ and ds = ds - ⌊z⌉ dβ. We divide x - β and round once, torch adds the
    zero-point after rounding in the forward pass and before rounding in the backward pass: elements whose three codes
    are not the same one are ties, and left out of values and sums.
    """
    compared = sums = ties = number = 0
    for case, arrays in golden_cases("torch_learnable_per_tensor"):
        x, dy, scale = (np.float32(arrays[name]) for name in ("x", "dy", "scale"))
        z, bits, name = np.rint(arrays["zero_point"]), float(case["bits"]), case["case"]
        inverse = np.float32(1) / scale
        forward = np.rint(x * inverse) + z
        backward = np.rint((np.float64(x) * inverse + z).astype(np.float32))
        offset = -z * scale
        code = np.rint((x - offset) / scale) + 0.0
        keep = (forward == code) & (backward == code)
        steps = np.float64(x) / np.float64(scale)
        distance = np.abs(np.abs(steps - np.floor(steps)) - 0.5)
        assert (distance[~keep] <= 4 * np.finfo(np.float32).eps * np.maximum(1, np.abs(steps))[~keep]).all()

        padded = [jnp.asarray(np.pad(value, (0, 96 - x.size))) for value in (x, dy, np.where(keep, dy, 0))]
        value, dx, dscale, doffset = torch_like(case["signed"])(scale, offset, padded[0], bits, *padded[1:])
        compared += compare(name, "y", value[: x.size], arrays["y"], 1e-6, keep)
        compared += compare(name, "dx", dx[: x.size], arrays["dx"], 2e-5, keep)

        lost, (qmin, qmax) = np.float64(np.where(keep, 0, dy)), (case["qmin"], case["qmax"])
        outside = (backward < qmin) | (backward > qmax)
        lost_scale = lost * (np.clip(backward, qmin, qmax) - z - np.where(outside, 0, np.float64(x) / scale))
        lost_zero_point = lost * np.where(outside, -np.float64(scale), 0)
        factor = case["grad_factor"]
        theirs = arrays["dscale"] - factor * lost_scale.sum()
        sums += compare(name, "dscale", factor * (dscale - z * doffset), theirs, 2e-5)
        theirs = arrays["dzero_point"] - factor * lost_zero_point.sum()
        sums += compare(name, "dzero_point", factor * -scale * doffset, theirs, 2e-5)
        ties, number = ties + int((~keep).sum()), number + 1
    print(f"torch learnable: {number} cases, {compared} values and {sums} sums compared, {ties} ties left out")
    assert (number, compared, sums, ties) == (96, 13592, 192, 668)


@pytest.mark.parametrize("granularity", [PER_TENSOR, per_channel(1), per_group(-1, 16)])
def test_weights_start_at_three_deviations(granularity):
    x = granularity.view(jax.random.normal(jax.random.key(0), (6, 4, 32)) * 0.2 + 0.1)
    axes = granularity.shared_axes(x.ndim)
    mean, deviation = (f(np.float64(x), axis=axes, keepdims=True) for f in (np.mean, np.std))
    for bits in (2.0, 4.0, 8.0):
        ours = lsq_plus(QuantSpec(granularity=granularity)).init(x, bits)
        np.testing.assert_allclose(ours.scale, (np.abs(mean) + 3 * deviation) / 2 ** (bits - 1), rtol=1e-5)
        assert (ours.offset == 0).all()


@pytest.mark.parametrize("shape", ["normal", "swish", "shifted"])
def test_inputs_start_at_the_least_squared_error(shape):
    """Better than the best affine range, sevenfold where that stretches to zero; on N(0, 1) Max's uniform quantizer."""
    normal = jax.random.normal(jax.random.key(0), (20_000,))
    x = {"normal": normal, "swish": normal * jax.nn.sigmoid(1.7 * normal), "shifted": normal + 20.0}[shape]

    @jax.jit
    def errors(bits):
        best, calibrated = (lsq_plus(QuantSpec(False, False, range=name)) for name in (None, "mse"))
        return [((q.apply(q.init(x, bits), x, bits) - x) ** 2).mean() for q in (best, calibrated)]

    for bits, optimum in {2.0: 0.1188, 3.0: 0.03744, 4.0: 0.01154}.items():  # Max 1960, table II
        best, calibrated = errors(bits)
        assert best <= calibrated * {"normal": 1.0, "swish": 0.92, "shifted": 0.15}[shape]
        if shape == "normal":
            assert best < 1.04 * optimum


@pytest.mark.parametrize("granularity", [PER_TENSOR, per_channel(1), per_group(-1, 16)])
def test_codes_decode_to_the_result_bit_for_bit(granularity):
    x = granularity.view(jax.random.normal(jax.random.key(1), (6, 4, 32)))
    shape = tuple(1 if axis in granularity.shared_axes(x.ndim) else x.shape[axis] for axis in range(x.ndim))
    quantizer = lsq_plus(QuantSpec(False, False, granularity))
    keys = jax.random.split(jax.random.key(2), 2)
    qparams = LSQPlus(jax.random.uniform(keys[0], shape, minval=-0.3, maxval=0.3), jax.random.normal(keys[1], shape))

    @jax.jit
    def both(bits):
        codes = quantizer.encode(qparams, x, bits)
        return decode(codes), quantizer.apply(qparams, x, bits), codes

    for bits in (1.0, 2.0, 4.0, 8.0, 16.0):
        decoded, x_hat, codes = both(bits)
        np.testing.assert_array_equal(decoded, x_hat)
        np.testing.assert_allclose(-codes.zero_point * codes.scale, qparams.offset, rtol=1e-6)
        assert 0 <= int(codes.values.min()) <= int(codes.values.max()) <= 2**bits - 1


def test_the_offset_is_learned_to_where_the_data_are():
    """From β = 0, descent moves an unsigned grid onto data in [-2, -1], where without an offset all would be 0."""
    x = jax.random.uniform(jax.random.key(0), (2000,), minval=-2.0, maxval=-1.0)
    quantizer = lsq_plus(QuantSpec(signed=False, symmetric=False))

    def loss(qparams):
        return ((quantizer.apply(qparams, x, 3.0) - x) ** 2).mean()

    @jax.jit
    def descend(qparams):
        step = lambda q, _: (jax.tree.map(lambda v, g: v - 2.0 * g, q, jax.grad(loss)(q)), None)  # noqa: E731
        return jax.lax.scan(step, qparams, None, length=2000)[0]

    start = LSQPlus(jnp.full((1,), 0.1), jnp.zeros((1,)))
    end = descend(start)
    assert loss(start) > 1.0
    assert loss(end) < 2 * (1 / 7) ** 2 / 12
    assert -2.1 < end.offset.item() < -1.8


def test_what_is_learned_and_declared_follows_the_spec():
    weights, inputs = (lsq_plus(QuantSpec(symmetric=symmetric)) for symmetric in (True, False))
    assert (weights.learnable, weights.traits) == (("scale",), frozenset())
    assert (inputs.learnable, inputs.traits) == (("scale", "offset"), {"no_zero_level"})
    assert lsq_plus(QuantSpec(mask="none")).traits == {"passes_gradient"}
