from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closed_forms import assert_exact, gradients64, samples

from qresearch.numerics.codes import decode
from qresearch.numerics.fake_quant import fake_quant
from qresearch.numerics.granularity import per_channel
from qresearch.quantizers import QuantSpec
from qresearch.quantizers.base import UnsupportedSpecError
from qresearch.quantizers.qil import QIL, qil

SIZE = 4000


def closed_form(x, center, distance, gamma, bits, signed):
    """QIL's x̂ in [-1, 1] and the slopes of its transformation in C, D, γ and x, as in the paper's equations 3 to 5."""
    q, sign = (2.0 ** (bits - 1) - 1, np.sign(x)) if signed else (2.0**bits - 1, 1.0)
    magnitude = np.abs(x) if signed else x
    a, e = 0.5 / distance, -0.5 * center / distance + 0.5
    below, above = magnitude < center - distance, magnitude > center + distance
    inside = ~(below | above)
    base = np.where(inside, a * magnitude + e, 0.5)
    level = np.where(below, 0.0, np.where(above, 1.0, base**gamma))
    steep = gamma * base ** (gamma - 1) * inside
    slopes = (-steep * a, steep * (center - magnitude) / (2 * distance**2), inside * base**gamma * np.log(base))
    return sign * np.rint(level * q) / q, [sign * slope for slope in slopes], steep * a, sign * level


@pytest.mark.parametrize("gamma", [1.0, 0.6, 2.5])
@pytest.mark.parametrize(("bits", "signed"), [(2.0, True), (3.0, False), (8.0, True)])
def test_the_gradients_are_the_transformations(signed, bits, gamma):
    x, upstream = samples(int(bits), SIZE, 2.0)
    center, distance = np.resize([1.3, 0.9], SIZE), np.resize([1.1, 0.5, 0.9], SIZE)
    spec, learn = QuantSpec(signed=signed, granularity=per_channel(0)), gamma != 1.0
    qparams = QIL(center, distance, np.full(SIZE, gamma))
    wanted, slopes, of_x, _ = closed_form(x, center, distance, gamma, bits, signed)
    apply = qil(spec, learn_gamma=learn, multiply_back=False).apply
    x_hat, ours, ours_x = gradients64("qil", apply, qparams, x, bits, upstream)
    assert_exact(x_hat, wanted)
    assert_exact(ours_x, upstream * of_x)
    for field, slope in zip(QIL._fields[: 2 + learn], slopes, strict=False):
        assert_exact(getattr(ours, field), upstream * slope)
        assert (slope != 0).mean() > 0.2
    assert learn or (ours.gamma == 0).all()

    back = qil(spec, learn_gamma=learn).apply  # times C + D: the product rule
    x_hat, ours, ours_x = gradients64("qil", back, qparams, x, bits, upstream)
    assert_exact(x_hat, wanted * (center + distance))
    assert_exact(ours_x, upstream * of_x * (center + distance))
    for field, slope in zip(("center", "distance"), slopes, strict=False):
        assert_exact(getattr(ours, field), upstream * (slope * (center + distance) + wanted))


def test_small_magnitudes_are_pruned_and_large_ones_clipped():
    x = jnp.asarray([0.0, 0.39, -0.39, 0.41, 1.0, -1.0, 1.59, 1.61, -50.0])
    qparams = QIL(*(jnp.full((1,), value) for value in (1.0, 0.6, 1.0)))
    x_hat = qil(QuantSpec(), multiply_back=False).apply(qparams, x, 8.0)
    levels = np.array([0, 0, 0, 1, 64, -64, 126, 127, -127]) / 127  # 63.5 rounds to the even 64
    np.testing.assert_allclose(x_hat, levels, rtol=1e-6)
    np.testing.assert_allclose(qil(QuantSpec()).apply(qparams, x, 8.0), 1.6 * levels, rtol=1e-6)
    slope = jax.grad(lambda x: qil(QuantSpec()).apply(qparams, x, 8.0).sum())(x)
    np.testing.assert_allclose(slope, np.where(levels % 1 == 0, 0, 1.6 / 1.2), rtol=1e-6)


