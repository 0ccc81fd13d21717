"""Bayesian Bits: every width beyond the least one has a gate, every channel may have one, and SVI trains them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpy.typing import ArrayLike

from qresearch.allocation.problem import Key
from qresearch.calibration import calibrate, select
from qresearch.cost import Cost
from qresearch.errors import ConfigError
from qresearch.qmodel import QuantizedModel, quantize_model
from qresearch.quantizers.hard_concrete import GATE_THRESHOLD, gate_is_open
from qresearch.rules import SiteRule
from qresearch.search.gated_sites import GatedSites
from qresearch.search.gates import gated_model
from qresearch.search.run import run_search
from qresearch.search.shares import palettes, start_width
from qresearch.search.subject import Learner, SearchSubject

METHOD = "bayesian_bits"  # in ``QUANTIZERS``


def bayesian_bits(
    key: Key,
    subject: SearchSubject,
    cost: str | Cost,
    budgets: ArrayLike,
    *,
    strength: float = 1.0,
    travel: float = 32.0,
    mu: float = 0.0,
) -> tuple[Float[np.ndarray, "budget layer 2"], dict[str, Any]]:
    """Gates z ~ HardConcrete(φ), trained with the weights and bounds by numpyro's ``SVI``: see ``svi``.

    -ELBO = E_q(z)[loss] + μ Σ_k (MAC_k / max MAC) Σ_w w Π_{v <= w} P(z_v > 0) + strength · relu(E[cost] / budget - 1),
    the middle sum over the weights and inputs of all layers k and their widths w, averaged over channels; the last term
    grows to its strength in the first half of the training.
    x̂ = z_2 (x_2 + z_4 (ε_4 + z_8 (ε_8 + ...))), with the widths of the menu in place of 2, 4, 8 (``gates.gated``).
    Output channels are pruned (by z_2) where the model's own weight quantizer has gates for them: ``bayesian_bits``
    with the option ``prune_axis: -1``; not in the last layer. A layer is pruned where its menu has 0 bits.
    van Baalen et al., Bayesian Bits: Unifying Quantization and Pruning, 2020, https://arxiv.org/abs/2005.07093.

    mu: the paper's knob, of the prior p(z_w = 1) = exp(-μ w MAC / max MAC). With mu > 0 and strength 0 this is the
    paper's objective: gates with P(z = 0) >= 0.34 close, and a budget is an upper limit (the nearest widths that meet
    it are taken). With mu = 0 (the default) the budget decides, as in the other searches: the most probable widths that
    use it up. travel: how far a φ could move in the whole training at full speed; travel / steps is the gates' rate.
    info has, besides what every search has: kept [budget][layer], the share of output channels that stay, which the
    budgets and info's costs count; and starts, per budget the (variables, qparams) to fine-tune from with fixed gates,
    None unless all quantizers with a choice of widths are ``bayesian_bits``.
    Where we differ: the widths are those of any menu, whose grids need not refine each other; a closed gate may open
    again (the authors skip it for good at φ <= -2); gates of float widths start closed, all others open; a budget; the
    cost of pruned channels falls in their own layer only, not in the inputs of the next one, and is taken to be in
    proportion to them; weights, gates and bounds share one recipe and its schedule, but not one rate (``travel``).
    As in the authors' code, the loss is a mean over examples (a tempered likelihood), one draw of the gates serves a
    batch, and the least width of a menu has no gate, save those of channels.
    ConfigError for a quantizer per group.
    """
    learned = learner(subject)
    return run_search("bayesian_bits", learned, key, subject, cost, budgets, strength, travel, mu)


def learner(subject: SearchSubject) -> Learner:
    """The gates of every operand with a choice of widths, and the bounds of its quantizer."""
    from qresearch.search.svi import svi_trainer  # here: numpyro is loaded where it is needed

    sites = _sites(subject)
    inner = sites.model

    def begin(subject: SearchSubject) -> Any:
        widths = sorted({int(width) for width in np.ravel(sites.bits) if 0 < width < 32} or {8})
        own = select(calibrate(inner, subject.variables, subject.x, widths), sites.bits)
        return {"moved": sites.still(own), "own": own}

    def learnable(learned: Any) -> Any:
        return {"moved": jax.tree.map(lambda _: True, learned["moved"]), "own": inner.learnable(learned["own"])}

    def handover(learned: Any, gain: Array) -> Any:
        if inner is not subject.model:
            return None
        qparams = {name: dict(both) for name, both in learned["own"].items()}
        for (name, operand), phi in sites.phis(learned, gain).items():
            if phi.channels is not None:
                qparams[name][operand] = qparams[name][operand]._replace(z2=gate_is_open(phi.channels))
        return qparams

    return Learner(
        gated_model(inner, frozenset(sites.free)),
        begin,
        learnable,
        sites.realise,
        surprise,
        prior=sites.prior,
        kept=sites.kept,
        handover=handover,
        trainer=lambda trainer, twin: svi_trainer(trainer, twin, sites),
    )


def surprise(share: Float[np.ndarray, "width"], widths: Float[np.ndarray, "width"]) -> Float[np.ndarray, "width"]:
    """-log P(width); 0 for the width that thresholded gates leave, the first whose next gate has P(z = 0) >= 0.34."""
    among = np.flatnonzero(share > 0)
    chance = share[among] / share[among].sum()
    distance = np.full(len(widths), -np.log(np.finfo(np.float32).tiny))
    distance[among] = -np.log(np.maximum(chance, np.finfo(np.float32).tiny))
    reached = np.cumsum(chance[::-1])[::-1]
    shut = 1.0 - reached[1:] / reached[:-1] >= GATE_THRESHOLD
    distance[among[int(np.argmax(np.append(shut, True)))]] = 0.0
    return distance


def _sites(subject: SearchSubject) -> GatedSites:
    inner, found = _inner_model(subject), palettes(subject.model)
    free = {
        (unit.layer.name, operand): i
        for i, (unit, palette) in enumerate(zip(inner.units, found))
        for quantizer, operand, (widths, _) in zip((unit.weight, unit.input), ("weight", "input"), palette.operands)
        if quantizer is not None and len(widths) > 1
    }
    bits = jnp.asarray([[start_width(*one) for one in palette.operands] for palette in found], jnp.float32)
    return GatedSites(inner, found, free, bits)


def _inner_model(subject: SearchSubject) -> QuantizedModel:
    """The model with ``bayesian_bits`` quantizers wherever a rule leaves a choice of widths; itself if it has them."""
    choices = [
        site
        for rule in subject.model.rules
        for site, widths in zip((rule.weight, rule.input), zip(*rule.options()))
        if site is not None and len(set(widths)) > 1
    ]
    if any(site.granularity == "per_group" for site in choices):
        raise ConfigError("search 'bayesian_bits' has one bound per tensor or channel, not per group; set per_tensor")

    def changed(site: SiteRule | None) -> SiteRule | None:
        if site is None or site not in choices or site.quantizer == METHOD:
            return site
        return SiteRule(METHOD, signed=site.signed)

    rules = tuple(replace(rule, weight=changed(rule.weight), input=changed(rule.input)) for rule in subject.model.rules)
    if rules == subject.model.rules:
        return subject.model
    return quantize_model(subject.model.fn, subject.variables, subject.x, rules)
