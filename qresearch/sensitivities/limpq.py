"""LIMPQ: the step size that a quantizer learns says how much a layer needs its bits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from qresearch.calibration import MenuQParams, calibrate, select
from qresearch.errors import ConfigError, DataError
from qresearch.graph.handlers import record
from qresearch.population import evaluate_population
from qresearch.qmodel import QuantizedModel, quantize_model
from qresearch.rules import SiteRule
from qresearch.sensitivities.perturbation import OPERANDS, rebatched, table_of_operands, widths_of
from qresearch.sensitivities.subject import FLOAT, Sensitivity, Subject
from qresearch.units import Unit


class Learned(NamedTuple):
    """The steps of all widths of all sites, leaves [width, ...]; and the kernels, by the layer's name."""

    qparams: Any
    kernels: dict[str, Any]


class Recipe(NamedTuple):
    """How steps and kernels are trained; see ``limpq``."""

    steps: int
    batch: int
    learning_rate: float
    kernel_learning_rate: float
    seed: int


def limpq(
    subject: Subject,
    weight_factor: float = 2.0,
    steps: int = 100,
    batch: int = 32,
    learning_rate: float = 0.02,
    kernel_learning_rate: float = 1e-3,
    seed: int = 0,
) -> Sensitivity:
    """s_input(b_input) + α s_weight(b_weight), with s the learned step sizes of LSQ: one for every width of every site.

    α is ``weight_factor``. The steps of all widths are trained at once, and one set of kernels with them: a training
    step adds up the gradients of the mean loss of each width everywhere (or the next one that a layer's menu has) and
    of one random allocation, on a batch of the subject's own examples, by one program whose widths are traced. What
    stays large is what the loss does not let shrink. A sensitivity without a unit: a sum of steps is no loss, and α
    decides much (mean top-1 of a rounded ResNet-20 over five budgets: 77.1 with 2, 90.6 with 4), so that it is rather
    for networks that are trained after the search. The standard error is not known, and NaN. Operands at 32 bits cost
    nothing; at 0 bits they have the one step that spans the grid of their narrowest width.
    Tang et al., Mixed-Precision Neural Network Quantization via Learned Layer-wise Importance, 2022,
    https://arxiv.org/abs/2203.08368; α = 2, and what one training step adds up, are those of the authors' code,
    https://github.com/1hunters/LIMPQ. Where we differ: BatchNorm and biases stay as they are; Adam on a cosine, at
    ``learning_rate`` times each initial step and at ``kernel_learning_rate`` (0 keeps the kernels), where the code has
    epochs of SGD, clipped gradients and label smoothing; initial steps of least squared error; a step smaller than that
    of the next wider width is kept (the code forbids the width).
    """
    float_loss = _float_loss(subject)
    x, _ = next(rebatched(subject, batch))
    prepared = subject.prepare(x)
    model = lsq_twin(subject.model, subject.params, prepared)
    widths = [int(width) for width in widths_of(subject) if 0 < width < FLOAT]
    menu = calibrate(model, subject.params, prepared, widths)
    start = Learned(menu.qparams, _kernels(subject, model, prepared))
    recipe = Recipe(steps, batch, learning_rate, kernel_learning_rate, seed)
    learned = menu._replace(qparams=_train(subject, model, menu, start, recipe).qparams)
    weight, input = [
        np.array([[importance(learned, unit, operand, width) for width in widths_of(subject)] for unit in model.units])
        for operand in OPERANDS
    ]
    return table_of_operands(subject, weight_factor * weight[None], input[None], float_loss)


def lsq_twin(model: QuantizedModel, params: Any, x: Any) -> QuantizedModel:
    """The same layers with one LSQ step for every operand that has a quantizer."""

    def site(rule: SiteRule | None) -> SiteRule | None:
        return rule and SiteRule("lsq", signed=rule.signed, narrow=rule.narrow, range="mse")

    rules = [replace(rule, weight=site(rule.weight), input=site(rule.input)) for rule in model.rules]
    return quantize_model(model.fn, params, x, rules)


def importance(menu: MenuQParams, unit: Unit, operand: str, width: float) -> float:
    """The step size of an operand at a width; see ``limpq`` for 0 and 32 bits."""
    site = menu.qparams[unit.layer.name][operand]
    if site is None or width >= FLOAT:
        return 0.0
    found = np.abs(np.asarray(site.scale, np.float64)).reshape(len(menu.widths))
    widths = np.asarray(menu.widths)
    return float(found[0] * 2.0 ** widths[0] if width <= 0 else found[np.argmin(np.abs(widths - width))])


def _kernels(subject: Subject, model: QuantizedModel, x: Any) -> dict[str, Array]:
    """The kernels that are quantized, as their contractions see them; not those that are data."""

    @jax.jit
    def recorded(params: Any, x: Any) -> dict[str, Any]:
        return model.graph(params, x).run(record, params, x)[1]

    found = recorded(subject.params, x)
    units = [unit for unit in model.units if unit.weight is not None and not unit.layer.contraction.product]
    return {unit.layer.name: found[unit.uses[0].name]["weight"][0] for unit in units}


