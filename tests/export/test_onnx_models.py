"""Every model in float, converted and run by ONNX Runtime."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from onnx_cases import ROUNDING, differences, draw, frozen_of, made_up, sessions

from qresearch.export.onnx import export_onnx, run_onnx
from qresearch.export.onnx.convert import convert, trace_batch
from qresearch.models import MODELS
from qresearch.rules import Rule, SiteRule

CLASSES = 7
SMALL = 32
EXAMPLES = 3


def inputs_of(example):
    if jnp.issubdtype(example.dtype, jnp.integer):
        return np.arange(EXAMPLES * SMALL, dtype=example.dtype).reshape(EXAMPLES, SMALL) % CLASSES
    height, width, channels = example.shape
    return draw(0, EXAMPLES, min(height, SMALL), min(width, SMALL), channels)


SLOW = pytest.mark.slow
IN_FLOAT = ("mlp", "nnx_cnn", "resnet20", "gpt")  # in the fast suite


def made(name):
    """(model, variables, inputs)."""
    model = MODELS[name](CLASSES)
    x = inputs_of(model.example)
    return model, made_up(jax.eval_shape(model.init, jax.random.key(0), x)), x


@pytest.mark.parametrize("name", [pytest.param(name, marks=[SLOW] * (name not in IN_FLOAT)) for name in MODELS])
def test_every_model_in_float_gives_what_jax_gives_for_any_batch(name):
    model, variables, x = made(name)
    traced = trace_batch(lambda x: model.apply(variables, x), x)
    converted = convert(traced, {}, {})
    assert traced.described == "any"
    expected = np.asarray(jax.jit(model.apply)(variables, x))
    assert max(differences(converted, x, expected).values()) <= ROUNDING
    one = run_onnx(sessions(converted)[True], x[:1])[0]
    np.testing.assert_allclose(one, expected[:1], atol=ROUNDING * np.abs(expected).max())


# Products of data and look-ups too, where a model has some.
SITES = SiteRule(range="minmax"), SiteRule(range="minmax", granularity="per_channel")
DEFAULT = Rule(weight=SITES[1], input=SITES[0])
RULES = {
    "gpt": (Rule("embedding:*", weight=SITES[1]), Rule("product:*", SITES[0], SITES[0]), DEFAULT),
    "vit_tiny": (Rule("product:*", SITES[0], SITES[0]), DEFAULT),
}
QUICK = ("mlp",)


@pytest.mark.parametrize("name", [pytest.param(name, marks=[SLOW] * (name not in QUICK)) for name in MODELS])
def test_every_model_frozen_gives_what_its_simulation_gives(name):
    model, variables, x = made(name)
    frozen = frozen_of(model.apply, variables, x, RULES.get(name, (DEFAULT,)), (4, 8))
    exported = export_onnx(frozen, x)
    assert {layer.input.container for layer in exported.layers} <= {"INT8", "UINT8", "float"}
    assert {layer.weight.container for layer in exported.layers} <= {"INT4", "INT8", "UINT8"}
    # Not rounding alone: a value in the middle of the network may lie so near a tie that it takes the other code.
    assert max(differences(exported.model, x, frozen.apply(x, "dequantized")).values()) <= 0.02
