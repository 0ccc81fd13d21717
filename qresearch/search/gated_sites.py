"""The gates of a whole model: their parameters, what they say of widths and channels, and what they cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from qresearch.qmodel import QuantizedModel
from qresearch.quantizers.hard_concrete import gate_is_open, hc_prob_pos
from qresearch.search.gates import Gated, Phi, opened, shares_of
from qresearch.search.shares import Palette, Shares
from qresearch.search.subject import Realised

OPEN, CLOSED = 6.0, -6.0  # where gates start; those of float widths start closed
Site = tuple[str, str]  # (layer, "weight" or "input")


@dataclass(frozen=True, eq=False)
class GatedSites:
    """model: with ``bayesian_bits`` quantizers. free: the layer's row of every gated site. bits: what the sites without
    gates run at. ``learned``: {"moved": how far the gates' parameters have moved, "own": the model's qparams}.
    """

    model: QuantizedModel
    palettes: tuple[Palette, ...]
    free: dict[Site, int]
    bits: Float[Array, "layer 2"]

    def allowed(self, site: Site) -> tuple[bool, ...]:
        """Which widths of its palette a site may take."""
        return self.palettes[self.free[site]].allowed[site[1] == "input"]

    def widths(self, site: Site) -> np.ndarray:
        """The allowed widths of a site, ascending."""
        palette = self.palettes[self.free[site]]
        return np.asarray((palette.weight, palette.input)[site[1] == "input"], np.float32)[list(self.allowed(site))]

    def still(self, own: Any) -> dict[Site, Phi]:
        """How far gates have moved at the start. Channels have gates where the quantizer's own z2 has, not in the last
        layer, and not where the layer's weight is pinned.
        """

        def at(site: Site) -> Phi:
            z2, choices = own[site[0]][site[1]].z2, len(self.widths(site)) > 1
            prunes = site[1] == "weight" and z2.size > 1 and choices and self.free[site] != len(self.palettes) - 1
            return Phi(jnp.zeros(len(self.widths(site)) - 1), jnp.zeros_like(z2) if prunes else None)

        return {site: at(site) for site in self.free}

    def phis(self, learned: Any, gain: Array) -> dict[Site, Phi]:
        """The parameters φ of all gates."""

        def at(site: Site, moved: Phi) -> Phi:
            start = jnp.where(jnp.asarray(self.widths(site)[1:]) < 32, OPEN, CLOSED)
            channels = None if moved.channels is None else OPEN + gain * moved.channels
            return Phi(start + gain * moved.widths, channels)

        return {site: at(site, moved) for site, moved in learned["moved"].items()}

    def with_gates(self, learned: Any, gates: dict[Site, Phi]) -> Any:
        """The qparams of the gated model for gates in [0, 1]."""
        qparams = {name: dict(both) for name, both in learned["own"].items()}
        for site, gate in gates.items():
            own, shares = qparams[site[0]][site[1]], shares_of(gate.widths, self.allowed(site))
            channels = jnp.ones_like(own.z2) if gate.channels is None else gate.channels
            qparams[site[0]][site[1]] = Gated(own.bound, channels, shares.dense(len(self.allowed(site))))
        return qparams

    def realise(self, learned: Any, gain: Array) -> Realised:
        """The model with thresholded gates, and the probabilities of the widths; what these lack to 1 is the expected
        share of pruned channels.
        """
        phis = self.phis(learned, gain)
        chances = jax.tree.map(hc_prob_pos, phis)

        def part(layer: str, operand: str) -> Shares:
            if (layer, operand) not in chances:
                return Shares(jnp.ones(1), jnp.zeros(1, jnp.int32))
            shares, channels = (
                shares_of(chances[layer, operand].widths, self.allowed((layer, operand))),
                chances[layer, operand].channels,
            )
            return shares if channels is None else Shares(shares.share * channels.mean(), shares.which)

        names = [unit.layer.name for unit in self.model.units]
        shares = tuple((part(name, "weight"), part(name, "input")) for name in names)
        return Realised(self.with_gates(learned, jax.tree.map(gate_is_open, phis)), self.bits, shares)

    def prior(self, learned: Any, gain: Array) -> Float[Array, ""]:
        """Σ_sites (MAC / max MAC) Σ_w w Π_{v <= w} P(z_v > 0), averaged over channels (``bops_regularizer``)."""
        macs = np.asarray(self.model.counts.macs, np.float32)
        relative, total = macs / max(macs.max(initial=0.0), 1.0), jnp.float32(0.0)
        for site, chance in jax.tree.map(hc_prob_pos, self.phis(learned, gain)).items():
            kept = jnp.float32(1.0) if chance.channels is None else chance.channels.mean()
            total = total + relative[self.free[site]] * kept * (jnp.asarray(self.widths(site)) @ opened(chance.widths))
        return total

    def kept(self, learned: Any, gain: Array) -> Float[np.ndarray, "layer"]:
        """The share of every layer's output channels that thresholded gates keep."""
        shares = np.ones(len(self.palettes))
        for site, phi in self.phis(learned, gain).items():
            if phi.channels is not None:
                shares[self.free[site]] = float(gate_is_open(phi.channels).mean())
        return shares
