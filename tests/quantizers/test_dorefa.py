from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closed_forms import compare, on_cpu
from conftest import golden_cases

from qresearch.numerics.codes import decode
from qresearch.numerics.fake_quant import fake_quant
from qresearch.numerics.granularity import PER_TENSOR, per_channel, per_group
from qresearch.quantizers import QuantSpec
from qresearch.quantizers.base import UnsupportedSpecError
from qresearch.quantizers.dorefa import DoReFa, dorefa
from qresearch.quantizers.dorefa_gradient import quantize_gradient


@on_cpu
def test_the_public_implementation_computed_the_same():
    """zzzxxxttt/pytorch_DoReFaNet, weights and inputs. All elements; its 1-bit input is our option."""
    compared = number = 0
    quantizers = {
        "weight": dorefa(QuantSpec()),
        "act": dorefa(QuantSpec(signed=False), one_bit_input="sign"),
    }

    @partial(jax.jit, static_argnums=0)
    def run(kind, x, bits, dy):
        value, pullback = jax.vjp(lambda x: quantizers[kind].apply(DoReFa(), x, bits), x)
        return value, pullback(dy)[0]

    for case, arrays in golden_cases("dorefa"):
        kind, bits = case["case"].split("_")[0], float(case["bits"])
        value, dx = run(kind, jnp.asarray(arrays["x"]), bits, jnp.asarray(arrays["dy"]))
        compared += compare(case["case"], "y", value, arrays["y"], 1e-6)
        compared += compare(case["case"], "dx", dx, arrays["dx"], 2e-5)
        number += 1
    print(f"DoReFa: {number} cases, {compared} values compared, none left out")
    assert (number, compared) == (10, 2 * 5 * (120 + 65))


