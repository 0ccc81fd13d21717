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
from qresearch.qmodel import Bits, Params, QParams, QuantizedModel
from qresearch.sweep.assemble import methods_of
from qresearch.sweep.bench import Bench
from qresearch.sweep.blame import blamed
from qresearch.sweep.outcome import Outcome, checkpoint_path


def run_methods(
    bench: Bench,
    key: str,
    variables: Variables,
    table: MenuQParams,
    configs: Sequence[RunConfig],
    bits: dict[RunConfig, np.ndarray],
) -> Iterator[Outcome]:
    """PTQ trials: their methods in turn, from the calibrated qparams of their bits, and what comes out of them."""
    if not configs:
        return
    model = bench.model(key, variables)
    with bench.reporter.phase("post-training methods", len(configs)) as advance:
        for done, config in enumerate(configs, 1):
            yield _outcome(bench, config, key, calibrated_state(bench, model, variables, table, bits[config]))
            advance(done)


def calibrated_state(
    bench: Bench, model: QuantizedModel, variables: Variables, table: MenuQParams, bits: np.ndarray
) -> Quantized:
    """What the methods of a trial with these bits start from."""
    own, setup = jnp.asarray(bits), bench.setup
    targets = jnp.asarray(setup.data.train.targets[: len(bench.calibration_inputs)])
    data = (bench.calibration_inputs, targets, setup.task.loss)
    return Quantized(model, variables, select(table, own), own, *data, setup.model.apply_train)


def treated(state: Quantized, config: RunConfig) -> Quantized:
    """The state after the methods of a trial. GraphError, which names the method, for one that does not go together
    with the model.
    """
    for number, method in enumerate(methods_of(config)):
        try:
            state = method(state, jax.random.fold_in(jax.random.key(config.seed), number))
        except (GraphError, DataError) as error:
            raise GraphError(f"{config.ptq[number].name}: {error}") from error
    return state


def _outcome(bench: Bench, config: RunConfig, key: str, state: Quantized) -> Outcome:
    started, bits, variables = time.monotonic(), np.asarray(state.bits), state.params
    try:
        state = treated(state, config)
    except GraphError as error:  # other trials may go together with their methods
        return Outcome(config, bits, time.monotonic() - started, failure=str(error))
    content = {"variables": state.params, "qparams": state.qparams}
    save_checkpoint(checkpoint_path(bench.folder, config), content)
    parts = (state.model, state.params, state.qparams, state.bits)
    test, validation = (own_scores(bench, *parts, split) for split in (bench.test, bench.validation))
    outcome = Outcome(config, bits, time.monotonic() - started, test, validation)
    return blamed(bench, outcome, key, variables, lambda: state.qparams)


def own_scores(
    bench: Bench, model: QuantizedModel, params: Params, qparams: QParams, bits: Bits, batches: Batches
) -> Scores:
    """The loss and the score of every example, of a model that shares its weights with no other."""
    own = jax.tree.map(lambda leaf: np.asarray(leaf)[None], (qparams, bits))
    found = evaluate(model.forward, bench.setup.task, bench.setup.data.prepare, params, own, batches, chunk=1)
    return Scores(found.loss[0], found.score[0])