def _train(subject: Subject, model: QuantizedModel, menu: MenuQParams, learned: Learned, recipe: Recipe) -> Learned:
    """What a recipe makes of a start."""
    random, uniform = np.random.default_rng(recipe.seed), _uniform(subject)
    x, y = next(rebatched(subject, subject.batches.examples))
    rates = Learned(
        jax.tree.map(lambda step: recipe.learning_rate * step, learned.qparams),
        jax.tree.map(lambda _: jnp.float32(recipe.kernel_learning_rate), learned.kernels),
    )
    cosine = optax.cosine_decay_schedule(-1.0, recipe.steps)
    transform = optax.chain(optax.scale_by_adam(), optax.scale_by_schedule(cosine))
    slope, move, state = _slope(subject, model), _move(transform), transform.init(learned)
    for number in range(recipe.steps):
        index = random.permutation(len(x))[: recipe.batch]
        # One call for each: a loop inside the program would be 35 times slower on CPU, where XLA runs the convolutions
        # of a loop's body on its slow path.
        allocations = [*uniform, _random(subject, random)]
        found = [slope(learned, menu, subject.params, x[index], y[index], bits) for bits in allocations]
        loss = sum(float(each) for each, _ in found)
        learned, state = move(learned, state, rates, [gradient for _, gradient in found])
        if not np.isfinite(loss):
            raise ConfigError(
                f"sensitivity: limpq's loss became {loss} at step {number}; lower its options learning_rate and"
                " kernel_learning_rate"
            )
        subject.progress(number + 1, recipe.steps)
    return learned


def _slope(subject: Subject, model: QuantizedModel) -> Callable[..., tuple[Array, Learned]]:
    """(learned, menu, params, x, y, bits [layer, 2]) -> the mean loss and its gradient in all that is learned."""

    @jax.jit
    def step(
        learned: Learned, menu: MenuQParams, params: Any, x: Array, y: Array, bits: Float[Array, "layer 2"]
    ) -> tuple[Array, Learned]:
        def loss(learned: Learned) -> Array:
            qparams = select(menu._replace(qparams=learned.qparams), bits)
            for name, kernel in learned.kernels.items():
                qparams[name] = {**qparams[name], "kernel": kernel}
            return jnp.mean(subject.task.loss(model.apply(params, qparams, subject.prepare(x), bits), y))

        return jax.value_and_grad(loss)(learned)

    return step


def _move(transform: optax.GradientTransformation) -> Callable[..., tuple[Learned, Any]]:
    """(learned, state, rates, gradients of several allocations) -> the next learned and state."""

    @jax.jit
    def move(learned: Learned, state: Any, rates: Learned, gradients: list[Learned]) -> tuple[Learned, Any]:
        updates, state = transform.update(jax.tree.map(lambda *leaves: sum(leaves), *gradients), state)
        moved = jax.tree.map(
            lambda leaf, rate, change: leaf + (rate * change).astype(leaf.dtype), learned, rates, updates
        )
        return moved, state

    return move


def _own_widths(subject: Subject, row: int, operand: int) -> list[int]:
    """The widths that a layer's menu has for an operand, without 0: behind a pruned layer nothing is learned."""
    widths = {option[operand] for option in subject.model.menus[row]}
    return sorted(widths - {0}) or [0]


def _uniform(subject: Subject) -> Float[np.ndarray, "width layer 2"]:
    """Every width in all layers; where a menu lacks it, the next wider one that it has, or its widest."""

    def own(row: int, operand: int, width: float) -> int:
        widths = _own_widths(subject, row, operand)
        return next((other for other in widths if other >= width), widths[-1])

    rows = range(len(subject.model.layers))
    wanted = [width for width in widths_of(subject) if 0 < width < FLOAT]
    return np.array([[[own(row, i, width) for i in (0, 1)] for row in rows] for width in wanted], np.float32)


def _random(subject: Subject, random: np.random.Generator) -> Float[np.ndarray, "layer 2"]:
    """A random option of its menu for every layer, 0 bits replaced by the narrowest width."""
    drawn = [menu[random.integers(len(menu))] for menu in subject.model.menus]
    bits = [[width or _own_widths(subject, row, i)[0] for i, width in enumerate(own)] for row, own in enumerate(drawn)]
    return np.array(bits, np.float32)


def _float_loss(subject: Subject) -> float:
    """The float model's mean loss. DataError where it is not finite."""
    model, params, qparams, batches, task, prepare, chunk, _ = subject
    in_float = np.full((1, len(model.layers), 2), FLOAT, np.float32)
    found = evaluate_population(model, params, qparams, in_float, batches, task, prepare, chunk).loss.mean()
    if not np.isfinite(found):
        raise DataError("the float model's loss is not finite on these examples, so nothing can be learned from them")
    return float(found)
