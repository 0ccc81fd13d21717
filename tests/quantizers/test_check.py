"""What a method that does not keep its contract is told, from shapes alone."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import pytest

from qresearch.errors import GraphError
from qresearch.numerics.granularity import per_group
from qresearch.quantizers import QuantSpec, make_quantizer
from qresearch.quantizers.base import ContractError, UnsupportedSpecError, on_view
from qresearch.quantizers.check import calibrated

GOOD = make_quantizer("minmax", QuantSpec())
SHAPE = (3, 3, 1, 16)


def check(quantizer, shape=SHAPE):
    return jax.eval_shape(lambda x, bits: calibrated(quantizer, x, bits), jnp.ones(shape), 4.0)


def applying(function):
    """A method that applies ``function(x, bits)``."""
    return GOOD._replace(apply=lambda qparams, x, bits, *, key=None: function(x, bits))


BROKEN = {
    "shape": (applying(lambda x, bits: x[1:]), "apply returned float32[2,3,1,16], expected x's float32[3,3,1,16]"),
    "rank": (
        applying(lambda x, bits: x[..., None]),
        "apply returned float32[3,3,1,16,1], expected x's float32[3,3,1,16]",
    ),
    "dtype": (
        applying(lambda x, bits: x.astype(jnp.bfloat16)),
        "apply returned bfloat16[3,3,1,16], expected x's float32[3,3,1,16]",
    ),
    "pair": (applying(lambda x, bits: (x, bits)), "apply returned tuple, expected x's float32[3,3,1,16]"),
    "tuple": (GOOD._replace(init=lambda x, bits: (x, bits)), "init must return a NamedTuple, got tuple"),
    "array": (GOOD._replace(init=lambda x, bits: bits), "init must return a NamedTuple, got an array"),
    "branch": (
        applying(lambda x, bits: x if bits > 1 else -x),
        r"apply: Attempted boolean conversion of traced array .* \(test_check\.py:\d+\); bits is traced: .*",
    ),
    "number": (applying(lambda x, bits: x * float(bits)), r"apply: .*\(test_check\.py:\d+\); bits is traced: .*"),
    "type": (applying(lambda x, bits: x + "a"), r"apply: TypeError: unsupported .* \(test_check\.py:\d+\)"),
    "no key": (
        GOOD._replace(apply=lambda qparams, x, bits: x),
        "apply: TypeError: .* unexpected keyword argument 'key'",
    ),
    "raising init": (GOOD._replace(init=lambda x: x), "init: TypeError: .* positional argument.*"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_contract_is_one_line(case):
    quantizer, message = BROKEN[case]
    message = message if "\\" in message or ".*" in message else re.escape(message)
    with pytest.raises(ContractError) as caught:
        check(quantizer, SHAPE)
    assert re.fullmatch(message, str(caught.value)), caught.value
    assert ("traced" in message or "TypeError" in message) == isinstance(caught.value.__cause__, TypeError)


def test_a_method_that_needs_a_key_is_traced_with_one_too():
    def apply(qparams, x, bits, *, key=None):
        return x if key is None else x + jax.random.normal(key, (2,))

    noisy = GOOD._replace(apply=apply, traits=frozenset({"needs_key"}))
    with pytest.raises(ContractError, match=r"apply: \w+Error: .*shape"):
        check(noisy)
    check(noisy._replace(traits=frozenset()), SHAPE)


def test_what_a_method_refuses_itself_is_passed_on():
    def refuse(x, bits):
        raise UnsupportedSpecError("minmax: no")

    with pytest.raises(UnsupportedSpecError, match=r"^minmax: no"):
        check(GOOD._replace(init=refuse), SHAPE)


def test_groups_hide_no_shape():
    grouped = on_view(per_group(-1, 4), applying(lambda x, bits: x.reshape(-1)))
    with pytest.raises(GraphError, match=r"apply returned float32\[144\], expected x's float32\[3,3,1,4,4\]"):
        grouped.apply(GOOD.init(jnp.ones(SHAPE), 4.0), jnp.ones(SHAPE), 4.0)


def test_apply_is_asked_once_for_a_shape():
    asked = []
    counted = applying(lambda x, bits: asked.append(x.shape) or x)
    for shape in ((2, 2), (3, 2), (2, 2)):
        check(counted, shape)
    assert asked == [(2, 2), (3, 2)]
