"""What all searches share: the prices of widths, one training for all budgets, and the step back to the menus."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpy.typing import ArrayLike

from qresearch.allocation import Problem, check_budgets
from qresearch.allocation.problem import Key, generator
from qresearch.cost import Cost
from qresearch.errors import ConfigError, TrainingError
from qresearch.rules import Option
from qresearch.search.discrete import allocate_near
from qresearch.search.shares import Palette, Shares, palettes
from qresearch.search.subject import Learner, SearchSubject
from qresearch.sensitivities import Sensitivity, make_problem
from qresearch.training import Program, Trainer, Trial, make_trainer

GROWTH = 0.5  # the share of the training in which the penalty grows to its whole strength


class Aim(NamedTuple):
    """The traced part of a search. prices: of every layer [weight width, input width], as shares of the budget.
    strength: of the penalty for what exceeds it. prior: how often the learner's prior is added to the loss.
    """

    prices: tuple[Array, ...]
    strength: Array
    gain: Array
    prior: Array


def run_search(
    name: str,
    learner: Learner,
    key: Key,
    subject: SearchSubject,
    cost: str | Cost,
    budgets: ArrayLike,
    strength: float,
    travel: float,
    prior: float = 0.0,
) -> tuple[Float[np.ndarray, "budget layer 2"], dict[str, Any]]:
    """Trains ``learner`` once for every budget, all in one compiled step, and makes the outcomes discrete.

    name: of the search, with its static options. prior: with one, budgets are upper limits, which need not be used up.
    The others, and what is returned: see ``Search``.
    """
    problem, options = _problem(subject, cost)
    limits = check_budgets(problem, budgets)
    trainer, start = _trainer(name, learner, subject), learner.start(subject)
    aims = _aims(subject, cost, problem, limits[:, 0], strength, travel / trainer.steps_per_epoch, prior)
    seed = int(generator(key).integers(2**31 - 1))
    trials = [Trial(subject.variables, start, aim, subject.learning_rate, seed) for aim in aims]
    found, rows = palettes(subject.model), []
    bits = np.zeros((len(limits), len(found), 2), np.float32)
    for i, trained in enumerate(trainer.train(trials)):
        limit = limits[i]
        if trained.failure is not None:
            what = f"search '{name}', {problem.constraint_names[0]} budget {limit.item():g}"
            raise TrainingError(f"{what}: {trained.failure}")
        (variables, learned), gain = trained.last, aims[i].gain
        shares = learner.realise(learned, gain).shares
        table = _distances(learner, found, subject.model.menus, options, shares)
        kept = np.ones(len(found)) if learner.kept is None else learner.kept(learned, gain)
        priced = _without(problem, kept)
        allocation = allocate_near(table, priced, np.ravel(budgets)[i], spend=prior == 0)
        bits[i] = np.asarray(options)[allocation]
        rows.append(
            {
                "learned_bits": _mean_widths(found, shares),
                "shares": _dense(found, shares),
                "expected_cost": float(expected_cost(aims[i].prices, shares)),
                "cost": float(priced.total_cost(allocation).item() / max(limit.item(), 1)),
                "validation_score": trained.history[-1]["validation_score"] if trained.history else None,
            }
        )
        if learner.kept is not None:
            rows[-1]["kept"] = kept.tolist()
        if learner.handover is not None:
            qparams = learner.handover(learned, gain)
            rows[-1]["starts"] = None if qparams is None else (variables, qparams)
    info: dict[str, Any] = {field: [row[field] for row in rows] for field in rows[0]}
    initial = learner.realise(start, aims[0].gain).shares
    return bits, info | {"initial_bits": _mean_widths(found, initial), "epochs": len(trials) * subject.recipe.epochs}


def expected_cost(prices: Sequence[Array], shares: Sequence[tuple[Shares, Shares]]) -> Float[Array, ""]:
    """Σ_layer Σ_ij share_i price_ij share_j, over a weight's widths i and an input's j."""
    return sum(
        (
            weight.share @ price[weight.which][:, input.which] @ input.share
            for price, (weight, input) in zip(prices, shares)
        ),
        start=jnp.float32(0.0),
    )


def squared_distance(share: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """(width - Σ share width)²."""
    return (widths - share @ widths) ** 2


def _problem(subject: SearchSubject, cost: str | Cost) -> tuple[Problem, tuple[Option, ...]]:
    """The allocation problem of the menus, without losses, and its options."""
    menus = subject.model.menus
    options = tuple(sorted({option for menu in menus for option in menu}))
    loss = np.asarray([[0.0 if option in menu else np.inf for option in options] for menu in menus])
    return make_problem(
        subject.model, Sensitivity(loss, loss, options, 0.0), _named(cost), None, subject.groups
    ), options


def _without(problem: Problem, kept: Float[np.ndarray, "layer"]) -> Problem:
    """The problem with costs in proportion to the kept output channels of every layer; whole costs are rounded up."""
    if np.all(kept == 1):
        return problem
    costs = problem.costs * kept[:, None]
    whole = problem.costs.dtype.kind != "f"
    return replace(problem, costs=np.ceil(costs).astype(np.int64) if whole else costs)


def _named(cost: str | Cost) -> tuple[str] | dict[str, Cost]:
    return (cost,) if isinstance(cost, str) else {cost.unit: cost}


def _aims(
    subject: SearchSubject,
    cost: str | Cost,
    problem: Problem,
    limits: np.ndarray,
    strength: float,
    travel: float,
    prior: float,
) -> list[Aim]:
    """travel: per epoch."""
    rate = subject.learning_rate * subject.recipe.epochs
    gain = jnp.float32(travel / rate if rate else 0.0)
    prices = prices_of(subject, cost)
    # A budget of nothing, which pruning alone meets, must not be a division by zero.
    least = 1e-6 * np.where(problem.allowed, problem.costs[0], 0).max(axis=1).sum()
    divisors = np.maximum(limits, max(least, 1e-30))
    relative = [tuple(jnp.asarray(table / divisor, jnp.float32) for table in prices) for divisor in divisors]
    return [Aim(tables, jnp.float32(strength), gain, jnp.float32(prior)) for tables in relative]


def prices_of(subject: SearchSubject, cost: str | Cost) -> list[np.ndarray]:
    """The cost of every layer [weight width, input width], of pairs that its menu lacks too: they are corners."""
    pairs = [
        [(int(weight), int(input)) for weight, input in itertools.product(palette.weight, palette.input)]
        for palette in palettes(subject.model)
    ]
    options = tuple(sorted({pair for layer in pairs for pair in layer}))
    wanted = np.asarray([[0.0 if option in layer else np.inf for option in options] for layer in pairs])
    table = make_problem(subject.model, Sensitivity(wanted, wanted, options, 0.0), _named(cost)).costs[0]
    return [
        np.asarray([row[options.index(pair)] for pair in layer]).reshape(len(palette.weight), len(palette.input))
        for row, layer, palette in zip(table, pairs, palettes(subject.model))
    ]


def _trainer(name: str, learner: Learner, subject: SearchSubject) -> Trainer:
    """The compiled training of a search; one for all budgets, costs, seeds and float models."""
    key = (name, learner.model, subject.recipe, subject.data)
    if key not in subject.trainers:
        if subject.recipe.optimizer == "sgd":
            raise ConfigError(
                f"search '{name}': sgd moves widths and weights by their gradients, which are of different sizes; set"
                " the recipe's optimizer to adam or adamw"
            )
        x = (subject.x[: subject.recipe.batch_size], jax.random.key(0))
        twin = learner.model.twin(subject.train_fn, subject.variables, x)
        program = _program(learner, twin)
        trainer = make_trainer(program, subject.task, subject.recipe, subject.data, subject.validation)
        subject.trainers[key] = trainer if learner.trainer is None else learner.trainer(trainer, twin)
    return subject.trainers[key]


def _program(learner: Learner, twin: Any) -> Program:
    def train(variables: Any, learned: Any, aim: Aim, x: Any, key: Any) -> Any:
        dropout, stochastic = jax.random.split(key)
        real = learner.realise(learned, aim.gain)
        return twin.apply(variables, real.qparams, (x, dropout), real.bits, stochastic)

    def forward(shared: Any, own: Any, x: Any) -> Any:
        variables, learned, aim = own
        real = learner.realise(learned, aim.gain)
        return learner.model.apply(variables, real.qparams, x, real.bits)

    def penalty(learned: Any, aim: Aim, progress: Array) -> Array:
        excess = jax.nn.relu(expected_cost(aim.prices, learner.realise(learned, aim.gain).shares) - 1.0)
        total = aim.strength * jnp.minimum(progress / GROWTH, 1.0) * excess
        return total if learner.prior is None else total + aim.prior * learner.prior(learned, aim.gain)

    return Program(train, forward, learner.learnable, penalty)


def _distances(
    learner: Learner,
    found: Sequence[Palette],
    menus: Sequence[Sequence[Option]],
    options: Sequence[Option],
    shares: Sequence[tuple[Shares, Shares]],
) -> Float[np.ndarray, "layer option"]:
    """What the discrete step loses by every option of every layer; +inf where it is not on the menu."""
    table = np.full((len(found), len(options)), np.inf)
    for i, (palette, menu, pair) in enumerate(zip(found, menus, shares)):
        by_width = [
            dict(zip(widths, learner.distance(np.asarray(part.dense(len(widths)), np.float64), np.asarray(widths))))
            for (widths, _), part in zip(palette.operands, pair)
        ]
        for o, (weight, input) in enumerate(options):
            if (weight, input) in menu:
                table[i, o] = by_width[0][weight] + by_width[1][input]
    return table


def _dense(found: Sequence[Palette], shares: Sequence[tuple[Shares, Shares]]) -> list[list[dict[str, float]]]:
    """Per layer, of its weight and of its input: {width: share}."""
    return [
        [
            {f"{width:g}": float(share) for width, share in zip(widths, part.dense(len(widths)))}
            for (widths, _), part in zip(palette.operands, pair)
        ]
        for palette, pair in zip(found, shares)
    ]


def _mean_widths(found: Sequence[Palette], shares: Sequence[tuple[Shares, Shares]]) -> list[list[float]]:
    return [
        [float(part.dense(len(widths)) @ jnp.asarray(widths)) for (widths, _), part in zip(palette.operands, pair)]
        for palette, pair in zip(found, shares)
    ]
