"""What every quantization method promises. A method enters by its line in QUANTIZERS and cannot be left out.

Every property is one of the contract, never of a method: nothing here knows a method's name. Where a method declares a
trait that excludes a property, test_traits.py checks the declaration instead. All specifications that a method accepts
are run at every width and on every tensor; gradients, which do not pass through calibration, are taken at the method's
own initial range only.
"""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quantizer_cases import (
    GRANULARITIES,
    INTEGER_WIDTHS,
    WIDTHS,
    Observer,
    Program,
    accepted,
    assert_finite,
    cases,
    degenerate,
    grid_widths,
    observed,
    observer,
    tensor,
)

from qresearch.numerics.codes import decode
from qresearch.numerics.granularity import PER_TENSOR
from qresearch.numerics.grid import integer_range
from qresearch.numerics.rounding import ROUNDINGS
from qresearch.quantizers import make_quantizer
from qresearch.quantizers.check import calibrated

# --- state -----------------------------------------------------------------------------------------------------------


@cases()
def test_qparams_are_a_named_tuple_of_float32_arrays(name, spec):
    qparams, learnable = observed(name, spec, 4).qparams, observer(name, spec).quantizer.learnable
    assert isinstance(qparams, tuple)
    assert set(learnable) <= set(qparams._fields)
    for leaf in jax.tree.leaves(qparams):
        assert leaf.dtype == np.float32
    assert_finite(qparams, "qparams")


@cases(range=None)
def test_apply_keeps_the_shape_and_the_dtype_of_x(name, spec):
    """And ``init`` gives a NamedTuple: the check that every model makes, by shapes alone."""
    quantizer = make_quantizer(name, spec)
    for dtype in (jnp.float32, jnp.bfloat16):
        x = jax.ShapeDtypeStruct(tensor(spec.signed).shape, dtype)
        jax.eval_shape(lambda x, bits: calibrated(quantizer, x, bits), x, jnp.float32(4))


@cases(range=None, granularity=PER_TENSOR)
def test_one_trace_serves_every_width(name, spec):
    quantizer, traces = make_quantizer(name, spec), []

    @jax.jit
    def run(x, bits):
        traces.append(bits)
        return quantizer.apply(quantizer.init(x, bits), x, bits)

    for bits in WIDTHS:
        run(tensor(spec.signed), jnp.float32(bits))
    assert len(traces) == 1


@cases(signed=True, symmetric=True, granularity=GRANULARITIES["per_channel"])
def test_vmap_over_widths_is_a_loop(name, spec):
    quantizer, x, widths = make_quantizer(name, spec), tensor(spec.signed), jnp.asarray(WIDTHS, jnp.float32)
    qparams = Program(jax.vmap(quantizer.init, in_axes=(None, 0)), quick=True)(x, widths)
    x_hat = Program(jax.vmap(quantizer.apply, in_axes=(0, None, 0)), quick=True)(qparams, x, widths)
    for i, bits in enumerate(WIDTHS):
        one = observed(name, spec, bits)
        for many, single in zip(jax.tree.leaves(qparams), jax.tree.leaves(one.qparams), strict=True):
            np.testing.assert_allclose(many[i], single, rtol=2e-6)
        # A last-bit difference in a scale may flip an element on a tie: rare, where an error would be everywhere.
        assert np.isclose(x_hat[i], one.x_hat, rtol=1e-5, atol=1e-6).mean() > 0.99, bits


# --- the grid --------------------------------------------------------------------------------------------------------


def level_count(name, spec, bits) -> int:
    """2^bits, or 2^width of a method that has a width of its own."""
    return 2 ** (observer(name, spec).quantizer.width or bits)


@cases()
def test_the_result_is_on_the_grid(name, spec):
    for bits in grid_widths(name, spec):
        one = observed(name, spec, bits)
        view = np.asarray(spec.granularity.view(one.x_hat))
        scale = one.codes.scale
        assert scale.ndim == view.ndim
        assert all(scale.shape[axis] == 1 for axis in spec.granularity.shared_axes(view.ndim))
        groups = np.broadcast_to(np.arange(scale.size).reshape(scale.shape), view.shape)
        for group in range(scale.size):
            assert len(np.unique(view[groups == group])) <= level_count(name, spec, bits)
        if one.codes.codebook is None:
            units = view.astype(np.float64) / scale + one.codes.zero_point
            np.testing.assert_allclose(units, np.rint(units), atol=1e-4)
        else:
            nearest = np.abs(view[..., None] - one.codes.codebook * scale[..., None]).min(-1)
            np.testing.assert_allclose(nearest / scale, 0, atol=1e-6)


