"""A method declares where it departs from the rule, and does depart there: no more and no less.

Each trait has one experiment that says whether a method departs; ``declared == departs`` is asked of every method.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quantizer_cases import INTEGER_WIDTHS, cases, observed, observer, tensor

from qresearch.numerics.granularity import PER_TENSOR
from qresearch.quantizers import QuantSpec, make_quantizer
from qresearch.quantizers.base import TRAITS


def moves_zero(name: str, spec: QuantSpec) -> bool:
    x = tensor(spec.signed).at[:, :, ::2].set(0.0)
    return any((np.asarray(observer(name, spec).at(x, bits).x_hat)[:, :, ::2] != 0).any() for bits in (2, 3, 8))


def keeps_its_levels(name: str, spec: QuantSpec) -> bool:
    few, many = (len(np.unique(observed(name, spec, bits).x_hat)) for bits in (2, 8))
    return many <= few


def changes_when_repeated(name: str, spec: QuantSpec) -> bool:
    pairs = [(one.again, one.x_hat) for one in (observed(name, spec, bits) for bits in INTEGER_WIDTHS)]
    return any(not np.array_equal(*pair) for pair in pairs)


def has_another_size(name: str, spec: QuantSpec) -> bool:
    """Whether the elements between the outermost levels are better approximated by a multiple of the result."""
    x = 3 * np.asarray(tensor(spec.signed), np.float64)
    x_hat = np.asarray(observer(name, spec).at(3 * tensor(spec.signed), 8).x_hat, np.float64)
    inside = (x_hat > x_hat.min()) & (x_hat < x_hat.max())
    return abs((x_hat * x)[inside].sum() / (x_hat**2)[inside].sum() - 1) > 0.1


def draws_noise(name: str, spec: QuantSpec) -> bool:
    quantizer, one = make_quantizer(name, spec), observed(name, spec, 4)
    run = jax.jit(lambda qparams, x, key: quantizer.apply(qparams, x, 4.0, key=key))
    results = [run(one.qparams, tensor(spec.signed), jax.random.key(seed)) for seed in (0, 1)]
    return any(not np.array_equal(result, one.x_hat) for result in results)


def follows_the_tensor(name: str, spec: QuantSpec) -> bool:
    """Whether a tensor far outside the calibrated range is followed there, instead of being clipped."""
    quantizer, one = make_quantizer(name, spec), observed(name, spec, 4)
    x_hat = quantizer.apply(one.qparams, 1e4 * tensor(spec.signed), 4.0)
    return bool(jnp.abs(x_hat).max() > 100 * np.abs(one.x_hat).max())


def lets_gradients_through(name: str, spec: QuantSpec) -> bool:
    """Whether an element beyond ten thousand times the largest one of the calibration has a gradient."""
    quantizer, one = make_quantizer(name, spec), observed(name, spec, 4)
    far = 1e4 * (1 + tensor(spec.signed) ** 2)
    return bool((jax.grad(lambda x: quantizer.apply(one.qparams, x, 4.0).sum())(far) != 0).any())


DEPARTURES = {
    "no_zero_level": moves_zero,
    "fixed_width": keeps_its_levels,
    "not_idempotent": changes_when_repeated,
    "rescales": has_another_size,
    "needs_key": draws_noise,
    "calibrates_in_apply": follows_the_tensor,
    "passes_gradient": lets_gradients_through,
}


def test_every_trait_has_an_experiment():
    assert set(DEPARTURES) == set(TRAITS)


@cases()
def test_traits_are_known_ones(name, spec):
    assert make_quantizer(name, spec).traits <= set(TRAITS)


@pytest.mark.parametrize("trait", TRAITS)
@cases(range=None, granularity=PER_TENSOR)
def test_a_departure_is_declared_and_a_declaration_departs(name, spec, trait):
    traits = make_quantizer(name, spec).traits
    if trait == "rescales" and "fixed_width" in traits:
        return  # a few levels approximate nothing closely: the experiment says nothing
    assert DEPARTURES[trait](name, spec) == (trait in traits)