@on_cpu
def test_mqbench_is_a_symmetric_grid_over_the_normalised_tanh():
    """MQBench's DoReFa is another method: the levels have a zero, the result is in [-1, 1], and the maximum has a
    gradient. It is fake_quant after tanh, which the recorded vectors confirm; ties of x (1 / scale) are left out."""
    compared = ties = number = 0

    @jax.jit
    def run(x, scale, qmin, qmax, dy):
        def mqbench(x):
            bent = jnp.tanh(x)
            return fake_quant(bent / (jnp.max(jnp.abs(bent)) + 1e-5), scale, 0.0, qmin, qmax)

        value, pullback = jax.vjp(mqbench, x)
        return value, pullback(dy)[0]

    for case, arrays in golden_cases("mqbench"):
        if not case["case"].startswith("dorefa"):
            continue
        bits, x, scale = case["bits"], arrays["x"], arrays["scale"]
        qmin, qmax = -(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1
        value, dx = run(jnp.asarray(x), jnp.float32(scale[0]), qmin, qmax, jnp.asarray(arrays["dy"]))
        bent = np.tanh(x) / (np.abs(np.tanh(x)).max() + np.float32(1e-5))
        steps = (bent * (np.float32(1) / scale)).reshape(-1)
        tied = np.abs(np.abs(steps - np.floor(steps)) - 0.5) < 8 * np.finfo(np.float32).eps * np.abs(steps)
        compared += compare(case["case"], "y", value, arrays["y"], 1e-6, ~tied)
        compared += compare(case["case"], "dx", dx, arrays["dx"], 2e-5, ~tied)
        ties, number = ties + int(tied.sum()), number + 1
    print(f"MQBench DoReFa: {number} cases, {compared} values compared, {ties} ties left out")
    assert (number, compared, ties) == (4, 632, 4)


@pytest.mark.parametrize("granularity", [PER_TENSOR, per_channel(1), per_group(-1, 16)])
@pytest.mark.parametrize("multiply_back", [True, False])
def test_weights_are_odd_multiples_of_half_a_step(granularity, multiply_back):
    w = granularity.view(jax.random.normal(jax.random.key(0), (6, 4, 32)))
    axes = granularity.shared_axes(w.ndim)
    quantizer = dorefa(QuantSpec(granularity=granularity), multiply_back=multiply_back)
    run = jax.jit(lambda bits: (quantizer.apply(DoReFa(), w, bits), quantizer.encode(DoReFa(), w, bits)))
    top = jnp.max(jnp.abs(jnp.tanh(w)), axis=axes, keepdims=True) if multiply_back else jnp.ones((1,) * w.ndim)
    for bits in (2.0, 3.0, 8.0):
        w_hat, codes = run(bits)
        n = 2.0**bits - 1
        odd = np.asarray(w_hat / top * n)
        np.testing.assert_allclose((odd - 1) / 2, np.rint((odd - 1) / 2), atol=1e-3)
        bent = np.tanh(w) / np.max(np.abs(np.tanh(w)), axis=axes, keepdims=True)
        assert np.abs(w_hat / top - bent).max() <= (1 / n) * 1.0001
        np.testing.assert_allclose(
            jnp.max(jnp.abs(w_hat), axis=axes, keepdims=True), top * np.ones_like(codes.scale), rtol=1e-6
        )
        np.testing.assert_array_equal(decode(codes), w_hat)
    w_hat, codes = run(1.0)
    np.testing.assert_allclose(w_hat, np.sign(w) * np.mean(np.abs(w), axis=axes, keepdims=True), rtol=1e-6)
    np.testing.assert_array_equal(decode(codes), w_hat)


@pytest.mark.parametrize("multiply_back", [True, False])
def test_the_gradient_is_that_of_the_tanh(multiply_back):
    w, upstream = (jax.random.normal(jax.random.key(seed), (500,)) for seed in (0, 1))
    quantizer = dorefa(QuantSpec(), multiply_back=multiply_back)
    slope = jax.jit(jax.grad(lambda w, bits: (quantizer.apply(DoReFa(), w, bits) * upstream).sum()))
    wanted = upstream * (1 - jnp.tanh(w) ** 2) / (1.0 if multiply_back else jnp.max(jnp.abs(jnp.tanh(w))))
    for bits in (2.0, 8.0):
        np.testing.assert_allclose(slope(w, bits), wanted, rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(slope(w, 1.0), upstream)


def test_stochastic_rounding_is_unbiased_around_the_tanh():
    w, draws = jax.random.normal(jax.random.key(0), (40,)), 4000
    apply = dorefa(QuantSpec(rounding="stochastic")).apply
    keys = jax.random.split(jax.random.key(1), draws)
    mean = jax.jit(jax.vmap(lambda key: apply(DoReFa(), w, 2.0, key=key)))(keys).mean(0)
    step = 2 * jnp.max(jnp.abs(jnp.tanh(w))) / 3
    assert (jnp.abs(mean - jnp.tanh(w)) <= 4.5 * step / 2 / np.sqrt(draws)).all()
    with pytest.raises(ValueError, match="key"):
        apply(DoReFa(), w, 2.0)


def test_inputs_are_clipped_to_the_unit_interval():
    x = jnp.asarray([-1.0, 0.0, 0.1, 0.4, 0.5, 0.6, 1.0, 3.0])
    paper, public = (dorefa(QuantSpec(signed=False), one_bit_input=kind) for kind in ("round", "sign"))
    np.testing.assert_array_equal(paper.apply(DoReFa(), x, 1.0), [0, 0, 0, 0, 0, 1, 1, 1])
    np.testing.assert_array_equal(public.apply(DoReFa(), x, 1.0), [0, 0, 1, 1, 1, 1, 1, 1])
    np.testing.assert_allclose(3 * paper.apply(DoReFa(), x, 2.0), [0, 0, 0, 1, 2, 2, 3, 3], rtol=1e-6)
    np.testing.assert_array_equal(paper.apply(DoReFa(), x, 2.0), public.apply(DoReFa(), x, 2.0))
    slope = jax.grad(lambda x: paper.apply(DoReFa(), x, 2.0).sum())(x)
    np.testing.assert_array_equal(slope, [0, 1, 1, 1, 1, 1, 1, 0])


@pytest.mark.parametrize(
    "fields", [{"symmetric": False}, {"narrow": True}, {"range": "mse"}, {"mask": "rounded"}, {"signed": False}]
)
def test_a_spec_or_option_without_mathematics_is_refused(fields):
    with pytest.raises(UnsupportedSpecError, match="dorefa"):
        dorefa(QuantSpec(**fields), one_bit_input="floor" if fields == {"signed": False} else "round")


# --- the gradient quantizer ------------------------------------------------------------------------------------------


@jax.jit
def backward(upstream, bits, key):
    x = jnp.ones_like(upstream)
    value, pullback = jax.vjp(lambda x: quantize_gradient(x, bits, key), x)
    return value, pullback(upstream)[0]


def gradients_of(bits, key=0):
    """Four examples of different sizes; the last has no gradient."""
    upstream = jax.random.normal(jax.random.key(9), (4, 5, 50)) * jnp.asarray([1e-3, 1.0, 30.0, 0.0]).reshape(4, 1, 1)
    value, quantized = backward(upstream, jnp.float32(bits), jax.random.key(key))
    assert (value == 1.0).all()  # forward it is the identity
    return np.asarray(upstream), np.asarray(quantized)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_gradients_lie_on_a_grid_of_their_own_example(bits):
    upstream, quantized = gradients_of(bits)
    largest, n = np.abs(upstream).max((1, 2)), 2**bits - 1
    assert (quantized[3] == 0).all()
    for one, top, before in zip(quantized[:3], largest, upstream[:3], strict=False):
        units = (one / (2 * top) + 0.5) * n
        np.testing.assert_allclose(units, np.rint(units), atol=1e-4)
        assert np.abs(one).max() <= top * 1.00001
        assert np.abs(one - before).max() <= 2 * top / n * 1.00001
        assert len(np.unique(np.rint(units))) <= 2**bits


def test_gradients_are_unbiased_and_another_key_rounds_them_otherwise():
    draws, upstream = 2000, gradients_of(2)[0]
    keys = jax.random.split(jax.random.key(1), draws)
    mean = jax.jit(
        lambda: jax.lax.map(lambda key: backward(jnp.asarray(upstream), jnp.float32(2), key)[1], keys).mean(0)
    )
    step = 2 * np.abs(upstream).max((1, 2), keepdims=True) / 3
    assert (np.abs(mean() - upstream) <= 4.8 * step / 2 / np.sqrt(draws)).all()
    assert (gradients_of(2, key=1)[1] != gradients_of(2, key=2)[1]).mean() > 0.1


def test_gradients_are_kept_at_thirty_two_bits_and_pruned_at_none():
    np.testing.assert_array_equal(*gradients_of(32))
    assert (gradients_of(0)[1] == 0).all()


def test_gradients_keep_their_dtype_and_may_have_any_rank():
    for shape in ((), (3,), (2, 3)):
        upstream = jnp.ones(shape, jnp.bfloat16)
        value, quantized = backward(upstream, jnp.float32(4), jax.random.key(0))
        assert (value.dtype, quantized.dtype, quantized.shape) == (jnp.bfloat16, jnp.bfloat16, shape)
        np.testing.assert_allclose(quantized.astype(jnp.float32), 1.0, rtol=0.01)


def test_a_layer_below_learns_from_quantized_gradients():
    """In a model: the weight's gradient is computed from the quantized one, bits may be traced and mapped over."""
    x, w = jnp.eye(4), jnp.full((4, 3), 0.5)

    def loss(w, bits):
        return (quantize_gradient(x @ w, bits, jax.random.key(0)) ** 3 * jnp.arange(12.0).reshape(4, 3)).sum()

    slopes = jax.jit(jax.vmap(jax.grad(loss), (None, 0)))(w, jnp.asarray([2.0, 32.0]))
    exact = 0.75 * jnp.arange(12.0).reshape(4, 3)
    np.testing.assert_allclose(slopes[1], exact, rtol=1e-6)
    units = (slopes[0] / jnp.max(exact, axis=1, keepdims=True) + 1) * 1.5
    np.testing.assert_allclose(units, jnp.round(units), atol=1e-4)
    assert (slopes[0] != slopes[1]).any()