@cases(without=("not_idempotent",))
def test_quantizing_twice_is_quantizing_once(name, spec):
    # A range that is taken anew, from extremes that are multiples of the scale, gives the scale again to a last bit.
    last_bit = 2e-6 if "calibrates_in_apply" in observer(name, spec).quantizer.traits else 0.0
    for bits in (0, *INTEGER_WIDTHS, 16, 32):  # above 24 bits float32 holds no code exactly
        one = observed(name, spec, bits)
        np.testing.assert_allclose(one.again, one.x_hat, rtol=last_bit, atol=0, err_msg=f"{bits} bits")


@cases()
def test_simulated_is_integer(name, spec):
    for bits in grid_widths(name, spec):
        one = observed(name, spec, bits)
        values = one.codes.values
        assert values.dtype == np.int32
        assert values.shape == spec.granularity.view(one.x_hat).shape
        qmin, qmax = integer_range(observer(name, spec).quantizer.width or bits, spec.signed)
        if one.codes.codebook is not None:
            qmin, qmax = 0, level_count(name, spec, bits) - 1
        assert int(qmin) <= values.min() <= values.max() <= int(qmax)
        np.testing.assert_array_equal(one.decoded, one.x_hat, err_msg=f"{bits} bits")


@cases()
def test_pruned_at_zero_bits_and_float_at_thirty_two(name, spec):
    x = np.asarray(tensor(spec.signed))
    np.testing.assert_array_equal(observed(name, spec, 0).x_hat, np.zeros_like(x))
    np.testing.assert_array_equal(observed(name, spec, 32).x_hat, x)
    run = observer(name, spec).at
    np.testing.assert_array_equal(run(tensor(spec.signed), -1).x_hat, np.zeros_like(x))
    np.testing.assert_array_equal(run(tensor(spec.signed), 64).x_hat, x)


@cases(without=("rescales", "saturates", "doubling_widths"), follows_bits=True)
def test_the_error_falls_with_bits(name, spec):
    x = np.asarray(tensor(spec.signed), np.float64)
    error = [((observed(name, spec, bits).x_hat - x) ** 2).sum() for bits in range(2, 9)]
    assert (np.diff(error) < 0).all(), error


@cases(granularity=GRANULARITIES["per_channel"])
def test_permuting_channels_permutes_the_result(name, spec):
    order = np.array([3, 0, 5, 1, 4, 2])
    for bits in (2, 4, 8):
        one = observed(name, spec, bits)
        permuted = observer(name, spec).at(tensor(spec.signed)[:, order], bits)
        assert np.isclose(permuted.x_hat, one.x_hat[:, order], rtol=1e-5, atol=1e-6).mean() > 0.99
        assert (permuted.codes.values == one.codes.values[:, order]).mean() > 0.99


# --- gradients and extremes ------------------------------------------------------------------------------------------


@cases()
def test_degenerate_tensors_give_finite_results(name, spec):
    for kind, x in degenerate().items():
        for bits in (0, 1, 2, 4, 8, 31, 32):
            one = observer(name, spec).at(x, bits)
            assert_finite((one.qparams, one.x_hat, one.codes.scale), f"{kind} at {bits} bits")


@cases(range=None)
def test_degenerate_tensors_give_finite_gradients(name, spec):
    for kind, x in degenerate().items():
        for bits in (0, 1, 2, 4, 8, 31, 32):
            assert_finite(observer(name, spec).gradients(x, bits), f"{kind} at {bits} bits")


@cases(range=None, granularity=PER_TENSOR)
def test_a_single_element_is_quantized_with_finite_gradients(name, spec):
    single = Observer(name, spec, quick=True)
    for value in (0.7, 0.0, -0.7):
        x = jnp.full((1, 1, 1), value, jnp.float32)
        for bits in (0, 1, 4, 32):
            one = single.at(x, bits)
            assert one.x_hat.shape == x.shape
            assert_finite((one.qparams, one.x_hat), f"{value} at {bits} bits")
            assert_finite(single.gradients(x, bits), f"{value} at {bits} bits")


