"""Shares: how an operand's learned width is spread over the widths that it may take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from qresearch.qmodel import QuantizedModel
from qresearch.units import base_name

Widths = tuple[float, ...]  # ascending


class Palette(NamedTuple):
    """The widths of one layer. weight, input: those that the operand's quantizers are made for, the same for all
    iterations of a scanned layer, which run one program. allowed: which of them the layer's own menu has.
    """

    weight: Widths
    input: Widths
    allowed: tuple[tuple[bool, ...], tuple[bool, ...]]

    @property
    def operands(self) -> tuple[tuple[Widths, tuple[bool, ...]], ...]:
        """(widths, allowed) of the weight and of the input."""
        return (self.weight, self.allowed[0]), (self.input, self.allowed[1])


class Shares(NamedTuple):
    """Σ share = 1 over some of an operand's widths; which: their places in the palette."""

    share: Float[Array, "term"]
    which: Int[Array, "term"]

    def dense(self, count: int) -> Float[Array, "width"]:
        """The shares of all ``count`` widths."""
        return jnp.zeros(count, self.share.dtype).at[self.which].add(self.share)


def palettes(model: QuantizedModel) -> tuple[Palette, ...]:
    """The widths of every layer, from the menus of the model."""
    together: dict[str, tuple[set[int], set[int]]] = {}
    for unit, menu in zip(model.units, model.menus):
        for operand, widths in zip(together.setdefault(base_name(unit.layer.name), (set(), set())), zip(*menu)):
            operand.update(widths)
    found = []
    for unit, menu in zip(model.units, model.menus):
        weight, input = (tuple(map(float, sorted(widths))) for widths in together[base_name(unit.layer.name)])
        own = [{float(width) for width in widths} for widths in zip(*menu)]
        allowed = tuple(tuple(w in mine for w in widths) for widths, mine in zip((weight, input), own))
        found.append(Palette(weight, input, (allowed[0], allowed[1])))
    return tuple(found)


def ends(widths: Widths, allowed: Sequence[bool]) -> tuple[float, float]:
    """The least and the greatest allowed width."""
    mine = [width for width, may in zip(widths, allowed) if may]
    return min(mine), max(mine)


def start_width(widths: Widths, allowed: Sequence[bool]) -> float:
    """Where a learned width starts: the greatest allowed one that is no float, if there is one."""
    mine = [width for width, may in zip(widths, allowed) if may]
    return max((width for width in mine if width < 32), default=max(mine))


def interpolated(width: Float[Array, ""], widths: Widths) -> Shares:
    """The shares of the two widths w_i <= width <= w_i+1 around: 1 - s and s, s = (width - w_i) / (w_i+1 - w_i).

    A width on the list has a share of exactly 1, and the slope of the interval above it.
    """
    if len(widths) == 1:
        return Shares(jnp.ones(1), jnp.zeros(1, jnp.int32))
    listed = np.asarray(widths, np.float32)
    lower = jnp.clip(jnp.searchsorted(listed, jax.lax.stop_gradient(width), side="right") - 1, 0, len(widths) - 2)
    below, above = jnp.asarray(listed)[lower], jnp.asarray(listed)[lower + 1]
    share = (width - below) / (above - below)
    return Shares(jnp.stack([1.0 - share, share]), jnp.stack([lower, lower + 1]))


@jax.custom_vjp
def confined(width: Float[Array, "..."], low: Float[Array, "..."], high: Float[Array, "..."]) -> Float[Array, "..."]:
    """clip(width, low, high), whose gradient passes at and beyond an end only where descent leads back inside.

    With ``jnp.clip`` a width that starts at an end would be stuck there (or get half a gradient), and with a plain
    straight-through estimator it would drift away from it, and take as long to come back.
    """
    return jnp.clip(width, low, high)


def _confined_forward(width: Array, low: Array, high: Array) -> tuple[Array, tuple[Array, Array, Array]]:
    return jnp.clip(width, low, high), (width, low, high)


def _confined_backward(saved: tuple[Array, Array, Array], upstream: Array) -> tuple[Array, Array, Array]:
    width, low, high = saved
    outwards = ((width >= high) & (upstream < 0)) | ((width <= low) & (upstream > 0))
    return jnp.where(outwards, 0.0, upstream), jnp.zeros_like(low), jnp.zeros_like(high)


confined.defvjp(_confined_forward, _confined_backward)
