"""What a training is made of, and its compiled step: the loss of a batch, its gradient, the optimizer, the schedule."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from qresearch.augmentation import AUGMENTATIONS
from qresearch.data.dataset import Prepare
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


class State(NamedTuple):
    """What a step changes."""

    variables: dict[str, Any]
    qparams: Any
    optimizer: Any
    step: Array


class Trial(NamedTuple):
    """One member of a population: its start, its bits [layers, 2] (or other data that its program takes), its learning
    rate and its seed."""

    variables: dict[str, Any]
    qparams: Any
    bits: Any
    learning_rate: float
    seed: int


class Trained(NamedTuple):
    """The outcome of one trial: variables and qparams of the last and of the best epoch (by validation score, then
    loss).

    history: one row per epoch (epoch, train_loss, validation_loss, validation_score). failure: None, or what stopped
    it. finished: whether no epoch is left to train.
    """

    last: tuple[dict[str, Any], Any]
    best: tuple[dict[str, Any], Any]
    best_epoch: int
    history: list[dict[str, float]]
    failure: str | None = None
    finished: bool = True


def make_step(
    program: Program, task: Task, prepare: Prepare, recipe: Recipe, transform: Any, steps: int
) -> Callable[..., tuple[State, Array]]:
    """step(state, setting, inputs, targets, indices) -> (state, loss): one update on the examples ``indices`` of inputs
    and targets. setting: (bits, learning rate, key) of the trial. transform: see ``make_transform``. steps: of one
    epoch.
    """
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

        trainable = trainable_of(state.variables, state.qparams, learnable)
        (loss, new), gradient = jax.value_and_grad(loss_of, has_aux=True)(trainable)
        updates, optimizer = transform.update(gradient, state.optimizer, trainable)
        rate = -learning_rate * schedule(state.step)
        trainable = optax.apply_updates(trainable, jax.tree.map(lambda u: (rate * u).astype(u.dtype), updates))
        variables, qparams = merge(state, trainable)
        return State({**variables, **new}, qparams, optimizer, state.step + 1), loss

    return step


def trainable_of(variables: dict[str, Any], qparams: Any, learnable: Any) -> tuple[Any, Any]:
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
