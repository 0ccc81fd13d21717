"""The calibrated model and the validation examples of a config, for experiments that measure losses themselves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np

import qresearch as qr
from qresearch.allocation.problem import Measure
from qresearch.calibration import MenuQParams
from qresearch.config import load
from qresearch.sensitivities import Sensitivity, Subject
from qresearch.sweep.bench import Bench
from qresearch.sweep.floats import float_key, obtain_floats
from qresearch.sweep.progress import Silent
from qresearch.sweep.run import plan_sweep


class Measured(NamedTuple):
    """subject: of ``qresearch.sensitivities``. measure: the loss of whole allocations of a table, on its examples."""

    subject: Subject
    bench: Bench
    key: str

    def measure(self, table: Sensitivity) -> Measure:
        qparams = self.subject.qparams
        assert isinstance(qparams, MenuQParams)
        model, params, _, batches, task, prepare, *_ = self.subject
        ready = qr.prequantize(model, params, qparams)

        def measured(allocations: np.ndarray) -> np.ndarray:
            bits = np.stack([qr.allocation_bits(table, row) for row in allocations])
            losses = qr.evaluate_population(model, params, ready, bits, batches, task, prepare, share_prefixes=True)
            return losses.loss.mean(axis=1, dtype=np.float64)

        return measured


def subject_of(config: Path, examples: int, overrides: Sequence[str] = ()) -> Measured:
    """The first quantized trial of a config, its float model loaded or trained, and calibrated for its menus."""
    trial = next(run for run in plan_sweep(load(config, overrides)) if run.flow != "float")
    with TemporaryDirectory() as folder:
        floats = obtain_floats([trial], Path(folder), Silent())
    bench, key = Bench(trial, Path(), Silent()), float_key(trial)
    variables = floats[key].variables
    if variables is None:
        raise SystemExit(floats[key].failure)
    model, data = bench.model(key, variables), bench.setup.data
    batches = qr.make_batches(data.validation, trial.evaluate.batch_size, examples)
    qparams = bench.calibrated(key, variables, [])
    return Measured(Subject(model, variables, qparams, batches, bench.setup.task, data.prepare), bench, key)
