"""FracBits: widths are fractional while they are trained, and mix the two quantizers beside them."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpy.typing import ArrayLike

from qresearch.allocation.problem import Key
from qresearch.cost import Cost
from qresearch.search.mixture import menu_qparams, mixed_qparams, mixing_model
from qresearch.search.run import run_search, squared_distance
from qresearch.search.shares import confined, ends, interpolated, palettes, start_width
from qresearch.search.subject import Learner, Realised, SearchSubject


def fracbits(
    key: Key,
    subject: SearchSubject,
    cost: str | Cost,
    budgets: ArrayLike,
    *,
    strength: float = 1.0,
    travel: float = 16.0,
) -> tuple[Float[np.ndarray, "budget layer 2"], dict[str, Any]]:
    """Fractional widths λ, trained with the weights by loss + strength · relu(cost(λ) / budget - 1).

    The penalty grows to its strength in the first half of the training.
    x̂(λ) = (1 - s) Q(x; w_i) + s Q(x; w_i+1), s = (λ - w_i) / (w_i+1 - w_i), for the widths w_i <= λ <= w_i+1 of the
    menu, so ∂x̂/∂λ is their difference quotient; the cost is interpolated bilinearly over the four corner pairs of a
    weight's and an input's width.
    Yang and Jin, FracBits: Mixed Precision Quantization via Fractional Bit-Widths, 2021,
    https://arxiv.org/abs/2007.02017.
    Where we differ: Q is the model's own quantizer with a scale for every width, and neighbours are those of the menu,
    where the authors interpolate between all integers; the penalty is one-sided and relative to the budget, theirs is a
    distance; the discrete widths are the nearest ones (least squares) that use the budget up, found exactly, where they
    shift the threshold of rounding. ``travel``: bits that a width could move in the whole training at full speed.
    """
    return run_search("fracbits", learner(subject), key, subject, cost, budgets, strength, travel)


def learner(subject: SearchSubject) -> Learner:
    """One number per operand: its width; and the model's own qparams at every width of the menu."""
    own, model, found = subject.model, mixing_model(subject.model), palettes(subject.model)
    operands = [palette.operands for palette in found]
    start = jnp.asarray([[start_width(*one) for one in pair] for pair in operands])
    low, high = (jnp.asarray([[ends(*one)[i] for one in pair] for pair in operands]) for i in (0, 1))

    def begin(subject: SearchSubject) -> Any:
        return {"moved": jnp.zeros_like(start), "own": menu_qparams(own, subject.variables, subject.x)}

    def learnable(learned: Any) -> Any:
        return {"moved": True, "own": own.learnable(learned["own"])}

    def realise(learned: Any, gain: Array) -> Realised:
        bits = confined(start + gain * learned["moved"], low, high)
        shares = tuple(
            (interpolated(bits[i, 0], palette.weight), interpolated(bits[i, 1], palette.input))
            for i, palette in enumerate(found)
        )
        return Realised(mixed_qparams(own, learned["own"], shares), bits, shares)

    return Learner(model, begin, learnable, realise, squared_distance)
