"""Training: one compiled step for a float model or a quantized one, used for every trial of a population."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from qresearch.augmentation import AUGMENTATIONS
from qresearch.data.dataset import Dataset, epoch_permutation
from qresearch.devices import MEMBER, agreed, group_sizes, is_first, make_mesh, place, spread, to_host
from qresearch.errors import ConfigError, did_you_mean
from qresearch.evaluation import Batches, default_chunk, evaluate
from qresearch.keeper import Keeper, Point, Writer
from qresearch.streaming import make_feed, wait
from qresearch.tasks import Task
from qresearch.training_step import (
    OPTIMIZERS,
    SCHEDULES,
    Program,
    Recipe,
    State,
    Trained,
    Trial,
    make_step,
    make_transform,
    trainable_of,
)


class _Member(NamedTuple):
    """A trial in its population, and where its training stands."""

    place: int
    trial: Trial
    keeper: Keeper | None
    point: Point


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
        keepers: Sequence[Keeper | None] = (),
        until: int | None = None,
    ) -> Iterator[Trained]:
        """Trains a population; yields every trial's outcome as soon as it is known, in order.

        ``chunk`` trials run in one program under vmap (1 on CPU, where one compiled step is used again for each). Where
        there are several devices, each has ``chunk`` trials of its own; what is left, fewer trials than devices, is
        trained with every batch split over the devices, see ``make_mesh``. A loss that is not finite ends that trial
        only: its outcome says at which step.
        on_epoch(trial index, row of the history): of the epochs that are trained now.

        keepers: one for each trial, or none. A trial goes on from its newest checkpoint, to the same bits as if it had
        never stopped; those of one chunk that stand at different steps are not run in one program. What is left of the
        checkpoints is the caller's: ``Keeper.remove``.
        until: stop after this epoch of the recipe, with a checkpoint there; outcomes are not ``finished`` then, and a
        later call goes on. A trial whose checkpoint is past it is not trained: its outcome is what is there.
        """
        chunk, last = chunk or default_chunk(), min(until or self.recipe.epochs, self.recipe.epochs)
        kept = keepers or [None] * len(trials)
        together = chunk * jax.device_count()
        with Writer() as writer:
            for first in range(0, len(trials), together):
                groups: dict[int, list[_Member]] = {}
                for i in range(first, min(first + together, len(trials))):
                    member = _Member(i, trials[i], kept[i], self._begin(trials[i], kept[i]))
                    groups.setdefault(member.point.step, []).append(member)
                outcomes, told = dict[int, Trained](), first
                for members in (part for group in groups.values() for part in _parts(group, chunk)):
                    found = self._train_together(members, last, writer, on_epoch)
                    outcomes |= {member.place: outcome for member, outcome in zip(members, found)}
                    writer.wait()  # before the caller may remove what is written
                    while told in outcomes:
                        yield outcomes.pop(told)
                        told += 1

    def _train_together(
        self,
        members: Sequence[_Member],
        last: int,
        writer: Writer,
        on_epoch: Callable[[int, dict[str, float]], None] | None,
    ) -> list[Trained]:
        """The outcomes of members that stand at the same step, in one program, after the epoch ``last``."""
        count, done = len(members), members[0].point.step
        mesh = make_mesh(count, self.recipe.batch_size)
        step = _compiled(self.step, count, mesh)
        state, setting = (
            place(_joined(parts), mesh, *([MEMBER] if count > 1 else []))
            for parts in ([member.point.state for member in members], [_setting(member.trial) for member in members])
        )
        outcomes = [member.point.outcome for member in members]
        so_far = np.stack([member.point.losses[: done % self.steps_per_epoch] for member in members], axis=1)
        losses: list[Any] = list(so_far if count > 1 else so_far[:, 0])
        feed = make_feed(self.data.train, mesh)
        for epoch in range(done // self.steps_per_epoch + 1, last + 1):
            if all(outcome.failure is not None for outcome in outcomes):
                break
            order = np.stack([self._order(member.trial.seed, epoch)[len(losses) :] for member in members])
            for inputs, targets, indices in feed(order if count > 1 else order[0]):
                state, loss = step(state, setting, inputs, targets, indices)
                losses.append(loss)
                wait(losses)
                done += 1
                if done % self.steps_per_epoch:  # after the last step, the epoch's evaluation comes first
                    self._keep(writer, members, done, state, outcomes, losses)
            table, states = self._table(losses, count), _parted(state if mesh is None else to_host(state), count)
            outcomes = [
                self._after_epoch(outcome, part, member.trial, table[:, i], epoch)
                for i, (outcome, part, member) in enumerate(zip(outcomes, states, members))
            ]
            losses = []
            for member, outcome in zip(members, outcomes):
                if on_epoch is not None and outcome.failure is None:
                    on_epoch(member.place, outcome.history[-1])
            self._keep(writer, members, done, state, outcomes, losses, always=epoch == last < self.recipe.epochs)
        return [
            outcome._replace(finished=outcome.failure is not None or len(outcome.history) == self.recipe.epochs)
            for outcome in outcomes
        ]

    def _keep(
        self,
        writer: Writer,
        members: Sequence[_Member],
        done: int,
        state: State,
        outcomes: Sequence[Trained],
        losses: Sequence[Any],
        always: bool = False,
    ) -> None:
        """Has the checkpoints written that belong after this step."""
        due = [i for i, (*_, keeper, _) in enumerate(members) if keeper is not None and (always or keeper.due(done))]
        if due:
            states, table = _parted(to_host(state), len(members)), self._table(losses, len(members))
            points = {i: Point(states[i], outcomes[i], table[:, i]) for i in due}
            if is_first():
                writer.submit([(keeper, points[i]) for i in due if (keeper := members[i].keeper) is not None])

    def _table(self, losses: Sequence[Any], members: int) -> np.ndarray:
        """The losses of an epoch [step, member], 0 for the steps to come."""
        table = np.zeros((self.steps_per_epoch, members), np.float32)
        if losses:  # not stacked on the device: every number of losses would be a program of its own
            table[: len(losses)] = np.stack(jax.device_get(losses)).reshape(len(losses), members)
        return table

    def _begin(self, trial: Trial, keeper: Keeper | None) -> Point:
        """Where the training of a trial goes on, or begins."""
        same = (trial.variables, trial.qparams)
        start = Point(self._initial(trial), Trained(same, same, 0, []), self._table([], 1)[:, 0])
        if keeper is None:
            return start
        point = keeper.newest(start) or start
        agreed(point.step, f"checkpoints in {keeper.folder}")
        return point

    def _initial(self, trial: Trial) -> State:
        trainable = trainable_of(trial.variables, trial.qparams, self.program.learnable(trial.qparams))
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
            return outcome._replace(failure=_not_finite(losses[bad[0]], step, epoch, trial, updated=step > 1))
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
            return outcome._replace(failure=_not_finite(loss, step, epoch, trial))
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
    step = jax.jit(make_step(program, task, data.prepare, recipe, transform, steps))
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


def _not_finite(loss: float, step: int, epoch: int, trial: Trial, updated: bool = True) -> str:
    said = f"the loss became {loss} at step {step} (epoch {epoch})"
    if not updated:
        whose = "the quantized model's" if jax.tree.leaves(trial.qparams) else "the model's"
        return f"{said}, before any update: {whose} own loss, not the learning rate"
    return f"{said}; lower the learning rate (now {trial.learning_rate:g})"


def _setting(trial: Trial) -> tuple[Any, Array, Array]:
    return trial.bits, jnp.float32(trial.learning_rate), jax.random.key(trial.seed)


def _joined(trees: Sequence[Any]) -> Any:
    """One tree as it is, several with a leading axis."""
    return _stack(trees) if len(trees) > 1 else trees[0]


def _parted(tree: Any, count: int) -> list[Any]:
    """What ``_joined`` joined."""
    return [tree] if count == 1 else [jax.tree.map(lambda leaf, i=i: leaf[i], tree) for i in range(count)]


def _stack(trees: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack([jnp.asarray(leaf) for leaf in leaves]), *trees)


@functools.lru_cache(maxsize=16)
def _compiled(step: Callable[..., Any], count: int, mesh: Mesh | None) -> Callable[..., Any]:
    """The step of ``count`` members on a mesh."""
    many = count > (1 if mesh is None else mesh.shape[MEMBER])
    if mesh is None and not many:
        return step
    return spread(step, mesh, (True, True, False, False, True), many, (MEMBER, None))


def _parts(members: Sequence[_Member], chunk: int) -> Iterator[Sequence[_Member]]:
    """Members that run in one program each."""
    start = 0
    for size in group_sizes(len(members), chunk):
        yield members[start : start + size]
        start += size
