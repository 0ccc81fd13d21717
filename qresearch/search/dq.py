"""DQ: every quantizer learns its own width, from its step and its range."""

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
from qresearch.errors import ConfigError, did_you_mean
from qresearch.qmodel import QuantizedModel, quantize_model
from qresearch.quantizers import Quantizer
from qresearch.quantizers.dq import learned_bits
from qresearch.rules import SiteRule
from qresearch.search.gates import is_signed
from qresearch.search.run import run_search, squared_distance
from qresearch.search.shares import confined, ends, interpolated, palettes, start_width
from qresearch.search.subject import Learner, Realised, SearchSubject

PARAMETRIZATIONS = {"u1": "dq_u1", "u2": "dq_u2", "u3": "dq_u3"}
OBEYED = (0.0, 32.0)  # widths that a DQ quantizer takes from its bits; it learns all others


def dq(
    key: Key,
    subject: SearchSubject,
    cost: str | Cost,
    budgets: ArrayLike,
    *,
    parametrization: str = "u3",
    strength: float = 1.0,
    travel: float = 16.0,
) -> tuple[Float[np.ndarray, "budget layer 2"], dict[str, Any]]:
    """Steps d and ranges q_max (u3), trained with the weights by loss + strength · relu(cost(b) / budget - 1).

    The penalty grows to its strength in the first half of the training.
    b = ⌈log2(q_max / d + 1)⌉ + 1 (unsigned without the 1) is the width in use, with the gradient of the expression
    without ⌈⌉; u1 learns (b, d) and u2 (b, q_max) instead. Costs are interpolated between the widths of the menu.
    Uhlich et al., Mixed Precision DNNs: All you need is a good parametrization, 2020, https://arxiv.org/abs/1905.11452.
    Where we differ: one scale for a tensor, in the model's place of quantization but with DQ quantizers in place of its
    own (an operand with one width keeps its quantizer); d and q_max move by powers of 2, with Adam, where the authors
    clip their gradients; the penalty is one-sided and linear, theirs is its square; the discrete widths are the nearest
    ones of the menus (least squares) that use the budget up, where they keep the learned ones.
    ``travel``: bits that a width could move in the whole training at full speed.
    """
    if parametrization not in PARAMETRIZATIONS:
        hint = did_you_mean(parametrization, PARAMETRIZATIONS)
        raise ConfigError(f"search 'dq': unknown parametrization '{parametrization}'{hint}")
    found = learner(subject, PARAMETRIZATIONS[parametrization])
    return run_search(f"dq {parametrization}", found, key, subject, cost, budgets, strength, travel)


def learner(subject: SearchSubject, quantizer: str = "dq_u3") -> Learner:
    """The qparams of DQ quantizers: where they start, and how far each has moved."""
    model, found = _dq_model(subject, quantizer), palettes(subject.model)
    initial = np.asarray([[start_width(*one) for one in palette.operands] for palette in found], np.float32)
    bits = jnp.asarray(np.where(np.isin(initial, OBEYED), initial, 8.0))
    free = {  # the sites whose width is learned, and whether their codes have a sign
        (unit.layer.name, operand): is_signed(site)
        for unit, palette in zip(model.units, found)
        for site, operand, (_, allowed) in zip((unit.weight, unit.input), ("weight", "input"), palette.operands)
        if site is not None and _learns(site) and sum(allowed) > 1
    }

    def begin(subject: SearchSubject) -> Any:
        widths = sorted({int(width) for width in initial.ravel() if width not in OBEYED} or {8})
        own = select(calibrate(model, subject.variables, subject.x, widths), jnp.asarray(initial))
        return {"moved": {site: jax.tree.map(jnp.zeros_like, own[site[0]][site[1]]) for site in free}, "own": own}

    def learnable(learned: Any) -> Any:
        own = model.learnable(learned["own"])
        for unit in model.units:  # a DQ quantizer moves by ``moved``, or, where its layer is pinned, not at all
            sites = own[unit.layer.name]
            for operand, quantizer in (("weight", unit.weight), ("input", unit.input)):
                if _learns(quantizer):
                    sites[operand] = jax.tree.map(lambda _: False, sites[operand])
        return {"moved": jax.tree.map(lambda _: True, learned["moved"]), "own": own}

    def realise(learned: Any, gain: Array) -> Realised:
        qparams = {name: dict(sites) for name, sites in learned["own"].items()}
        shares = []
        for unit, palette, pair in zip(model.units, found, initial):
            sites, both = qparams[unit.layer.name], []
            for operand, (widths, allowed), width in zip(("weight", "input"), palette.operands, pair):
                site = (unit.layer.name, operand)
                width = jnp.float32(width)
                if site in free:
                    sites[operand] = _moved(sites[operand], learned["moved"][site], gain)
                    low, high = map(jnp.float32, ends(widths, allowed))
                    width = confined(learned_bits(sites[operand], free[site]).reshape(()), low, high)
                both.append(interpolated(width, widths))
            shares.append((both[0], both[1]))
        return Realised(qparams, bits, tuple(shares))

    return Learner(model, begin, learnable, realise, squared_distance)


def _dq_model(subject: SearchSubject, quantizer: str) -> QuantizedModel:
    """The model with DQ quantizers wherever a rule leaves a choice of widths; all rules with that method change."""
    choices = [
        site
        for rule in subject.model.rules
        for site, widths in zip((rule.weight, rule.input), zip(*rule.options()))
        if site is not None and len(set(widths)) > 1
    ]

    def changed(site: SiteRule | None) -> SiteRule | None:
        return SiteRule(quantizer, signed=site.signed) if site is not None and site in choices else site

    rules = tuple(replace(rule, weight=changed(rule.weight), input=changed(rule.input)) for rule in subject.model.rules)
    return quantize_model(subject.model.fn, subject.variables, subject.x, rules)


def _learns(quantizer: Quantizer | None) -> bool:
    return quantizer is not None and "learns_bits" in quantizer.traits


def _moved(start: Any, moved: Any, gain: Array) -> Any:
    """Widths move by bits, steps and ranges by powers of 2, so that both move a width by about as much."""
    steps = {name: gain * getattr(moved, name) for name in start._fields}
    return type(start)(
        **{
            name: getattr(start, name) + step if name == "bits" else getattr(start, name) * 2.0**step
            for name, step in steps.items()
        }
    )
