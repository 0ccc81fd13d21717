from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import shared_path

from qresearch.data.cifar10 import CIFAR10, prepare
from qresearch.data.cifar_files import read_file
from qresearch.models import MODELS, load_npz
from qresearch.models.resnet import shortcut
from qresearch.tasks import TASKS

PUBLISHED = {"resnet20": 9_173, "resnet32": 9_263}  # top-1 counts on the 10,000 test images


def published(name):
    path = shared_path("data", "weights", f"{name}_cifar10.npz")
    model = MODELS[name](10)
    template = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    return model, load_npz(path, template)


def correct(name, folder, examples):
    model, variables = published(name)
    test = read_file(CIFAR10, next(folder.rglob("test_batch.bin")))

    @jax.jit
    def count(inputs, targets):
        return TASKS["classification"].score(model.apply(variables, prepare(inputs)), targets).sum()

    starts = range(0, examples, 500)
    return int(sum(count(test.inputs[i : i + 500], test.targets[i : i + 500]) for i in starts))


@pytest.mark.parametrize(("name", "expected"), [("resnet20", 455), ("resnet32", 466)])
def test_published_weights_on_the_first_500_test_images(name, expected, cifar10_folder):
    # Counted once in the run of the slow test below, which gives the published accuracy.
    assert correct(name, cifar10_folder, 500) == expected


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_weights_reach_the_published_accuracy(name, cifar10_folder):
    assert correct(name, cifar10_folder, 10_000) == PUBLISHED[name]


def test_shortcut_subsamples_and_pads_channels_with_zeros():
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 16))
    out = shortcut(x, 32, 2)
    assert out.shape == (2, 4, 4, 32)
    np.testing.assert_array_equal(out[..., 8:24], x[:, ::2, ::2])
    assert not out[..., :8].any()
    assert not out[..., 24:].any()
    assert shortcut(x, 16, 1) is x


def test_strided_convolutions_pad_both_sides():
    # "SAME" would pad (0, 1) at stride 2 and shift what the published weights see by a pixel.
    model = MODELS["resnet20"](10)
    jaxpr = jax.make_jaxpr(model.apply)(*_shapes(model))
    paddings = {eqn.params["padding"] for eqn in _convolutions(jaxpr.jaxpr)}
    assert paddings == {((1, 1), (1, 1))}


def _shapes(model):
    inputs = jnp.zeros((1, 32, 32, 3))
    return jax.eval_shape(model.init, jax.random.key(0), inputs), inputs


def _convolutions(jaxpr):
    return [eqn for eqn in jaxpr.eqns if eqn.primitive.name == "conv_general_dilated"]
