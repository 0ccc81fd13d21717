"""What is searched, and the contract between a search and the training that all searches share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
from jaxtyping import Array, Float
from numpy.typing import ArrayLike

from qresearch.allocation.problem import Key
from qresearch.cost import Cost
from qresearch.data.dataset import Dataset
from qresearch.evaluation import Batches
from qresearch.graph.trace import Function
from qresearch.qmodel import Params, QuantizedModel
from qresearch.search.shares import Shares
from qresearch.tasks import Task
from qresearch.training import Recipe, Trainer


@dataclass(frozen=True, eq=False)
class SearchSubject:
    """A quantized model and what it is trained with during a search.

    train_fn: the float model in training mode, ``train_fn(variables, (x, key)) -> (outputs, new state)`` (see
    ``QuantizedModel.twin`` and ``Model.apply_train``). variables: of the trained float model, where a search starts.
    x: a calibration batch. validation: scored after every epoch; nothing is chosen by it. recipe, learning_rate: of the
    weights during the search, with adam or adamw. trainers: where compiled steps are kept. Give the same dict to
    subjects that differ in variables only, so that they share them. groups: layers, by index, that must take the same
    option (they are trained apart, and tied when widths are made discrete).
    """

    model: QuantizedModel
    train_fn: Function
    variables: Params
    x: Any
    data: Dataset
    validation: Batches
    task: Task
    recipe: Recipe
    learning_rate: float
    trainers: dict[Any, Trainer] = field(default_factory=dict, repr=False)
    groups: tuple[tuple[int, ...], ...] = ()


class Search(Protocol):
    """``search(key, subject, cost, budgets) -> (bits, info)``: learned widths, made discrete.

    key: an int seed or a JAX PRNG key; the answer depends on nothing else that is not an argument. cost: a key of
    ``COSTS``, or a cost. It must have a price for all pairs of a layer's weight and input widths, those that its menu
    lacks included. budgets: [budget], in the unit of its table, as allocators take them (``budget_of`` converts).
    bits: float32 [budget, layer, 2], every layer's on its menu, every total within its budget, and no more than 1 %
    below it where the menus allow that. All budgets are trials of one compiled step; none changes another's answer.

    info: plain diagnostics, with one entry per budget: learned_bits [layer][2], shares [layer][2] {width: share, or the
    probability where the search has one}, expected_cost (of the learned widths)
    and cost (of bits) as shares of the budget, and validation_score (of the model with learned widths); and
    initial_bits [layer][2] and epochs, of all budgets together. A search that prunes channels adds kept [layer], the
    share that stays: budgets and costs then count those only. One that can be gone on from adds starts: the variables
    and the qparams of ``subject.model``, or None.
    Raises ``BudgetError`` for a budget that no allocation meets, with the smallest that could be met, before anything
    is trained; ``TrainingError`` where the loss stops being finite; ``ConfigError`` for an unfit recipe or option.
    """

    def __call__(
        self, key: Key, subject: SearchSubject, cost: str | Cost, budgets: ArrayLike
    ) -> tuple[Float[np.ndarray, "budget layer 2"], dict[str, Any]]: ...


class Realised(NamedTuple):
    """What learned values stand for: the qparams and bits that the model is run with, and of every layer the
    (weight, input) shares of the widths that it may take, which its cost and its discrete bits follow from.
    """

    qparams: Any
    bits: Array
    shares: tuple[tuple[Shares, Shares], ...]


class Learner(NamedTuple):
    """What is particular to a search. ``learned`` is a pytree that the trainer updates where ``learnable`` says so.

    model: runs with the search's quantizers. start(subject) -> learned. learnable(learned) -> booleans like it.
    realise(learned, gain) -> ``Realised``; gain: what a learned width is to be multiplied by, so that one learning rate
    serves it and the weights (``travel`` of the searches). distance(shares, widths) -> [width]: what the discrete step
    loses where it gives an operand each of these widths.

    prior(learned, gain): added to the loss as often as the search's ``prior`` says. kept(learned, gain) -> [layer]: the
    share of output channels that stay, where it prunes any; shares of widths then add up to less than 1. handover(
    learned, gain): the qparams of the subject's own model to go on from, or None. trainer(trainer, twin): a trainer
    with a step of its own.
    """

    model: QuantizedModel
    start: Callable[[SearchSubject], Any]
    learnable: Callable[[Any], Any]
    realise: Callable[[Any, Array], Realised]
    distance: Callable[[np.ndarray, np.ndarray], np.ndarray]
    prior: Callable[[Any, Array], Array] | None = None
    kept: Callable[[Any, Array], np.ndarray] | None = None
    handover: Callable[[Any, Array], Any] | None = None
    trainer: Callable[[Trainer, QuantizedModel], Trainer] | None = None
