"""Whole networks on real data: integer execution is the simulation bit for bit, and what float sums change is counted.

QRESEARCH_DATA=FOLDER pytest -m slow -s tests/frozen/test_whole_networks.py     (CIFAR-10, text and weights/)
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import shared_path

from qresearch.calibration import calibrate, select
from qresearch.data import DATASETS
from qresearch.data.dataset import with_first
from qresearch.evaluation import make_batches
from qresearch.frozen import EXECUTIONS, freeze
from qresearch.models import MODELS, load_npz
from qresearch.qmodel import quantize_model
from qresearch.sweep.floats import float_trainer
from qresearch.tasks import TASKS
from qresearch.training import Recipe, Trial

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
# model: data set, task, examples and batch size of a short training (none: public weights), test examples
NETWORKS = {
    "resnet20": ("cifar10", "classification", 0, 500, 10_000),
    "mobilenet_v2": ("cifar10", "classification", 8192, 64, 2000),
    "gpt": ("text", "language_modelling", 3000, 16, 500),
}


def trained(name, folder):
    """(data, model, variables), by public weights or a short training of our own: enough that predictions differ."""
    data_name, task, examples, batch, _ = NETWORKS[name]
    data = DATASETS[data_name](folder)
    model = MODELS[name](data.classes)
    x = data.prepare(jnp.asarray(data.train.inputs[:1]))
    if not examples:
        template = jax.eval_shape(model.init, jax.random.key(0), x)
        return data, model, load_npz(shared_path("data", "weights", f"{name}_cifar10.npz"), template)
    recipe = Recipe(epochs=1, batch_size=batch, optimizer="adam")
    part = with_first(data, examples)
    trainer = float_trainer(model, TASKS[task], recipe, part, 50)
    start = jax.jit(model.init)(jax.random.key(0), x)
    (outcome,) = trainer.train([Trial(start, {}, (), 3e-3, 0)])
    assert outcome.failure is None
    return data, model, outcome.last[0]


@pytest.mark.parametrize("name", NETWORKS)
def test_integers_equal_their_simulation_on_the_test_set(name, request):
    folder = shared_path("data", "text") if name == "gpt" else request.getfixturevalue("cifar10_folder")
    data, model, variables = trained(name, folder)
    x = data.prepare(jnp.asarray(data.train.inputs[:256]))
    quantized = quantize_model(model.apply, variables, x)
    table = calibrate(quantized, variables, x, [4, 8])
    size = 100 if name == "gpt" else 500
    test = make_batches(data.test, size, NETWORKS[name][-1])
    for widths in ((8.0, 8.0), (4.0, 8.0), (4.0, 4.0)):
        bits = jnp.broadcast_to(jnp.asarray(widths), (len(quantized.layers), 2))
        frozen = freeze(quantized, variables, select(table, bits), np.asarray(bits))
        assert {layer.path for layer in frozen.layers} == {"integer"}
        flips = predictions = 0
        for inputs in test.inputs:
            outputs = {execution: np.asarray(frozen.apply(data.prepare(inputs), execution)) for execution in EXECUTIONS}
            np.testing.assert_array_equal(outputs["integer"], outputs["codes"])
            chosen = outputs["integer"].argmax(-1)
            flips += np.sum(chosen != outputs["dequantized"].argmax(-1))
            predictions += chosen.size
        print(f"\n{name} W{widths[0]:g}A{widths[1]:g}: {flips} of {predictions} predictions differ from dequantized")
        assert flips <= 0.01 * predictions  # rounding ties in the middle; a short training leaves small margins
