"""Running the trials of one bench: float and PTQ trials as a population of allocations, QAT trials as one of
trainings.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from qresearch.calibration import MenuQParams, select_many
from qresearch.checkpoint import save_checkpoint
from qresearch.config import RunConfig, config_hash
from qresearch.errors import BudgetError
from qresearch.evaluation import Scores, default_chunk, evaluate
from qresearch.models import Variables
from qresearch.sweep.assemble import recipe_of
from qresearch.sweep.bench import Bench
from qresearch.sweep.floats import FloatModel, float_key
from qresearch.sweep.outcome import Outcome, means
from qresearch.sweep.progress import epochs_done
from qresearch.training import Trained, Trainer, Trial

FLOAT_BITS = 32.0


def run_bench(bench: Bench, configs: Sequence[RunConfig], floats: dict[str, FloatModel]) -> Iterator[Outcome]:
    """Runs every trial of a bench and yields each outcome as soon as it is known."""
    by_float: dict[str, list[RunConfig]] = {}
    for config in configs:
        by_float.setdefault(float_key(config), []).append(config)
    qat: list[tuple[RunConfig, Trial]] = []
    for key, members in by_float.items():
        variables = floats[key].variables
        if variables is None:
            layers = len(bench.sketch.layers)
            yield from (Outcome(c, np.full((layers, 2), FLOAT_BITS), 0.0, failure=floats[key].failure) for c in members)
            continue
        bits, failures = _choose_bits(bench, key, variables, members)
        yield from failures
        table = bench.calibrated(key, variables, _widths(bits))
        evaluated = [config for config in members if config in bits and config.flow != "qat"]
        yield from _evaluate(bench, variables, table, evaluated, bits, floats[key])
        trained = [config for config in members if config in bits and config.flow == "qat"]
        qat += [(config, _trial(config, variables, table, bits[config])) for config in trained]
    yield from _train(bench, qat)


def _choose_bits(
    bench: Bench, key: str, variables: Variables, configs: Sequence[RunConfig]
) -> tuple[dict[RunConfig, np.ndarray], list[Outcome]]:
    """The bits [layer, 2] of every trial; one call of an allocator serves all budgets that differ in nothing else."""
    model, bits, failures = bench.model(variables), {}, []
    budgeted: dict[tuple[str, str, int], list[RunConfig]] = {}
    for config in configs:
        allocation = config.allocation
        if config.flow == "float":
            bits[config] = np.full((len(model.layers), 2), FLOAT_BITS, np.float32)
        elif allocation.bits is not None:
            rows = [menu[0] if len(menu) == 1 else allocation.bits for menu in model.menus]
            bits[config] = np.asarray(rows, np.float32)
        else:
            budgeted.setdefault((allocation.allocator, allocation.cost, config.seed), []).append(config)
    if budgeted:
        table = bench.sensitivity(key, variables, bench.calibrated(key, variables, _widths(bits)))
    for (allocator, cost, seed), group in budgeted.items():
        budgets = [float(config.allocation.budget or 0.0) for config in group]
        try:
            chosen = bench.allocate(seed, table, allocator, cost, budgets)
            bits |= dict(zip(group, chosen))
        except BudgetError as error:
            nothing = np.full((len(model.layers), 2), FLOAT_BITS, np.float32)
            failures += [Outcome(config, nothing, 0.0, failure=str(error)) for config in group]
    return bits, failures


def _widths(bits: dict[RunConfig, np.ndarray]) -> tuple[int, ...]:
    return tuple(sorted({int(width) for rows in bits.values() for width in rows.reshape(-1) if 0 < width < FLOAT_BITS}))


def _evaluate(
    bench: Bench,
    variables: Variables,
    table: MenuQParams,
    configs: Sequence[RunConfig],
    bits: dict[RunConfig, np.ndarray],
    float_model: FloatModel,
) -> Iterator[Outcome]:
    """Float and PTQ trials: the float model is the allocation of 32 bits, so that all run in one program."""
    if not configs:
        return
    with bench.reporter.phase("float and PTQ evaluation", len(configs)) as advance:
        chunk = default_chunk()
        for start in range(0, len(configs), chunk):
            started, part = time.monotonic(), configs[start : start + chunk]
            chosen = np.stack([bits[config] for config in part])
            own = (select_many(table, chosen), chosen)
            test, validation = (_scores(bench, variables, own, split) for split in (bench.test, bench.validation))
            seconds = (time.monotonic() - started) / len(part)
            for i, config in enumerate(part):
                extra = {"best_epoch": float_model.best_epoch} if config.flow == "float" else {}
                yield Outcome(config, bits[config], seconds, _row(test, i), _row(validation, i), extra)
            advance(start + len(part))


def _scores(bench: Bench, variables: Variables, own: Any, batches: Any) -> Scores:
    model, setup = bench.model(variables), bench.setup
    return evaluate(model.forward, setup.task, setup.data.prepare, variables, own, batches)


def _row(scores: Scores, i: int) -> Scores:
    return Scores(scores.loss[i], scores.score[i])


def _trial(config: RunConfig, variables: Variables, table: MenuQParams, bits: np.ndarray) -> Trial:
    qparams = jax.tree.map(lambda leaf: leaf[0], select_many(table, bits[None]))
    return Trial(variables, qparams, bits, config.qat.learning_rate, config.seed)


def _train(bench: Bench, trials: Sequence[tuple[RunConfig, Trial]]) -> Iterator[Outcome]:
    """QAT trials, from the float weights and calibrated qparams; those of one recipe are one population."""
    groups: dict[Any, list[tuple[RunConfig, Trial]]] = {}
    for config, trial in trials:
        groups.setdefault(recipe_of(config.qat), []).append((config, trial))
    for recipe, group in groups.items():
        trainer = bench.trainer(group[0][1].variables, group[0][0])
        with bench.reporter.phase("QAT (epochs)", len(group) * recipe.epochs) as advance:
            outcomes = trainer.train(
                [trial for _, trial in group],
                on_epoch=epochs_done(advance, recipe.epochs),
            )
            started = time.monotonic()
            for (config, trial), trained in zip(group, outcomes):
                yield _trained(bench, trainer, config, trial, trained, started)
                started = time.monotonic()


def _trained(
    bench: Bench, trainer: Trainer, config: RunConfig, trial: Trial, trained: Trained, started: float
) -> Outcome:
    bits = np.asarray(trial.bits)
    if trained.failure is not None:
        return Outcome(config, bits, time.monotonic() - started, extra=_history(trained), failure=trained.failure)
    best, last = ((*part, trial.bits) for part in (trained.best, trained.last))
    test, validation = (_own_scores(trainer, best, split) for split in (bench.test, bench.validation))
    extra = {"last": {"test": means(_own_scores(trainer, last, bench.test))}, **_history(trained)}
    save_checkpoint(checkpoint_path(bench.folder, config), {"variables": trained.best[0], "qparams": trained.best[1]})
    return Outcome(config, bits, time.monotonic() - started, test, validation, extra)


def checkpoint_path(run: Path, config: RunConfig) -> Path:
    """Where a QAT trial keeps its best variables and qparams."""
    return run / "checkpoints" / config_hash(config)[:16]


def _own_scores(trainer: Trainer, own: Any, batches: Any) -> Scores:
    members = jax.tree.map(lambda leaf: np.asarray(leaf)[None], own)
    scores = evaluate(trainer.program.forward, trainer.task, trainer.data.prepare, (), members, batches, chunk=1)
    return _row(scores, 0)


def _history(trained: Trained) -> dict[str, Any]:
    epochs = {str(int(row["epoch"])): {k: v for k, v in row.items() if k != "epoch"} for row in trained.history}
    return {"best_epoch": trained.best_epoch, "epochs": epochs}
