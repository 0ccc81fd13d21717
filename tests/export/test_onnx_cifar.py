"""ONNX Runtime runs the exported ResNet-20 on all 10,000 test images of CIFAR-10: minutes."""

from __future__ import annotations

import functools

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT

from qresearch.calibration import calibrate, select
from qresearch.config import expand, load
from qresearch.export.onnx import check_onnx, export_onnx, write_onnx
from qresearch.frozen import freeze
from qresearch.qmodel import quantize_model
from qresearch.sweep.assemble import load_weights, rules_of, setup_of
from qresearch.sweep.execute import uniform_bits

pytestmark = pytest.mark.slow
BATCH = 500


@functools.cache
def resnet20():
    """(quantized model, variables, calibration table, data) as ``configs/cifar_resnet20_ptq.yaml`` says."""
    (config, *_) = expand(load(ROOT / "configs" / "cifar_resnet20_ptq.yaml"))
    setup = setup_of(config)
    variables = load_weights(config, setup)
    images = jnp.asarray(setup.data.prepare(setup.data.train.inputs[: config.calibration.examples]))
    model = quantize_model(setup.model.apply, variables, images, rules_of(config.quantize))
    return model, variables, calibrate(model, variables, images), setup.data


def predictions(logits):
    return np.argmax(logits, axis=-1)


@pytest.mark.parametrize("option", [(8, 8), (4, 8)])
def test_onnx_runtime_predicts_what_the_simulation_does(option, data_folder, tmp_path):
    data_folder(expand(load(ROOT / "configs" / "cifar_resnet20_ptq.yaml"))[0])
    model, variables, table, data = resnet20()
    bits = uniform_bits(model, option)
    frozen = freeze(model, variables, select(table, jnp.asarray(bits, jnp.float32)), bits)
    images, targets = np.asarray(data.prepare(data.test.inputs)), data.test.targets
    simulated = np.concatenate(
        [frozen.apply(images[i : i + BATCH], "dequantized") for i in range(0, len(images), BATCH)]
    )
    exported = export_onnx(frozen, images[:2])
    path = tmp_path / "model.onnx"
    assert write_onnx(path, exported.model) < 0.35 * 4 * 272_474  # of the float weights
    accuracy = np.mean(predictions(simulated) == targets)
    for found in check_onnx(path, images, simulated, bound=0.05, agreement=0.995):
        assert abs(np.mean(predictions(found.outputs[0]) == targets) - accuracy) <= 5e-4
