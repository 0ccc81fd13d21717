"""Running the trials of one bench: float and PTQ trials as a population of allocations, QAT trials as one of
trainings.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qresearch.calibration import MenuQParams, select, select_many
from qresearch.checkpoint import save_checkpoint
from qresearch.config import RunConfig, config_hash
from qresearch.errors import BudgetError, TrainingError
from qresearch.evaluation import Scores, default_chunk, evaluate
from qresearch.models import Variables
from qresearch.population import evaluate_population
from qresearch.prequantized import prequantize
from qresearch.qmodel import QuantizedModel
from qresearch.rules import Option
from qresearch.sweep.bench import Bench
from qresearch.sweep.blame import blamed, unsound
from qresearch.sweep.floats import FloatModel, float_key, keeper_of
from qresearch.sweep.found import Start
from qresearch.sweep.keep import keep_sensitive
from qresearch.sweep.outcome import FLOAT_BITS, Outcome, checkpoint_path, summary
from qresearch.sweep.post_training import run_methods
from qresearch.sweep.progress import epochs_done
from qresearch.training import Trained, Trainer, Trial


def run_bench(
    bench: Bench, configs: Sequence[RunConfig], floats: dict[str, FloatModel], until: int | None = None
) -> Iterator[Outcome]:
    """Runs every trial of a bench and yields each outcome as soon as it is known, with what its search took.

    until: QAT stops after this epoch, if it is not the last; a later call goes on from there.
    """
    for outcome in _run_trials(bench, configs, floats, until):
        found = bench.chooser.found.get(outcome.config)
        yield outcome if found is None else outcome._replace(extra={**outcome.extra, "search": found.taken})


def _run_trials(
    bench: Bench, configs: Sequence[RunConfig], floats: dict[str, FloatModel], until: int | None
) -> Iterator[Outcome]:
    by_float: dict[str, list[RunConfig]] = {}
    for config in configs:
        by_float.setdefault(float_key(config), []).append(config)
    qat: dict[Trainer, list[tuple[RunConfig, Trial]]] = {}
    for key, members in by_float.items():
        variables = floats[key].variables
        if variables is None:
            reason = floats[key].failure or "no float model"
            yield from (Outcome.lost(config, len(bench.sketch.layers), reason) for config in members)
            continue
        bits, failures = _choose_bits(bench, key, variables, members)
        yield from failures
        table = bench.calibrated(key, variables, _widths(bits))
        evaluated = [config for config in members if config in bits and config.flow != "qat" and not config.ptq]
        yield from _evaluate(bench, key, floats[key], table, evaluated, bits)
        treated = [config for config in members if config in bits and config.ptq]
        yield from run_methods(bench, key, variables, table, treated, bits)
        for config in members:
            if config in bits and config.flow == "qat":
                trial = _trial(bench, config, variables, table, bits[config])
                qat.setdefault(bench.trainer(key, variables, config), []).append((config, trial))
    for trainer, trials in qat.items():
        yield from _train(bench, trainer, trials, until)


def _choose_bits(
    bench: Bench, key: str, variables: Variables, configs: Sequence[RunConfig]
) -> tuple[dict[RunConfig, np.ndarray], list[Outcome]]:
    """The bits [layer, 2] of every trial: its own, float, or what its allocator chooses within its budget."""
    model = bench.model(key, variables)
    in_float, budgeted, kept = np.full((len(model.layers), 2), FLOAT_BITS, np.float32), [], []
    bits: dict[RunConfig, np.ndarray] = {}
    failures: list[Outcome] = []
    for config in configs:
        if config.flow == "float":
            bits[config] = in_float
        elif config.allocation.bits is not None:
            bits[config] = uniform_bits(model, config.allocation.bits)
            kept += [config] if config.quantize.keep.most_sensitive else []
        else:
            budgeted.append(config)
    if not (budgeted or kept):
        return bits, failures
    qparams = bench.calibrated(key, variables, _widths(bits))
    for config in kept:
        table = bench.chooser.sensitivity(key, variables, qparams, config.sensitivity)
        bits[config] = keep_sensitive(bits[config], table, config.allocation.bits or (0, 0), config.quantize.keep)
    for config in budgeted:
        try:
            bits[config] = bench.chooser.search(config, key, variables, qparams)
        except (BudgetError, TrainingError) as error:
            failures.append(Outcome(config, in_float, 0.0, failure=str(error)))
    return bits, failures


def uniform_bits(model: QuantizedModel, bits: Option) -> np.ndarray:
    """One option for all layers [layer, 2]; pinned layers keep theirs, operands without a quantizer are float."""
    rows = [menu[0] if len(menu) == 1 else bits for menu in model.menus]
    quantized = [(unit.weight is not None, unit.input is not None) for unit in model.units]
    return np.where(quantized, np.asarray(rows, np.float32), np.float32(FLOAT_BITS))


def _widths(bits: dict[RunConfig, np.ndarray]) -> tuple[int, ...]:
    return tuple(sorted({int(width) for rows in bits.values() for width in rows.reshape(-1) if 0 < width < FLOAT_BITS}))


def _evaluate(
    bench: Bench,
    key: str,
    float_model: FloatModel,
    table: MenuQParams,
    configs: Sequence[RunConfig],
    bits: dict[RunConfig, np.ndarray],
) -> Iterator[Outcome]:
    """Float and PTQ trials: the float model is the allocation of 32 bits, so that all run in one program."""
    variables = float_model.variables
    if not configs or variables is None:
        return
    model = bench.model(key, variables)
    with bench.reporter.phase("float and PTQ evaluation", len(configs)) as advance:
        chunk = default_chunk() * jax.device_count()
        ready = prequantize(model, variables, table)
        for start in range(0, len(configs), chunk):
            started, part = time.monotonic(), configs[start : start + chunk]
            chosen = np.stack([bits[config] for config in part])
            task, prepare = bench.setup.task, bench.setup.data.prepare
            test, validation = (
                evaluate_population(model, variables, ready, chosen, split, task, prepare)
                for split in (bench.test, bench.validation)
            )
            seconds = (time.monotonic() - started) / len(part)
            for i, config in enumerate(part):
                extra = {"best_epoch": float_model.best_epoch} if config.flow == "float" else {}
                outcome = Outcome(config, bits[config], seconds, _row(test, i), _row(validation, i), extra)
                yield blamed(
                    bench, outcome, key, variables, functools.partial(select, table, jnp.asarray(bits[config]))
                )
            advance(start + len(part))


def _row(scores: Scores, i: int) -> Scores:
    return Scores(scores.loss[i], scores.score[i])


def _trial(bench: Bench, config: RunConfig, variables: Variables, table: MenuQParams, bits: np.ndarray) -> Trial:
    """A QAT trial, from where its search left off, or else from the float weights and calibrated qparams."""
    start = _start(bench, config)
    if start is not None:
        return Trial(start.variables, start.qparams, bits, config.qat.learning_rate, config.seed)
    qparams = jax.tree.map(lambda leaf: leaf[0], select_many(table, bits[None]))
    return Trial(variables, qparams, bits, config.qat.learning_rate, config.seed)


def _start(bench: Bench, config: RunConfig) -> Start | None:
    """Where the QAT of a trial begins, if its search hands over what it trained."""
    found = bench.chooser.found.get(config)
    return None if found is None else found.start


def _train(
    bench: Bench, trainer: Trainer, trials: Sequence[tuple[RunConfig, Trial]], until: int | None
) -> Iterator[Outcome]:
    """QAT trials; those of one trainer are one population."""
    epochs, reporter = min(until or trainer.recipe.epochs, trainer.recipe.epochs), bench.reporter
    stops = epochs < trainer.recipe.epochs
    keepers = [keeper_of(config, bench.folder, config_hash(config)[:16], reporter, stops) for config, _ in trials]
    with reporter.phase("QAT (epochs)", len(trials) * epochs) as advance:
        outcomes = trainer.train([trial for _, trial in trials], None, epochs_done(advance, epochs), keepers, until)
        started = time.monotonic()
        for (config, trial), keeper, trained in zip(trials, keepers, outcomes):
            yield _trained(bench, trainer, config, trial, trained, started, epochs)
            if keeper is not None and trained.finished:
                keeper.remove()  # whoever asks for the next outcome has stored this one
            started = time.monotonic()


def _trained(
    bench: Bench, trainer: Trainer, config: RunConfig, trial: Trial, trained: Trained, started: float, epochs: int
) -> Outcome:
    bits, channels = _with_pruned(bench, config, np.asarray(trial.bits))
    if trained.failure is not None:
        failure = "; ".join(filter(None, (trained.failure, unsound(bench.sketch, trial.qparams, trial.bits))))
        return Outcome(config, bits, time.monotonic() - started, extra=_history(trained), failure=failure)
    if not trained.finished:
        row = trained.history[epochs - 1]  # the checkpoint may be of a later one
        stopped = (int(row["epoch"]), trainer.task.sign * row["validation_score"])
        return Outcome(config, bits, time.monotonic() - started, stopped=stopped)
    best, last = ((*part, trial.bits) for part in (trained.best, trained.last))
    test, validation = (_own_scores(trainer, best, split) for split in (bench.test, bench.validation))
    extra = {
        "last": {"test": summary(_own_scores(trainer, last, bench.test), trainer.task)},
        **_history(trained),
        **channels,
    }
    save_checkpoint(checkpoint_path(bench.folder, config), {"variables": trained.best[0], "qparams": trained.best[1]})
    outcome = Outcome(config, bits, time.monotonic() - started, test, validation, extra)
    untrained = not trained.history and _start(bench, config) is None
    return blamed(bench, outcome, float_key(config), trial.variables, lambda: trial.qparams) if untrained else outcome


def _with_pruned(bench: Bench, config: RunConfig, bits: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
    """Bits [layer, 2] in which pruned channels count as weights of 0 bits, and the share of channels that are kept."""
    start = _start(bench, config)
    if start is None or np.all(start.kept == 1):
        return bits, {}
    kept = {layer.name: float(share) for layer, share in zip(bench.sketch.layers, start.kept)}
    return bits * np.stack([start.kept, np.ones_like(start.kept)], axis=1), {"channels_kept": kept}


def _own_scores(trainer: Trainer, own: Any, batches: Any) -> Scores:
    members = jax.tree.map(lambda leaf: np.asarray(leaf)[None], own)
    scores = evaluate(trainer.program.forward, trainer.task, trainer.data.prepare, (), members, batches, chunk=1)
    return _row(scores, 0)


def _history(trained: Trained) -> dict[str, Any]:
    epochs = {str(int(row["epoch"])): {k: v for k, v in row.items() if k != "epoch"} for row in trained.history}
    return {"best_epoch": trained.best_epoch, "epochs": epochs}
