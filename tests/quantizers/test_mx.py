from __future__ import annotations

from functools import cache

import jax
import numpy as np
import pytest
from conftest import golden_cases

from qresearch.numerics.codes import decode
from qresearch.numerics.formats import FORMATS
from qresearch.numerics.granularity import per_channel, per_group
from qresearch.quantizers.base import QuantSpec, UnsupportedSpecError, on_view
from qresearch.quantizers.mx import MX, mx

ROUNDING = {"nearest": "half_away", "even": "half_even", "floor": "toward_zero"}
X = np.random.default_rng(0).normal(0, 1, (6, 64)).astype(np.float32) * 4.0 ** np.arange(-3, 3).reshape(6, 1)
X = X.astype(np.float32)


def make(spec: QuantSpec, **options):
    return on_view(spec.granularity, mx(spec, **options))


def quantized(granularity, x, specified="half_even", **options):
    quantizer = make(QuantSpec(granularity=granularity, rounding=specified), **options)
    return jax.jit(lambda x: quantizer.apply(MX(), x, 8.0))(x)


@cache
def compiled(element: str, size: int, rounding: str):
    quantizer = make(QuantSpec(granularity=per_group(-1, size)), element=element, rounding=rounding)
    return jax.jit(lambda x: quantizer.apply(MX(), x, 8.0))


def test_microxcaling():
    number, compared = 0, 0
    for case, arrays in golden_cases("microxcaling_mx"):
        assert (case["axes"], case["scale_bits"]) == ([-1], 8)
        x_hat = compiled(case["elem_format"], case["block_size"], ROUNDING[case["rounding"]])(arrays["x"])
        np.testing.assert_array_equal(x_hat, arrays["y"], err_msg=case["case"])
        number, compared = number + 1, compared + x_hat.size
    print(f"microxcaling: {number} cases, {compared} values compared, all equal")
    assert (number, compared) == (32, 32 * 6 * 64)


@pytest.mark.parametrize("element", FORMATS)
def test_scales_are_powers_of_two_that_use_the_elements_range(element):
    number, quantizer = FORMATS[element], make(QuantSpec(granularity=per_group(-1, 16)), element=element)
    codes = jax.jit(lambda x: quantizer.encode(MX(), x, 8.0))(X)
    x_hat = compiled(element, 16, "half_even")(X)
    np.testing.assert_array_equal(decode(codes).reshape(X.shape), x_hat)
    step = 1.0 if number.exponent_bits else 2.0**-number.mantissa_bits
    scale = np.asarray(codes.scale, np.float64) / step
    np.testing.assert_array_equal(np.log2(scale), np.rint(np.log2(scale)))
    largest = np.abs(X.reshape(6, 4, 16)).max(-1, keepdims=True) / scale
    assert (largest >= 2.0**number.max_exponent).all()
    assert (largest < 2.0 ** (number.max_exponent + 1)).all()
    assert (np.abs(np.asarray(x_hat).reshape(6, 4, 16) / scale) <= number.max_value).all()


def test_blocks_lie_along_the_axis_of_the_granularity():
    rows = quantized(per_group(1, 16), X)
    np.testing.assert_array_equal(rows, quantized(per_group(0, 16), X.T).T)
    np.testing.assert_array_equal(quantized(per_channel(0), X), quantized(per_group(1, 64), X))
    assert (np.asarray(rows) != quantized(per_channel(0), X)).any()


@pytest.mark.parametrize("element", FORMATS)
def test_a_power_of_two_passes_through(element):
    """Exactly equivariant: the tensor times 2^k gives the result times 2^k."""
    run = compiled(element, 16, "half_even")
    for power in (2.0**-40, 2.0**17):
        np.testing.assert_array_equal(run(X * np.float32(power)), run(X) * np.float32(power))


@pytest.mark.parametrize("element", ["fp8_e5m2", "fp4_e2m1", "int8", "int2"])
def test_the_ends_of_float32_are_finite(element):
    for value in (0.0, 1e-38, 1e-36, 3.4e38, -3.4e38):
        x = np.full((6, 64), value, np.float32)
        x_hat = compiled(element, 16, "half_even")(x)
        assert np.isfinite(x_hat).all()
        np.testing.assert_allclose(x_hat, x, rtol=0.5, atol=2e-38)


def test_the_gradient_passes_unless_a_mask_stops_it():
    upstream = np.cos(np.arange(X.size)).reshape(X.shape).astype(np.float32)

    def slope(mask):
        quantizer = make(QuantSpec(granularity=per_group(-1, 32), mask=mask), element="fp4_e2m1")
        return np.asarray(jax.jit(jax.grad(lambda x: (quantizer.apply(MX(), x, 4.0) * upstream).sum()))(X))

    np.testing.assert_array_equal(slope(None), upstream)
    np.testing.assert_array_equal(slope("none"), upstream)
    stopped = [(slope(mask) == 0) for mask in ("rounded", "unrounded")]
    assert 0 < stopped[0].sum() < stopped[1].sum() < 0.1 * X.size
    np.testing.assert_array_equal(slope("rounded")[~stopped[0]], upstream[~stopped[0]])


def test_the_rounding_of_the_specification_is_used_and_the_option_replaces_it():
    x = np.asarray([[6.0, 2.5, -2.5, 0.25] * 8], np.float32)

    def run(**options):
        return quantized(per_group(-1, 32), x, "toward_zero", element="fp4_e2m1", **options)[0, :4]

    np.testing.assert_array_equal(run(), [6, 2, -2, 0])
    np.testing.assert_array_equal(run(rounding="half_away"), [6, 3, -3, 0.5])
    np.testing.assert_array_equal(run(rounding="ceil"), [6, 3, -2, 0.5])


@pytest.mark.parametrize(
    ("options", "message"),
    [({"element": "fp8_e4m4"}, "unknown element 'fp8_e4m4'.*fp8_e4m3"), ({"rounding": "half_evn"}, "half_even")],
)
def test_an_unknown_option_names_the_nearest(options, message):
    with pytest.raises(UnsupportedSpecError, match=message):
        mx(QuantSpec(), **options)


@pytest.mark.parametrize("field", [{"symmetric": False}, {"range": "mse"}])
def test_what_it_has_no_use_for_is_refused(field):
    with pytest.raises(UnsupportedSpecError, match=f"mx .*{next(iter(field))}"):
        mx(QuantSpec(**field))