@pytest.mark.parametrize("signed", [True, False])
def test_it_starts_as_the_uniform_quantizer_of_its_range(signed):
    x = jax.random.normal(jax.random.key(0), (4, 60)) * jnp.asarray([[0.5], [1.0], [2.0], [1e-6]])
    quantizer = qil(QuantSpec(signed=signed, granularity=per_channel(0), range="minmax"))
    run = jax.jit(lambda bits: (quantizer.init(x, bits), quantizer.apply(quantizer.init(x, bits), x, bits)))
    for bits in (2.0, 4.0, 8.0):
        qparams, x_hat = run(bits)
        np.testing.assert_array_equal(qparams.center, qparams.distance)
        bound = jnp.max(jnp.abs(x) if signed else x, axis=1, keepdims=True)
        np.testing.assert_allclose(2 * qparams.center, bound, rtol=1e-6)
        qmax = 2.0 ** (bits - 1) - 1 if signed else 2.0**bits - 1
        uniform = fake_quant(x, bound / qmax, 0.0, -qmax if signed else 0.0, qmax)
        np.testing.assert_allclose(x_hat, uniform, rtol=1e-6)


@pytest.mark.parametrize("gamma", [0.4, 1.0, 3.0])
def test_codes_decode_to_the_result_bit_for_bit_and_gradients_are_finite(gamma):
    x = jnp.concatenate([jnp.zeros(5), jnp.asarray([0.4, -0.4, 1.6, -1.6]), jnp.linspace(-3.0, 3.0, 500)])
    qparams = QIL(*(jnp.full((1,), value) for value in (1.0, 0.6, gamma)))
    for signed in (True, False):
        quantizer = qil(QuantSpec(signed=signed), learn_gamma=True)
        x_hat = quantizer.apply(qparams, x, 4.0)
        np.testing.assert_array_equal(decode(quantizer.encode(qparams, x, 4.0)), x_hat)
        for leaf in jax.tree.leaves(jax.grad(lambda q, x, f=quantizer.apply: f(q, x, 4.0).sum(), (0, 1))(qparams, x)):
            assert jnp.isfinite(leaf).all()


def test_the_interval_is_learned_to_prune_what_is_noise():
    """Targets that vanish below 1: descent raises C - D, the pruning point, from 0."""
    x = jax.random.normal(jax.random.key(0), (4000,)) * 1.5
    target = jnp.where(jnp.abs(x) < 1.0, 0.0, x)
    quantizer = qil(QuantSpec(range="minmax"))

    def loss(qparams):
        return ((quantizer.apply(qparams, x, 4.0) - target) ** 2).mean()

    @jax.jit
    def descend(qparams):
        step = lambda q, _: (jax.tree.map(lambda v, g: v - 0.02 * g, q, jax.grad(loss)(q)), None)  # noqa: E731
        return jax.lax.scan(step, qparams, None, length=1500)[0]

    start = quantizer.init(x, 4.0)
    end = descend(start)
    assert start.center == start.distance
    assert loss(end) < 0.6 * loss(start)
    assert 0.25 < (end.center - end.distance).item() < 1.3


def test_what_is_learned_and_declared_follows_the_options():
    assert qil(QuantSpec()).learnable == ("center", "distance")
    assert qil(QuantSpec(), learn_gamma=True).learnable == ("center", "distance", "gamma")
    assert qil(QuantSpec()).traits == frozenset()
    assert "rescales" in qil(QuantSpec(), multiply_back=False).traits
    for fields in ({"symmetric": False}, {"mask": "rounded"}):
        with pytest.raises(UnsupportedSpecError, match="qil"):
            qil(QuantSpec(**fields))
