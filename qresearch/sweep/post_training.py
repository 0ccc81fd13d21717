"""Running the trials that have post-training methods: each has weights of its own, so each is evaluated alone."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from qresearch.calibration import MenuQParams, select
from qresearch.checkpoint import save_checkpoint
from qresearch.config import RunConfig
from qresearch.errors import DataError, GraphError
from qresearch.evaluation import Batches, Scores, evaluate
from qresearch.models import Variables
from qresearch.ptq import Quantized
from qresearch.qmodel import QuantizedModel
from qresearch.sweep.assemble import methods_of
from qresearch.sweep.bench import Bench
from qresearch.sweep.outcome import Outcome, checkpoint_path


def run_methods(
    bench: Bench,
    model: QuantizedModel,
    variables: Variables,
    table: MenuQParams,
    configs: Sequence[RunConfig],
    bits: dict[RunConfig, np.ndarray],
) -> Iterator[Outcome]:
    """PTQ trials: their methods in turn, from the calibrated qparams of their bits, and what comes out of them."""
    if not configs:
        return
    targets = jnp.asarray(bench.setup.data.train.targets[: len(bench.calibration_inputs)])
    with bench.reporter.phase("post-training methods", len(configs)) as advance:
        for done, config in enumerate(configs, 1):
            started, own = time.monotonic(), jnp.asarray(bits[config])
            qparams, loss = select(table, own), bench.setup.task.loss
            data, train = (bench.calibration_inputs, targets, loss), bench.setup.model.apply_train
            state = Quantized(model, variables, qparams, own, *data, train)
            yield _outcome(bench, config, state, started)
            advance(done)


def _outcome(bench: Bench, config: RunConfig, state: Quantized, started: float) -> Outcome:
    bits = np.asarray(state.bits)
    for number, method in enumerate(methods_of(config)):
        try:
            state = method(state, jax.random.fold_in(jax.random.key(config.seed), number))
        except (GraphError, DataError) as error:  # this method and this model do not go together; other trials may
            reason = f"{config.ptq[number].name}: {error}"
            return Outcome(config, bits, time.monotonic() - started, failure=reason)
    content = {"variables": state.params, "qparams": state.qparams}
    save_checkpoint(checkpoint_path(bench.folder, config), content)
    test, validation = (_scores(bench, state, split) for split in (bench.test, bench.validation))
    return Outcome(config, bits, time.monotonic() - started, test, validation)


def _scores(bench: Bench, state: Quantized, batches: Batches) -> Scores:
    own = jax.tree.map(lambda leaf: np.asarray(leaf)[None], (state.qparams, state.bits))
    task, prepare = bench.setup.task, bench.setup.data.prepare
    found = evaluate(state.model.forward, task, prepare, state.params, own, batches, chunk=1)
    return Scores(found.loss[0], found.score[0])
