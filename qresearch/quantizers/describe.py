"""What a method is, in words: its paper, what it learns and stores, and the grids it has mathematics for."""

from __future__ import annotations

import inspect
import itertools
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp

from qresearch.numerics.granularity import PER_TENSOR, per_channel, per_group
from qresearch.quantizers import QUANTIZERS, Quantizer, QuantSpec, make_quantizer
from qresearch.quantizers.base import UnsupportedSpecError

GRANULARITIES = {"per_tensor": PER_TENSOR, "per_channel": per_channel(-1), "per_group": per_group(-1, 2)}


class Description(NamedTuple):
    """One method of the registry. paper: its first reference. options: its own, with their defaults."""

    summary: str
    paper: str
    learnable: tuple[str, ...]
    stores: str
    grids: tuple[str, ...]
    granularities: tuple[str, ...]
    options: dict[str, object]


def describe(name: str) -> Description:
    """What the docstring says and what the factory accepts. Nothing is listed by hand, so nothing goes stale."""
    text = inspect.getdoc(QUANTIZERS[name]) or ""
    kinds = itertools.product((True, False), (True, False), GRANULARITIES)
    found = {kind: _build(name, *kind) for kind in kinds}
    accepted = {kind: quantizer for kind, quantizer in found.items() if quantizer is not None}
    granularities = [key for key in GRANULARITIES if any(kind[2] == key for kind in accepted)]
    if any("calibrates_in_apply" in quantizer.traits for quantizer in accepted.values()):
        granularities.append("per_token")
    return Description(
        summary=text.split("\n")[0],
        paper=reference(text) or "none given",
        learnable=tuple(dict.fromkeys(field for quantizer in accepted.values() for field in quantizer.learnable)),
        stores=", ".join(dict.fromkeys(_stored(quantizer) for quantizer in accepted.values())),
        grids=tuple(dict.fromkeys(_grid(signed, symmetric) for signed, symmetric, _ in accepted)),
        granularities=tuple(granularities),
        options={key: p.default for key, p in list(inspect.signature(QUANTIZERS[name]).parameters.items())[1:]},
    )


def reference(text: str) -> str | None:
    """The sentence of a docstring that ends in the first link, or in the first year if it has none; None without."""
    text = " ".join(text.split())
    link = re.search(r"https?://[^\s,;)]+", text) or re.search(r"\b(19|20)\d\d\b", text)
    if link is None:
        return None
    return text[text.rfind(". ", 0, link.start()) + 1 : link.end()].strip().rstrip(".")


def _build(name: str, signed: bool, symmetric: bool, granularity: str) -> Quantizer | None:
    try:
        return make_quantizer(name, QuantSpec(signed, symmetric, GRANULARITIES[granularity]))
    except UnsupportedSpecError:
        return None


def _grid(signed: bool, symmetric: bool) -> str:
    return f"{'signed' if signed else 'unsigned'} {'symmetric' if symmetric else 'affine'}"


def _stored(quantizer: Quantizer) -> str:
    x = jax.ShapeDtypeStruct((4, 4), jnp.float32)
    qparams = jax.eval_shape(lambda x: quantizer.init(x, 4.0), x)
    codes = jax.eval_shape(lambda qparams, x: quantizer.encode(qparams, x, 4.0), qparams, x)
    kind = "integer codes" if codes.codebook is None else "codes of a codebook"
    return f"{quantizer.width}-bit {kind}" if quantizer.width else kind
