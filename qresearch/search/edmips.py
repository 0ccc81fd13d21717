"""EdMIPS: every width of the menu has a probability, and one contraction runs on the expected operands."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpy.typing import ArrayLike

from qresearch.allocation.problem import Key
from qresearch.cost import Cost
from qresearch.search.mixture import menu_qparams, mixed_qparams, mixing_model
from qresearch.search.run import run_search
from qresearch.search.shares import Shares, palettes
from qresearch.search.subject import Learner, Realised, SearchSubject


def edmips(
    key: Key,
    subject: SearchSubject,
    cost: str | Cost,
    budgets: ArrayLike,
    *,
    strength: float = 1.0,
    travel: float = 16.0,
) -> tuple[Float[np.ndarray, "budget layer 2"], dict[str, Any]]:
    """Probabilities α of a weight's and β of an input's widths, trained by loss + penalty.

    penalty = strength · relu(E[cost] / budget - 1), which grows to its strength in the first half of the training.
    α and β are softmax(logits); a layer computes contract(Σ_i α_i Q(w; w_i), Σ_j β_j Q(x; a_j)) and is expected to
    cost Σ_ij α_i β_j cost(w_i, a_j).
    Cai and Vasconcelos, Rethinking Differentiable Search for Mixed-Precision Neural Networks, 2020,
    https://arxiv.org/abs/2004.05795.
    Where we differ: the penalty is one-sided and relative to a budget, where the authors weigh the cost and take what
    comes; Q is the model's own quantizer, where they take HWGQ; all trains on one set of examples with one optimizer;
    the discrete widths are the most probable ones (the largest Π α β) that use the budget up, found exactly, where they
    take the argmax of every layer. ``travel``: how far a logit could move in the whole training at full speed.
    """
    return run_search("edmips", learner(subject), key, subject, cost, budgets, strength, travel)


def learner(subject: SearchSubject) -> Learner:
    """One logit per operand and width; and the model's own qparams at every width of the menu."""
    own, model, found = subject.model, mixing_model(subject.model), palettes(subject.model)

    def begin(subject: SearchSubject) -> Any:
        logits = tuple(tuple(jnp.zeros(len(widths)) for widths, _ in palette.operands) for palette in found)
        return {"logits": logits, "own": menu_qparams(own, subject.variables, subject.x)}

    def learnable(learned: Any) -> Any:
        return {"logits": jax.tree.map(lambda _: True, learned["logits"]), "own": own.learnable(learned["own"])}

    def realise(learned: Any, gain: Array) -> Realised:
        def shares_of(logits: Array, allowed: tuple[bool, ...]) -> Shares:
            among = jnp.where(jnp.asarray(allowed), gain * logits, -jnp.inf)
            return Shares(jax.nn.softmax(among), jnp.arange(len(allowed)))

        shares = tuple(
            (shares_of(pair[0], palette.allowed[0]), shares_of(pair[1], palette.allowed[1]))
            for pair, palette in zip(learned["logits"], found)
        )
        bits = jnp.full((len(found), 2), 8.0)  # not read: every share has its own width
        return Realised(mixed_qparams(own, learned["own"], shares), bits, shares)

    return Learner(model, begin, learnable, realise, _surprise)


def _surprise(share: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """-log probability; the least is that of a float32's smallest normal, so that no width is ruled out."""
    return -np.log(np.maximum(share, np.finfo(np.float32).tiny))
