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
    """Whether two keys give different results, of one program: another one may round a last bit otherwise."""
    quantizer, one = make_quantizer(name, spec), observed(name, spec, 4)
    run = jax.jit(lambda qparams, x, key: quantizer.apply(qparams, x, 4.0, key=key))
    results = [run(one.qparams, tensor(spec.signed), jax.random.key(seed)) for seed in (0, 1)]
    return not np.array_equal(*results)


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


def far_and_near(signed: bool) -> jax.Array:
    """A tensor with values beyond the range of ``tensor`` and close to zero: a wider grid shows in one or the other."""
    return tensor(signed).at[:, :, ::2].multiply(4.0).at[:, :, 1::2].multiply(1e-6)


def ignores_a_later_width(name: str, spec: QuantSpec) -> bool:
    """Whether what was calibrated at 4 bits stays as it is when it is applied at 8."""
    quantizer, qparams = make_quantizer(name, spec), observed(name, spec, 4).qparams
    return np.array_equal(*(quantizer.apply(qparams, far_and_near(spec.signed), bits) for bits in (4.0, 8.0)))


def stops_being_finer(name: str, spec: QuantSpec) -> bool:
    """Whether half of the elements are no nearer to their value with 8 bits than with 5."""
    x = np.asarray(tensor(spec.signed))
    few, many = (np.median(np.abs(observed(name, spec, bits).x_hat - x)) for bits in (5, 8))
    return bool(many > 0.5 * few)


def has_idle_entries(name: str, spec: QuantSpec) -> bool:
    run = observer(name, spec)
    near, wide = (run.gradients(tensor(spec.signed), 2, stretch)[0] for stretch in (1.0, 1.5))
    leaves = [(getattr(near, field), getattr(wide, field)) for field in run.quantizer.learnable]
    return any(bool(((one == 0) & (other == 0)).any()) for one, other in leaves)


def rounds_its_width(name: str, spec: QuantSpec) -> bool:
    four, *others = (observer(name, spec).at(far_and_near(spec.signed), bits).x_hat for bits in (4, 5, 7))
    return all(np.array_equal(four, other) for other in others)


DEPARTURES = {
    "no_zero_level": moves_zero,
    "not_idempotent": changes_when_repeated,
    "rescales": has_another_size,
    "needs_key": draws_noise,
    "calibrates_in_apply": follows_the_tensor,
    "passes_gradient": lets_gradients_through,
    "learns_bits": ignores_a_later_width,
    "saturates": stops_being_finer,
    "spare_levels": has_idle_entries,
    "doubling_widths": rounds_its_width,
}


# Experiments that say nothing about a method with a width of its own: its few levels do not follow bits.
ABOUT_WIDTHS = ("rescales", "learns_bits", "saturates", "doubling_widths")


def test_every_trait_has_an_experiment():
    assert set(DEPARTURES) == set(TRAITS)


@cases()
def test_traits_are_known_ones(name, spec):
    assert make_quantizer(name, spec).traits <= set(TRAITS)


@pytest.mark.parametrize("trait", TRAITS)
@cases(range=None, granularity=PER_TENSOR)
def test_a_departure_is_declared_and_a_declaration_departs(name, spec, trait):
    quantizer = make_quantizer(name, spec)
    traits = quantizer.traits
    if (quantizer.width and trait in ABOUT_WIDTHS) or ("rescales" in traits and trait == "saturates"):
        return  # the experiment compares widths, or needs levels that approximate x closely, and says nothing here
    assert DEPARTURES[trait](name, spec) == (trait in traits)


@cases(range=None, granularity=PER_TENSOR)
def test_a_width_is_declared_where_the_levels_do_not_follow_bits(name, spec):
    assert keeps_its_levels(name, spec) == (make_quantizer(name, spec).width is not None)
