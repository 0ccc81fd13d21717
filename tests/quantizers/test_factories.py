"""What every method's factory accepts, refuses and says of itself."""

from __future__ import annotations

import re

import pytest
from quantizer_cases import (
    ALL,
    accepted,
)

from qresearch.errors import GraphError
from qresearch.quantizers import QUANTIZERS, QuantSpec, make_quantizer
from qresearch.quantizers.base import UnsupportedSpecError


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("name", QUANTIZERS)
def test_every_method_takes_symmetric_per_tensor_grids(name, signed):
    assert accepted(name, QuantSpec(signed=signed))


@pytest.mark.parametrize("name", QUANTIZERS)
def test_a_refusal_says_which_method_refuses(name):
    for _, spec in (case for case in ALL if case[0] == name and not accepted(*case)):
        with pytest.raises(UnsupportedSpecError, match=name):
            QUANTIZERS[name](spec)


@pytest.mark.parametrize("name", QUANTIZERS)
def test_the_docstring_has_a_reference(name):
    text = QUANTIZERS[name].__doc__ or ""
    assert re.search(r"https?://\S+", text) or re.search(r"[A-Z][a-z]+ .*\b(19|20)\d\d\b", text), text


def test_an_unknown_method_is_refused_with_the_nearest_name():
    known = next(iter(QUANTIZERS))
    with pytest.raises(GraphError, match=f"unknown quantizer '{known}x'.*'{known}'"):
        make_quantizer(known + "x", QuantSpec())


@pytest.mark.parametrize("name", QUANTIZERS)
@pytest.mark.parametrize(("field", "value"), [("range", "msee"), ("mask", "round"), ("rounding", "half_up")])
def test_an_unknown_choice_is_refused_with_the_nearest_name(name, field, value):
    with pytest.raises(GraphError, match=f"'{name}': unknown {field} '{value}'"):
        make_quantizer(name, QuantSpec(**{field: value}))
