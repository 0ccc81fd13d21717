"""Calibration for a whole menu: qparams for every width, so that one program serves every allocation."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from qresearch.qmodel import Bits, Params, QParams, QuantizedModel


class MenuQParams(NamedTuple):
    """The qparams of every site at every width of a menu: leaves [width, ...]. widths: [width] bits, ascending.

    rows: which row of ``bits`` each layer has. It is written down because a dict that passes through jit comes back
    with its keys sorted, and the layers' order is that of execution.
    """

    widths: Float[Array, " width"]
    rows: dict[str, Int[Array, ""]]
    qparams: QParams


def calibrate(model: QuantizedModel, params: Params, x: Any, widths: Sequence[int] | None = None) -> MenuQParams:
    """Calibrates every site at every width on the float model's tensors for the batch x, in one run of the model.

    A scale belongs to the width it was calibrated at; ``select`` picks each site's own. widths: those of the model's
    menus unless given. The input ranges are those of the float model, not of one whose earlier layers are quantized.
    """
    chosen = jnp.asarray(sorted(set(widths or menu_widths(model))), jnp.float32)
    rows = {layer.name: jnp.int32(row) for row, layer in enumerate(model.layers)}
    return MenuQParams(chosen, rows, _calibrator(model)(params, x, chosen))


def menu_widths(model: QuantizedModel) -> tuple[int, ...]:
    """All widths below 32 that occur in the menus of a model, ascending."""
    widths = {width for menu in model.menus for option in menu for width in option if 0 < width < 32}
    return tuple(sorted(widths)) or (8,)


def select(table: MenuQParams, bits: Bits) -> QParams:
    """The qparams of an allocation: for every site those of its width (of the nearest one, where it is not in the
    table).
    """
    rows = jnp.asarray(bits)
    return {name: select_layer(table.widths, sites, rows[table.rows[name]]) for name, sites in table.qparams.items()}


def select_layer(widths: Float[Array, " width"], sites: dict[str, Any], bits: Float[Array, "2"]) -> dict[str, Any]:
    """``select`` for one layer: its qparams [width, ...] of each operand to those of the operand's own width."""
    return take_layer(sites, nearest(widths, bits))


def nearest(widths: Float[Array, " width"], bits: Float[Array, "..."]) -> Int[Array, "..."]:
    """The index of the width in the table that is nearest to each of these."""
    return jnp.argmin(jnp.abs(widths - bits[..., None]), axis=-1)


def take_layer(sites: dict[str, Any], index: Int[Array, "2"]) -> dict[str, Any]:
    """The qparams of a layer at these (weight, input) indices into the table's widths."""
    return {
        operand: jax.tree.map(lambda leaf, column=column: leaf[index[column]], sites[operand])
        for column, operand in enumerate(("weight", "input"))
    }


def select_many(table: MenuQParams, allocations: Float[np.ndarray, "n layers 2"]) -> QParams:
    """``select`` for n allocations at once: leaves [n, ...]."""
    return _selector()(table, jnp.asarray(allocations, jnp.float32))


@functools.lru_cache(maxsize=16)
def _calibrator(model: QuantizedModel) -> Callable[[Params, Any, Array], QParams]:
    layers = len(model.layers)

    def at_all_widths(params: Params, x: Any, widths: Array) -> QParams:
        return jax.vmap(lambda width: model.init(params, x, jnp.full((layers, 2), width)))(widths)

    return jax.jit(at_all_widths)


@functools.cache
def _selector() -> Callable[[MenuQParams, Array], QParams]:
    return jax.jit(jax.vmap(select, in_axes=(None, 0)))
