"""The contract of a quantization method: three pure functions, closed over a static specification."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from qresearch.errors import GraphError
from qresearch.numerics.codes import Codes
from qresearch.numerics.granularity import PER_TENSOR, Granularity

FLOAT_BITS = 32.0  # at this width and above a site stays in float; at 0 it is pruned
Bits = Float[Array, ""] | float
QParams = Any  # a method's own NamedTuple of arrays for one site


@dataclass(frozen=True)
class QuantSpec:
    """The static choices about one site. Everything numeric (bits, scale, ...) is traced and lives elsewhere.

    signed: codes may be negative. symmetric: zero_point is 0. narrow: drop the code that has no mirror image.
    range: name in ``RANGES`` that calibrates the initial range, or None for the method's own initialisation.
    mask: what the straight-through estimator counts as clipped (see ``fake_quant``), or None for the method's default.
    rounding: half_even, floor, ceil, toward_zero or stochastic.
    """

    signed: bool = True
    symmetric: bool = True
    granularity: Granularity = field(default=PER_TENSOR)
    narrow: bool = False
    range: str | None = None
    mask: str | None = None
    rounding: str = "half_even"


class InitFn(Protocol):
    """``init(x, bits) -> qparams``: calibrates on a tensor x at a traced width."""

    def __call__(self, x: Float[Array, "..."], bits: Bits) -> QParams: ...


class ApplyFn(Protocol):
    """``apply(qparams, x, bits, *, key=None) -> x̂``: fake-quantizes; differentiable in qparams, x and bits."""

    def __call__(
        self,
        qparams: QParams,
        x: Float[Array, "..."],
        bits: Bits,
        *,
        key: PRNGKeyArray | Array | None = None,
    ) -> Float[Array, "..."]: ...


class EncodeFn(Protocol):
    """``encode(qparams, x, bits) -> Codes``: what is stored, for widths from 1 to 24; decoding it equals ``apply``."""

    def __call__(self, qparams: QParams, x: Float[Array, "..."], bits: Bits) -> Codes: ...


# What a method may declare about itself where it departs from the rule; the conformance suite tests each declaration.
TRAITS = {
    "no_zero_level": "its grid has no zero: x = 0 is not kept",
    "not_idempotent": "quantizing twice differs from quantizing once (it transforms or normalises x first)",
    "rescales": "the output approximates a transformed x, not x itself",
    "needs_key": "its training forward draws noise; without a key it rounds",
    "calibrates_in_apply": "its grid follows the tensor that it is given, so qparams hold no range",
    "passes_gradient": "its estimator gives x a gradient outside the grid too",
    "learns_bits": "bits is its initial width (signed: from 2); then it is learned, and only 0 and 32 are obeyed",
    "saturates": "from some width on, further bits add range and no precision",
    "spare_levels": "its learnable table has room for its widest grid: entries that a width has no code for stay idle",
    "doubling_widths": "bits is rounded down to a power of two; one bit leaves nothing",
}


class Quantizer(NamedTuple):
    """A quantization method for one site.

    learnable: the fields of its qparams that training updates. traits: its declared departures, keys of ``TRAITS``.
    width: the bits that a stored value takes, for a method whose number of levels does not follow bits; else None.
    """

    init: InitFn
    apply: ApplyFn
    encode: EncodeFn
    learnable: tuple[str, ...] = ()
    traits: frozenset[str] = frozenset()
    width: int | None = None


# ``factory(spec, **options) -> Quantizer``; options are the method's own static hyperparameters, keywords with
# defaults. A factory refuses a spec that it has no mathematics for with ``UnsupportedSpecError``.
Factory = Callable[..., Quantizer]


class UnsupportedSpecError(GraphError):
    """A method was asked for a sign, symmetry or granularity that its paper does not define."""


class ContractError(GraphError):
    """A method does not keep what ``Quantizer`` promises."""


def same_form(x_hat: Any, x: Any) -> Any:
    """``x_hat``, what ``apply`` gave for x; ContractError unless it has x's shape and dtype."""
    if _form(x_hat) != _form(x):
        raise ContractError(f"apply returned {_form(x_hat)}, expected x's {_form(x)}")
    return x_hat


def _form(value: Any) -> str:
    """``float32[3,3,1,16]``; of what is no array, its type."""
    if not (hasattr(value, "shape") and hasattr(value, "dtype")):
        return type(value).__name__
    return f"{value.dtype}[{','.join(map(str, value.shape))}]"


def at_width(bits: Bits, x: Array, quantized: Array) -> Array:
    """``quantized`` at 1 to 31 bits, x itself at 32 and above (float), zeros at 0 and below (pruned)."""
    bits = jnp.asarray(bits, jnp.float32)
    return jnp.where(bits >= FLOAT_BITS, x, jnp.where(bits <= 0.0, jnp.zeros_like(x), quantized))


def on_view(granularity: Granularity, quantizer: Quantizer) -> Quantizer:
    """A quantizer that sees the granularity's view of every tensor, so that a method never mentions groups."""

    def init(x: Array, bits: Bits) -> QParams:
        return quantizer.init(granularity.view(x), bits)

    def apply(qparams: QParams, x: Array, bits: Bits, *, key: Array | None = None) -> Array:
        view = granularity.view(x)
        return same_form(quantizer.apply(qparams, view, bits, key=key), view).reshape(x.shape)

    def encode(qparams: QParams, x: Array, bits: Bits) -> Codes:
        return quantizer.encode(qparams, granularity.view(x), bits)

    return quantizer if granularity.group is None else quantizer._replace(init=init, apply=apply, encode=encode)
