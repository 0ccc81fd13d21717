"""Mixing: an operand is quantized at several widths, and the results are added up by their shares."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from qresearch.calibration import calibrate
from qresearch.errors import ConfigError
from qresearch.qmodel import QParams, QuantizedModel
from qresearch.quantizers import Quantizer
from qresearch.search.shares import Palette, Shares, Widths, palettes
from qresearch.units import Unit


class Mixture(NamedTuple):
    """shares of some widths, and the method's own qparams at all of them: leaves [width, ...]."""

    shares: Shares
    own: Any


def mixing(quantizer: Quantizer, widths: Widths) -> Quantizer:
    """Σ_i share_i Q(x; width_i), whose qparams are a ``Mixture``: a sum of tensors, so that one contraction serves all.

    Where one share is 1 and the others are 0, the result is Q at that width, bit for bit.
    """

    def apply(qparams: Mixture, x: Array, bits: Any, *, key: Array | None = None) -> Array:
        total = jnp.zeros(x.shape, jnp.float32)
        for term, (share, index) in enumerate(zip(qparams.shares.share, qparams.shares.which)):
            own = jax.tree.map(lambda leaf, index=index: leaf[index], qparams.own)
            stream = None if key is None else jax.random.fold_in(key, term)
            quantized = quantizer.apply(own, x, jnp.asarray(widths, jnp.float32)[index], key=stream)
            total = total + share * quantized.astype(jnp.float32)
        return total.astype(x.dtype)

    return quantizer._replace(apply=apply)


@functools.lru_cache(maxsize=16)
def mixing_model(model: QuantizedModel) -> QuantizedModel:
    """The same layers with ``mixing`` quantizers for the widths of their ``palettes``.

    ConfigError where a quantizer learns its own width, which no share could then decide.
    """

    def mixed(unit: Unit, palette: Palette) -> Unit:
        for quantizer, operand in ((unit.weight, "weight"), (unit.input, "input")):
            if quantizer is not None and "learns_bits" in quantizer.traits:
                raise ConfigError(
                    f"layer {unit.layer.name}: the {operand}'s quantizer learns its own width, but this search decides"
                    " the widths; name another quantizer, such as lsq, or search with 'dq'"
                )
        return dataclasses.replace(
            unit,
            weight=unit.weight and mixing(unit.weight, palette.weight),
            input=unit.input and mixing(unit.input, palette.input),
        )

    return dataclasses.replace(model, units=tuple(map(mixed, model.units, palettes(model))))


def menu_qparams(model: QuantizedModel, variables: Any, x: Any) -> QParams:
    """The qparams of every site, calibrated at each width of its palette: leaves [width, ...]."""
    found = palettes(model)
    every = sorted({width for palette in found for width in (*palette.weight, *palette.input) if 0 < width < 32} or {8})
    table = calibrate(model, variables, x, [int(width) for width in every])

    def at(site: Any, widths: Widths) -> Any:
        # Of 0 and 32, which need no qparams, those of the nearest width.
        rows = np.asarray([np.abs(np.asarray(every) - width).argmin() for width in widths])
        return jax.tree.map(lambda leaf: leaf[rows], site)

    own = table.qparams
    return {
        unit.layer.name: {
            "weight": at(own[unit.layer.name]["weight"], palette.weight),
            "input": at(own[unit.layer.name]["input"], palette.input),
        }
        for unit, palette in zip(model.units, found)
    }


def mixed_qparams(model: QuantizedModel, own: QParams, shares: tuple[tuple[Shares, Shares], ...]) -> QParams:
    """The qparams of a ``mixing_model``: each site's own with its shares."""
    return {
        unit.layer.name: {
            operand: None if own[unit.layer.name][operand] is None else Mixture(part, own[unit.layer.name][operand])
            for operand, part in zip(("weight", "input"), pair)
        }
        for unit, pair in zip(model.units, shares)
    }
