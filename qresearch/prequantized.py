"""Kernels quantized once for every width of a menu, so that an allocation only picks its own."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from qresearch.calibration import MenuQParams, nearest, take_layer
from qresearch.graph import Call
from qresearch.qmodel import Bits, Params, QuantizedModel
from qresearch.units import Unit

ENDS = (0.0, 32.0)  # pruned and float: every allocation may have them, whatever the menu
MAX_BYTES = 2**31  # of quantized kernels; a larger table would crowd out the model that it is for


class Prequantized(NamedTuple):
    """A calibrated menu with its quantized kernels. widths: [width] bits, ascending. kernels: [width, *kernel] by layer
    name, in the contraction's layout; a layer whose kernel is data, or stays in float, has none.
    """

    menu: MenuQParams
    widths: Float[Array, " width"]
    kernels: dict[str, Float[Array, "width ..."]]

    def serves(self, allocations: Float[np.ndarray, "n layers 2"]) -> bool:
        """Whether every weight width of these allocations is in the table."""
        return bool(np.isin(allocations[..., 0], np.asarray(self.widths)).all())


def prequantize(model: QuantizedModel, params: Params, menu: MenuQParams) -> Prequantized:
    """Quantizes every kernel at every width of the menu, at 0 and at 32 bits.

    No kernels, so that they are quantized where they are used, if all widths together would take more than 2 GiB.
    """
    widths = jnp.asarray(sorted({*ENDS, *np.asarray(menu.widths).tolist()}), jnp.float32)
    quantized = [unit for unit in model.units if unit.weight is not None]
    size = 4 * len(widths) * sum(math.prod(unit.layer.contraction.weight_shape) for unit in quantized)
    kernels = _quantizer(model)(params, menu, widths) if size <= MAX_BYTES else {}
    return Prequantized(menu, widths, kernels)


@functools.lru_cache(maxsize=16)
def forward_of(model: QuantizedModel) -> Callable[..., Any]:
    """``model.apply`` in the form that ``evaluate`` calls: shared is (params, Prequantized), own an allocation's
    bits.
    """

    def forward(shared: tuple[Params, Prequantized], bits: Bits, x: Any) -> Any:
        params, table = shared
        # Of all layers at once: an argmin for each would be most of what there is to compile.
        sites, own = nearest(table.menu.widths, bits), nearest(table.widths, bits[:, 0])
        rows = {unit.layer.name: row for row, unit in enumerate(model.units)}
        qparams = {name: take_layer(site, sites[rows[name]]) for name, site in table.menu.qparams.items()}
        kernels = {name: kernel[own[rows[name]]] for name, kernel in table.kernels.items()}
        return model.apply(params, qparams, x, bits, kernels=kernels)

    return forward


@functools.lru_cache(maxsize=16)
def _quantizer(model: QuantizedModel) -> Callable[..., dict[str, Array]]:
    units = [unit for unit in model.units if unit.weight is not None and not unit.layer.contraction.product]

    def kernel(call: Call) -> tuple[Array, Array]:
        return call.contract(call.weight, call.input), call.weight

    def at_all_widths(params: Params, menu: MenuQParams, widths: Array) -> dict[str, Array]:
        x = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), model.example)
        found = model.graph(params, x).run(kernel, params, x)[1]  # only the kernels are used: the rest is not run
        index = nearest(menu.widths, widths)

        def at(unit: Unit, i: Array, width: Array) -> Array:
            assert unit.weight is not None
            own = jax.tree.map(lambda leaf: leaf[i], menu.qparams[unit.layer.name]["weight"])
            return unit.weight.apply(own, found[unit.uses[0].name][0], width)

        return {unit.layer.name: jax.vmap(functools.partial(at, unit))(index, widths) for unit in units}

    return jax.jit(at_all_widths)
