"""Training: one compiled step for a float model or a quantized one, used for every trial of a population."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from qresearch.augmentation import AUGMENTATIONS
from qresearch.data.dataset import Dataset, Prepare, epoch_permutation
from qresearch.errors import ConfigError, did_you_mean
from qresearch.evaluation import Batches, default_chunk, evaluate
from qresearch.streaming import make_feed, wait
from qresearch.tasks import Task

OPTIMIZERS = ("adam", "adamw", "sgd")
SCHEDULES = ("cosine", "constant")
AUGMENT_STREAM = 2**31 - 1


@dataclass(frozen=True)
class Recipe:
    """The static part of a training run; the learning rate is traced and belongs to the trial.

    optimizer: adam, adamw or sgd (with momentum). weight_decay acts on params, not on qparams; for adam and sgd it is
    an L2 gradient, for adamw decoupled. schedule: cosine to 0 or constant, after a linear warm-up. clip_norm: of the
    global gradient. augment: a key of AUGMENTATIONS, applied to the training inputs.
    """

    epochs: int = 20
    batch_size: int = 64
    optimizer: str = "adam"
    momentum: float = 0.9
    weight_decay: float = 0.0
    schedule: str = "cosine"
    warmup_epochs: int = 0
    clip_norm: float | None = None
    augment: str = "none"


def no_penalty(qparams: Any, bits: Any, progress: Array) -> Array:
    """The penalty of a program that has none."""
    return jnp.float32(0.0)


class Program(NamedTuple):
    """What is trained. train(variables, qparams, bits, x, key) -> (outputs, new state); forward: see ``evaluate``, with
    own = (variables, qparams, bits). learnable(qparams) -> booleans like qparams. penalty(qparams, bits, progress) is
    added to the loss; progress: the share of all steps that are done, from 0."""

    train: Callable[..., tuple[Any, dict[str, Any]]]
    forward: Callable[..., Any]
    learnable: Callable[[Any], Any]
    penalty: Callable[[Any, Any, Array], Array] = no_penalty


class Trial(NamedTuple):
    """One member of a population: its start, its bits [layers, 2] (or other data that its program takes), its learning
    rate and its seed."""

    variables: dict[str, Any]
    qparams: Any
    bits: Any
    learning_rate: float
    seed: int


class State(NamedTuple):
    """What a step changes."""

    variables: dict[str, Any]
    qparams: Any
    optimizer: Any
    step: Array


class Trained(NamedTuple):
    """The outcome of one trial: variables and qparams of the last and of the best epoch (by validation score, then
    loss).

    history: one row per epoch (epoch, train_loss, validation_loss, validation_score). failure: None, or what stopped
    it.
    """

    last: tuple[dict[str, Any], Any]
    best: tuple[dict[str, Any], Any]
    best_epoch: int
    history: list[dict[str, float]]
    failure: str | None = None


@dataclass(frozen=True, eq=False)
class Trainer:
    """One compiled training step and one evaluation for all trials of a program. Build with ``make_trainer``."""

    program: Program
    task: Task
    recipe: Recipe
    data: Dataset
    validation: Batches
    step: Callable[..., tuple[State, Array]]
    steps_per_epoch: int
    start: Callable[[Any, Any], Any]

    def train(
        self,
        trials: Sequence[Trial],
        chunk: int | None = None,
        on_epoch: Callable[[int, dict[str, float]], None] | None = None,
    ) -> Iterator[Trained]:
        """Trains a population; yields every trial's outcome as soon as it is known, in order.

        ``chunk`` trials run in one program under vmap (1 on CPU, where one compiled step is used again for each). A
        loss that is not finite ends that trial only: its outcome says at which step.
        on_epoch(trial index, row of the history).
        """
        chunk = chunk or default_chunk()
        for first in range(0, len(trials), chunk):
            yield from self._train_chunk(trials[first : first + chunk], first, on_epoch)

    def _train_chunk(
        self, trials: Sequence[Trial], first: int, on_epoch: Callable[[int, dict[str, float]], None] | None
    ) -> list[Trained]:
        many = len(trials) > 1
        step = _vmapped(self.step) if many else self.step
        states = [self._initial(trial) for trial in trials]
        state = _stack(states) if many else states[0]
        settings = [(trial.bits, jnp.float32(trial.learning_rate), jax.random.key(trial.seed)) for trial in trials]
        setting = _stack(settings) if many else settings[0]
        feed = make_feed(self.data.train)
        outcomes = [Trained((t.variables, t.qparams), (t.variables, t.qparams), 0, []) for t in trials]
        for epoch in range(1, self.recipe.epochs + 1):
            order = np.stack([self._order(trial.seed, epoch) for trial in trials])
            losses: list[Array] = []
            for inputs, targets, indices in feed(order if many else order[0]):
                state, loss = step(state, setting, inputs, targets, indices)
                losses.append(loss)
                wait(losses)
            table = np.asarray(jnp.stack(losses)).reshape(self.steps_per_epoch, -1)
            members = [jax.tree.map(lambda leaf, i=i: leaf[i], state) for i in range(len(trials))] if many else [state]
            outcomes = [
                self._after_epoch(outcome, member, trial, table[:, i], epoch)
                for i, (outcome, member, trial) in enumerate(zip(outcomes, members, trials))
            ]
            for i, outcome in enumerate(outcomes):
                if on_epoch is not None and outcome.failure is None:
                    on_epoch(first + i, outcome.history[-1])
            if all(outcome.failure is not None for outcome in outcomes):
                break
        return outcomes

    def _initial(self, trial: Trial) -> State:
        trainable = _trainable(trial.variables, trial.qparams, self.program.learnable(trial.qparams))
        return State(trial.variables, trial.qparams, self.start(*trainable), jnp.int32(0))

    def _order(self, seed: int, epoch: int) -> np.ndarray:
        count = self.steps_per_epoch * self.recipe.batch_size
        order = epoch_permutation(seed, epoch, len(self.data.train))[:count]
        return order.reshape(self.steps_per_epoch, self.recipe.batch_size).astype(np.int32)

    def _after_epoch(self, outcome: Trained, state: State, trial: Trial, losses: np.ndarray, epoch: int) -> Trained:
        if outcome.failure is not None:
            return outcome
        bad = np.flatnonzero(~np.isfinite(losses))
        if bad.size:
            step = (epoch - 1) * self.steps_per_epoch + int(bad[0]) + 1
            return outcome._replace(failure=_not_finite(losses[bad[0]], step, epoch, trial.learning_rate))
        own = _stack([(state.variables, state.qparams, trial.bits)])
        scores = evaluate(self.program.forward, self.task, self.data.prepare, (), own, self.validation, chunk=1)
        row = {
            "epoch": epoch,
            "train_loss": float(losses.mean(dtype=np.float64)),
            "validation_loss": float(scores.loss.mean(dtype=np.float64)),
            "validation_score": self.task.reduce(scores.score[0]),
        }
        if not np.isfinite(row["validation_loss"]):  # the last update of the epoch, which no training loss has seen
            step, loss = epoch * self.steps_per_epoch, row["validation_loss"]
            return outcome._replace(failure=_not_finite(loss, step, epoch, trial.learning_rate))
        last = (state.variables, state.qparams)
        better = not outcome.history or self._rank(row) > self._rank(outcome.history[outcome.best_epoch - 1])
        best, best_epoch = (last, epoch) if better else (outcome.best, outcome.best_epoch)
        return Trained(last, best, best_epoch, [*outcome.history, row])

    def _rank(self, row: dict[str, float]) -> tuple[float, float]:
        return self.task.sign * row["validation_score"], -row["validation_loss"]


def make_trainer(program: Program, task: Task, recipe: Recipe, data: Dataset, validation: Batches) -> Trainer:
    """The compiled step of a program for a recipe. Trials may differ in start, bits, learning rate and seed: no
    recompile. ConfigError for a recipe that cannot be run, see ``check_recipe``.
    """
    check_recipe(recipe, data)
    steps = len(data.train) // recipe.batch_size
    transform = make_transform(recipe)
    step = jax.jit(_step_function(program, task, data.prepare, recipe, transform, steps))
    return Trainer(program, task, recipe, data, validation, step, steps, lambda *trainable: transform.init(trainable))


def check_recipe(recipe: Recipe, data: Dataset, section: str = "recipe") -> None:
    """ConfigError where a recipe cannot be run on a data set. ``section``: where the user gave it, for the message."""
    examples, longest = len(data.train), max(recipe.epochs, 1) - 1
    if recipe.batch_size > examples:
        raise ConfigError(
            f"{section}.batch_size {recipe.batch_size} exceeds the {examples} training examples of {data.name};"
            " lower it"
        )
    if recipe.warmup_epochs > longest:
        raise ConfigError(
            f"{section}.warmup_epochs {recipe.warmup_epochs} leaves nothing of {recipe.epochs} epochs; give at most"
            f" {longest}"
        )
    for key, known in (("optimizer", OPTIMIZERS), ("schedule", SCHEDULES), ("augment", tuple(AUGMENTATIONS))):
        given = getattr(recipe, key)
        if given not in known:
            raise ConfigError(f"{section}.{key}: unknown name '{given}'{did_you_mean(given, known)}")
    # Boxes would stay where they were, and text has no pixels.
    if recipe.augment != "none" and (len(data.example_shape) != 3 or data.train.targets.ndim != 1):
        raise ConfigError(
            f"{section}.augment '{recipe.augment}' is for images with one class each, not {data.name}; set it to none"
        )


def _step_function(
    program: Program, task: Task, prepare: Prepare, recipe: Recipe, transform: Any, steps: int
) -> Callable[..., tuple[State, Array]]:
    schedule, augment = make_schedule(recipe, steps), AUGMENTATIONS[recipe.augment]
    total = max(recipe.epochs * steps, 1)

    def step(state: State, setting: Any, inputs: Array, targets: Array, indices: Array) -> tuple[State, Array]:
        bits, learning_rate, key = setting
        # A stream of its own, from a number that no step reaches: the program's noise is the same with and without.
        crops = jax.random.fold_in(jax.random.fold_in(key, AUGMENT_STREAM), state.step)
        x, y = prepare(augment(inputs[indices], crops)), targets[indices]
        learnable = program.learnable(state.qparams)

        def loss_of(trainable: tuple[Any, Any]) -> tuple[Array, dict[str, Any]]:
            variables, qparams = merge(state, trainable)
            outputs, new = program.train(variables, qparams, bits, x, jax.random.fold_in(key, state.step))
            return jnp.mean(task.loss(outputs, y)) + program.penalty(qparams, bits, state.step / total), new

        trainable = _trainable(state.variables, state.qparams, learnable)
        (loss, new), gradient = jax.value_and_grad(loss_of, has_aux=True)(trainable)
        updates, optimizer = transform.update(gradient, state.optimizer, trainable)
        rate = -learning_rate * schedule(state.step)
        trainable = optax.apply_updates(trainable, jax.tree.map(lambda u: (rate * u).astype(u.dtype), updates))
        variables, qparams = merge(state, trainable)
        return State({**variables, **new}, qparams, optimizer, state.step + 1), loss

    return step


def _trainable(variables: dict[str, Any], qparams: Any, learnable: Any) -> tuple[Any, Any]:
    """(params, learnable leaves of qparams), None in place of the leaves that stay."""
    return variables["params"], jax.tree.map(lambda learn, leaf: leaf if learn else None, learnable, qparams)


def merge(state: State, trainable: tuple[Any, Any]) -> tuple[dict[str, Any], Any]:
    """(variables, qparams) of a state with these trainable values in them."""
    params, learned = trainable
    still = functools.partial(jax.tree.map, is_leaf=lambda leaf: leaf is None)
    qparams = still(lambda new, old: old if new is None else new, learned, state.qparams)
    return {**state.variables, "params": params}, qparams


def make_transform(recipe: Recipe) -> optax.GradientTransformation:
    """The optimizer without its learning rate, so that the rate can be traced."""
    decay = optax.masked(optax.add_decayed_weights(recipe.weight_decay), (True, False))
    clip = [optax.clip_by_global_norm(recipe.clip_norm)] if recipe.clip_norm else []
    if recipe.optimizer == "adamw":
        return optax.chain(*clip, optax.scale_by_adam(), decay)
    core = {"adam": optax.scale_by_adam, "sgd": functools.partial(optax.trace, decay=recipe.momentum)}
    return optax.chain(*clip, *([decay] if recipe.weight_decay else []), core[recipe.optimizer]())


def make_schedule(recipe: Recipe, steps: int) -> Callable[[Array], Array]:
    """The factor on the learning rate at a step."""
    warmup, total = recipe.warmup_epochs * steps, max(recipe.epochs * steps, 1)
    if recipe.schedule == "cosine":
        return optax.warmup_cosine_decay_schedule(0.0 if warmup else 1.0, 1.0, warmup, total)
    return optax.join_schedules([optax.linear_schedule(0.0, 1.0, max(warmup, 1)), lambda _: 1.0], [warmup])


def _not_finite(loss: float, step: int, epoch: int, learning_rate: float) -> str:
    return f"the loss became {loss} at step {step} (epoch {epoch}); lower the learning rate (now {learning_rate:g})"


def _stack(trees: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack([jnp.asarray(leaf) for leaf in leaves]), *trees)


@functools.lru_cache(maxsize=16)
def _vmapped(step: Callable[..., Any]) -> Callable[..., Any]:
    return jax.jit(jax.vmap(step, in_axes=(0, 0, None, None, 0)))
