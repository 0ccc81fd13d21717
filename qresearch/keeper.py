"""Checkpoints inside a training: what they hold, where a trial keeps them, and the thread that writes them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from qresearch.checkpoint import load_checkpoint, load_facts, save_checkpoint
from qresearch.devices import is_first
from qresearch.errors import DataError
from qresearch.training_step import State, Trained

UNFINISHED = "unfinished"


class Point(NamedTuple):
    """Where a training stands: all that it needs to go on as if it had never stopped, to the last bit.

    outcome: at the end of the last whole epoch. losses: of the steps of the epoch so far, 0 for those to come.
    """

    state: State
    outcome: Trained
    losses: Float[np.ndarray, "step"]

    @property
    def step(self) -> int:
        """The number of steps done."""
        return int(self.state.step)


@dataclass
class Keeper:
    """The checkpoints of one trial: folders ``step-000001000`` in ``folder``, of which the last ``keep`` are kept.

    every: one after so many steps; None: only where a training is told to stop. report: takes one line where one is
    used (unless it is ``quiet``), left out because it is damaged, or cannot be written.
    """

    folder: Path
    every: int | None
    keep: int
    report: Callable[[str], None]
    quiet: bool = False

    def due(self, step: int) -> bool:
        """Whether a checkpoint belongs after this step."""
        return self.every is not None and step % self.every == 0

    def newest(self, template: Point) -> Point | None:
        """The newest point that is whole, of the shapes of ``template``; None where there is none."""
        for path in reversed(self._paths()):
            try:
                tree = load_checkpoint(path, _tree(template))
                facts = load_facts(path)
            except DataError as error:
                self.report(f"checkpoint left out: {error}")
                continue
            if not self.quiet:
                self.report(f"training continues from {path}")
            state = jax.tree.map(jnp.asarray, tree["state"])
            return Point(state, Trained(tree["last"], tree["best"], **facts), tree["losses"])
        return None

    def write(self, point: Point) -> None:
        """Writes a point beside the checkpoints, where ``commit`` takes it from. DataError if that cannot be done."""
        self.discard()
        outcome = point.outcome
        facts = {"best_epoch": outcome.best_epoch, "history": outcome.history, "failure": outcome.failure}
        save_checkpoint(self.folder / UNFINISHED, _tree(point), facts)

    def commit(self, step: int) -> None:
        """Makes what was written the checkpoint of this step, then removes old ones, and later ones: the training,
        which has not come that far, could not use them.
        """
        path = self.folder / f"step-{step:09d}"
        shutil.rmtree(path, ignore_errors=True)
        (self.folder / UNFINISHED).rename(path)
        paths = self._paths()
        here = paths.index(path) + 1
        for other in [*paths[: max(here - self.keep, 0)], *paths[here:]]:
            shutil.rmtree(other, ignore_errors=True)

    def discard(self) -> None:
        """Removes what was written and not committed."""
        for path in self.folder.glob(f"{UNFINISHED}*"):
            shutil.rmtree(path, ignore_errors=True)

    def remove(self) -> None:
        """Removes all checkpoints of the trial: for whoever has stored its outcome."""
        if is_first():
            shutil.rmtree(self.folder, ignore_errors=True)

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob("step-" + "[0-9]" * 9))


class Writer:
    """Writes checkpoints in one thread while the training goes on. Of those that wait for it, only the newest is
    written: a slow disk makes them fewer, not the training slower.

    The points of one call, those of a population's members, become checkpoints together.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, "checkpoints")
        self._futures: list[Future[None]] = []
        self._failing = False

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown()

    def submit(self, points: Sequence[tuple[Keeper, Point]]) -> None:
        """Has these points written. What they hold must not change."""
        if self._futures and self._futures[-1].cancel():
            self._futures.pop()
        running = [future for future in self._futures if not future.done()]
        for future in set(self._futures) - set(running):
            future.result()
        self._futures = [*running, self._pool.submit(self._write, points)]

    def wait(self) -> None:
        """Waits until all is written."""
        for future in self._futures:
            future.result()
        self._futures = []

    def _write(self, points: Sequence[tuple[Keeper, Point]]) -> None:
        try:
            for keeper, point in points:
                keeper.write(point)
            for keeper, point in points:
                keeper.commit(point.step)
            self._failing = False
        except (DataError, OSError) as error:
            for keeper, _ in points:
                keeper.discard()
            if not self._failing:  # a disk stays full for a while: one line is enough
                keeper, point = points[0]
                keeper.report(f"training goes on without a checkpoint at step {point.step}: {error}")
            self._failing = True


def _tree(point: Point) -> dict[str, Any]:
    """The arrays of a point, in the dtypes that JAX gives them."""
    tree = {"state": point.state, "last": point.outcome.last, "best": point.outcome.best, "losses": point.losses}
    return jax.tree.map(lambda leaf: np.asarray(leaf, jax.dtypes.canonicalize_dtype(leaf.dtype)), tree)
