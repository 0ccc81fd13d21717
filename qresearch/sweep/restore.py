"""Finished trials of a run: which one is meant, and its quantized model, rebuilt from the run's folder alone."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from qresearch.calibration import calibrate, select
from qresearch.checkpoint import load_checkpoint
from qresearch.config import RunConfig, config_hash, expand, from_mapping
from qresearch.errors import ConfigError, DataError, did_you_mean
from qresearch.evaluation import Batches, Scores
from qresearch.models import Variables
from qresearch.qmodel import QParams, QuantizedModel
from qresearch.report import front, points_of
from qresearch.results import Record, RunFolder
from qresearch.sweep.assemble import Setup, known_names
from qresearch.sweep.bench import Bench
from qresearch.sweep.floats import float_key, load_float
from qresearch.sweep.outcome import FLOAT_BITS, checkpoint_path
from qresearch.sweep.post_training import calibrated_state, own_scores, treated
from qresearch.sweep.progress import Silent


class Restored(NamedTuple):
    """The model of a finished trial: ``model.apply(params, qparams, x, bits)``. bench: its data, task and batches.

    bits: [layers, 2]; those of weights count whole channels only, where the record has the share that is kept.
    """

    record: Record
    bench: Bench
    model: QuantizedModel
    params: Variables
    qparams: QParams
    bits: Float[np.ndarray, "layers 2"]

    @property
    def config(self) -> RunConfig:
        """The trial's config."""
        return self.bench.config

    @property
    def setup(self) -> Setup:
        """The data set, float model and task."""
        return self.bench.setup

    def scores(self, batches: Batches) -> Scores:
        """The loss and the score of every example, as the trial's record was made from."""
        return own_scores(self.bench, self.model, self.params, self.qparams, jnp.asarray(self.bits), batches)


def find_trial(run: RunFolder, given: str | None = None) -> Record:
    """The trial whose key or label begins with ``given``; none given: of the quantized trials on the run's front the
    one with the best validation score. DataError if there is none, or more than one.
    """
    stored = run.records()
    if given is None:
        return _best(run, stored.records)
    labels = [record for record in stored.records if record.label == given]
    found = labels or [r for r in stored.records if given and (r.key.startswith(given) or r.label.startswith(given))]
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(f"{record.key[:8]} {record.label}" for record in found[:10])
        more = f" and {len(found) - 10} more" if len(found) > 10 else ""
        raise DataError(f"--trial {given!r} means {len(found)} trials: {names}{more}; give more of a key")
    for path, reason in stored.invalid:
        key, _, label = path.parent.name.partition("-")
        if given and (key.startswith(given[:8]) or label.startswith(given)):
            raise DataError(reason)
    known = did_you_mean(given, [record.label for record in stored.records]) if stored.records else "; it has none"
    raise DataError(f"no finished trial {given!r} in {run.path}{known}")


def _best(run: RunFolder, records: tuple[Record, ...]) -> Record:
    points = points_of(records)
    chosen = [points[i] for i in front(points)]
    if not chosen:
        raise DataError(f"{run.path}: no quantized trial has finished; resume the sweep, or name a trial with --trial")
    if len({point.problem for point in chosen}) > 1:
        raise DataError(f"{run.path}: its trials are of several models, data sets or tasks; name one with --trial")

    sign = 1 if chosen[0].problem.higher_is_better else -1
    best = max(chosen, key=lambda point: sign * point.validation.mean)
    return max(best.records, key=lambda record: sign * float(record.metrics["validation"]["score"]))


def restore(run: RunFolder, record: Record) -> Restored:
    """The model of a trial, from the folder of its run, its data set and, where the config names one, its weight file.

    What training and post-training methods left is read from the trial's checkpoint. The rest is computed again: the
    calibration, and of methods what the checkpoint has no room for, the function and the layers. DataError for a trial
    that failed, and where files are missing or damaged.
    """
    if record.status != "done":
        raise DataError(f"trial {record.label} has no model: it failed ({(record.reason or '').partition(chr(10))[0]})")
    config = _config_of(run, record)
    bench, key = Bench(config, run.path, Silent()), float_key(config)
    variables = load_float(config, run.path / "float")
    model, bits = bench.model(key, variables), _bits_of(record)
    if [layer.name for layer in model.layers] != record.allocation["layers"]:
        raise DataError(f"trial {record.label}: its layers are not those of model '{config.model.name}' any more")
    x = bench.calibration_inputs
    if config.flow == "qat":
        template = {"variables": variables, "qparams": jax.eval_shape(model.init, variables, x, bits)}
        found = load_checkpoint(checkpoint_path(run.path, config), template)
        return Restored(record, bench, model, found["variables"], found["qparams"], bits)
    if not config.ptq:
        return Restored(record, bench, model, variables, _calibrated(bench, model, variables, bits), bits)
    table = calibrate(model, variables, x, _widths(bits))
    state = treated(calibrated_state(bench, model, variables, table, bits), config)
    template = {"variables": state.params, "qparams": state.qparams}
    found = load_checkpoint(checkpoint_path(run.path, config), template)
    return Restored(record, bench, state.model, found["variables"], found["qparams"], bits)


def recalibrated(restored: Restored, bits: Float[np.ndarray, "layers 2"]) -> Restored:
    """The same trial at other widths, calibrated for them. ConfigError where more than calibration was for its own."""
    config = restored.config
    if config.flow == "qat" or config.ptq:
        how = "QAT trained" if config.flow == "qat" else "post-training methods rounded"
        raise ConfigError(f"trial {restored.record.label}: {how} its weights for the widths that it has")
    return restored._replace(bits=bits, qparams=_calibrated(restored.bench, restored.model, restored.params, bits))


def _calibrated(bench: Bench, model: QuantizedModel, params: Variables, bits: Float[np.ndarray, "layers 2"]) -> QParams:
    table = calibrate(model, params, bench.calibration_inputs, _widths(bits))
    return jax.tree.map(np.asarray, select(table, jnp.asarray(bits)))


def _widths(bits: Float[np.ndarray, "layers 2"]) -> list[int]:
    return sorted({int(width) for width in np.unique(bits) if 0 < width < FLOAT_BITS}) or [8]


def _config_of(run: RunFolder, record: Record) -> RunConfig:
    """The config of a trial; its record leaves out what does not make it another one."""
    (config,) = expand(from_mapping({**record.config, "name": run.name}, f"trial {record.label}"), known_names())
    if config_hash(config) != record.key:
        raise DataError(f"trial {record.label}: its config means something else to this version of qresearch")
    return config


def _bits_of(record: Record) -> Float[np.ndarray, "layers 2"]:
    """The widths that the model was run with: of pruned channels the record counts none."""
    bits = np.asarray(record.allocation["bits"], np.float32)
    kept = record.metrics.get("channels_kept", {})
    for row, name in enumerate(record.allocation["layers"]):
        if kept.get(name, 1.0) > 0:
            bits[row, 0] = np.rint(bits[row, 0] / kept.get(name, 1.0))
    return bits
