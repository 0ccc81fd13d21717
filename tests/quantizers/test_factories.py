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
from qresearch.quantizers.lsq import lsq
from qresearch.sweep.catalogue import catalogue


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


def test_a_method_without_a_paper_is_listed_with_all_others(monkeypatch):
    def balanced(spec, /):
        """Balanced clipping: an idea."""
        return lsq(spec)

    def listed():
        blocks = re.split(r"^  (?=\S)", catalogue("quantizers"), flags=re.MULTILINE)[1:]
        assert len(blocks) == len(QUANTIZERS)
        return next(block for block in blocks if block.startswith("balanced "))

    monkeypatch.setitem(QUANTIZERS, "balanced", balanced)
    assert re.search(r"paper +none given$", listed(), re.MULTILINE)
    balanced.__doc__ = "Balanced clipping. Unpublished, Somebody 2026."
    assert re.search(r"paper +Unpublished, Somebody 2026$", listed(), re.MULTILINE)


@pytest.mark.parametrize(
    ("name", "field", "words"),
    [("mx", "range", r"range 'mse', expected own \(or leave range out\)"), ("statsq", "mask", "expected no mask")],
)
def test_a_refusal_speaks_the_words_of_a_config(name, field, words):
    with pytest.raises(UnsupportedSpecError, match=words):
        make_quantizer(name, QuantSpec(**{field: "mse" if field == "range" else "none"}))


def test_an_unknown_method_is_refused_with_the_nearest_name():
    known = next(iter(QUANTIZERS))
    with pytest.raises(GraphError, match=f"unknown quantizer '{known}x'.*'{known}'"):
        make_quantizer(known + "x", QuantSpec())


@pytest.mark.parametrize("name", QUANTIZERS)
@pytest.mark.parametrize(("field", "value"), [("range", "msee"), ("mask", "round"), ("rounding", "half_up")])
def test_an_unknown_choice_is_refused_with_the_nearest_name(name, field, value):
    with pytest.raises(GraphError, match=f"'{name}': unknown {field} '{value}'"):
        make_quantizer(name, QuantSpec(**{field: value}))