@cases(range=None)
def test_every_learnable_leaf_and_the_input_receive_a_gradient(name, spec):
    """On the tensor of the calibration or on a wider one: some parameters only feel the elements that they clip.

    Every entry of every leaf, but where entries are spare: there, some entry of every leaf.
    """
    enough = np.any if "spare_levels" in observer(name, spec).quantizer.traits else np.all
    for bits in INTEGER_WIDTHS[1:]:
        near, of_x, _ = observer(name, spec).gradients(tensor(spec.signed), bits)
        wide, _, _ = observer(name, spec).gradients(tensor(spec.signed), bits, stretch=1.5)
        assert (np.asarray(of_x) != 0).mean() > 0.4
        for field in observer(name, spec).quantizer.learnable:
            for leaf, other in zip(jax.tree.leaves(getattr(near, field)), jax.tree.leaves(getattr(wide, field))):
                assert enough((np.asarray(leaf) != 0) | (np.asarray(other) != 0)), f"{field} at {bits} bits"


# --- dtypes and keys -------------------------------------------------------------------------------------------------


@cases(range=None, granularity=PER_TENSOR)
def test_bfloat16_is_quantized_in_float32_and_returned(name, spec):
    quantizer, x = make_quantizer(name, spec), tensor(spec.signed).astype(jnp.bfloat16)

    def both(x, bits):
        qparams = quantizer.init(x, bits)
        return qparams, quantizer.apply(qparams, x, bits), quantizer.apply(qparams, x.astype(jnp.float32), bits)

    run = Program(both, quick=True)
    for bits in (0, 2, 8, 32):
        qparams, low, wide = run(x, jnp.float32(bits))
        assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(qparams))
        assert low.dtype == jnp.bfloat16
        np.testing.assert_array_equal(low, wide.astype(jnp.bfloat16))


@cases(without=("rescales",), range=None, granularity=PER_TENSOR)
def test_stochastic_rounding_needs_a_key_and_is_unbiased(name, spec):
    spec = replace(spec, rounding="stochastic")
    if not accepted(name, spec):
        return  # refused, clearly: the contract allows it
    quantizer, x, draws = make_quantizer(name, spec), tensor(spec.signed)[0, 1], 20_000
    qparams, bits = quantizer.init(x[None, None], 3.0), 3.0
    with pytest.raises(ValueError, match="key"):
        quantizer.apply(qparams, x[None, None], bits)
    keys = jax.random.split(jax.random.key(0), draws)
    run = jax.jit(jax.vmap(lambda key: quantizer.apply(qparams, x[None, None], bits, key=key)[0, 0]))
    values = np.asarray(run(keys), np.float64)
    codes = quantizer.encode(qparams, x[None, None], bits)
    reached = quantizer.encode(qparams, 1e4 * jnp.concatenate([x, -x])[None, None], bits).values
    levels = np.arange(reached.min(), reached.max() + 1) if codes.codebook is None else np.asarray(codes.codebook)
    levels = levels - codes.zero_point.item()
    levels = levels * codes.scale.item()
    widest = np.diff(np.sort(levels)).max()
    wanted = np.clip(np.asarray(x, np.float64), levels.min(), levels.max())
    np.testing.assert_allclose(values.mean(0), wanted, atol=4.5 * widest / 2 / np.sqrt(draws))


@pytest.mark.parametrize("rounding", ROUNDINGS)
@cases(range=None, granularity=PER_TENSOR)
def test_what_is_stored_is_rounded_as_what_is_simulated(name, spec, rounding):
    spec = replace(spec, rounding=rounding)
    if not accepted(name, spec):
        return  # refused, clearly: the contract allows it
    quantizer, x = make_quantizer(name, spec), tensor(spec.signed)
    qparams = observed(name, replace(spec, rounding="half_even"), 4).qparams
    stored = decode(quantizer.encode(qparams, x, 4.0))
    np.testing.assert_array_equal(stored, quantizer.apply(qparams, x, 4.0))


@cases(range=None, granularity=PER_TENSOR)
def test_a_narrow_grid_leaves_its_code_out(name, spec):
    spec = replace(spec, narrow=True)
    if not accepted(name, spec):
        return  # refused, clearly: the contract allows it
    narrow, x = Observer(name, spec), tensor(spec.signed)
    for bits in grid_widths(name, spec):
        one = jax.tree.map(np.asarray, narrow.at(x, bits))
        assert_finite((one.qparams, one.x_hat), f"{bits} bits")
        np.testing.assert_array_equal(one.decoded, one.x_hat)
        if one.codes.codebook is None:
            qmin, qmax = integer_range(narrow.quantizer.width or bits, spec.signed, narrow=True)
            assert int(qmin) <= one.codes.values.min() <= one.codes.values.max() <= int(qmax)
