"""Rule lists for Qwix: what they say, and, where Qwix is installed, that it computes the same with them."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qresearch.calibration import calibrate, select
from qresearch.data import DATASETS
from qresearch.export.qwix_rules import qwix_json, qwix_rules
from qresearch.models.cnn import DigitsCNN
from qresearch.models.mlp import MLP
from qresearch.models.model import from_linen
from qresearch.ptq import Quantized, make_methods
from qresearch.qmodel import quantize_model
from qresearch.rules import Rule, SiteRule
from qresearch.tasks import TASKS

MENU = ((8, 8),)
CHANNELS, TENSOR = SiteRule(granularity="per_channel", range="minmax"), SiteRule(range="minmax")
TOKENS = SiteRule("dynamic", "per_token", signed=True)


def quantized(module, rules, bits, methods=()):
    """(model, params, qparams, bits, x) of an untrained network on real digits; bits: pairs, or one for all."""
    data = DATASETS["digits"](None)
    # Pixels are sixteenths, of which many lie halfway between two codes: one unit in the last place would decide.
    x = jnp.asarray(data.prepare(data.train.inputs[:16])) + jax.random.uniform(jax.random.key(1), (16, 8, 8, 1)) / 64
    float_model = from_linen(module)
    params = jax.jit(float_model.init)(jax.random.key(0), x)
    model = quantize_model(float_model.apply, params, x, rules)
    rows = jnp.asarray(np.broadcast_to(np.asarray(bits, np.float32), (len(model.layers), 2)))
    qparams = select(calibrate(model, params, x, sorted({int(b) for b in rows.reshape(-1) if 0 < b < 32})), rows)
    if methods:
        targets, loss = jnp.asarray(data.train.targets[:16]), TASKS["classification"].loss
        state = Quantized(model, params, qparams, rows, x, targets, loss, float_model.apply_train)
        for method in make_methods([(name, {}) for name in methods]):
            state = method(state, jax.random.key(0))
        model, params, qparams = state.model, state.params, state.qparams
    return model, params, qparams, rows, x


def differences(module, rules, bits, methods=()):
    model, params, qparams, rows, _ = quantized(module, rules, bits, methods)
    return qwix_rules(model, params, qparams, rows)


# ---- Against Qwix itself

MIXED_MLP, ALL_MLP = ((8, 8), (4, 8), (3, 8)), ((8, 8), (4, 8), (3, 4))
MIXED_CNN, ALL_CNN = (
    ((8, 8), (32, 32), (8, 8), (8, 8), (4, 8), (32, 32)),
    ((8, 8), (4, 4), (8, 8), (8, 8), (4, 8), (32, 32)),
)
CASES = {
    "mlp W8A8": (MLP, Rule("*", CHANNELS, TENSOR, MENU), (8, 8)),
    "mlp W4A4": (MLP, Rule("*", CHANNELS, TENSOR, MENU), (4, 4)),
    "mlp mixed": (MLP, Rule("*", CHANNELS, TENSOR, MENU), MIXED_MLP),
    "mlp mixed, with W3A4": (MLP, Rule("*", CHANNELS, TENSOR, MENU), ALL_MLP),
    "mlp W4 alone": (MLP, Rule("*", CHANNELS, None, MENU), (4, 32)),
    "mlp W4 in groups": (
        MLP,
        Rule("*", SiteRule(granularity="per_group", group_size=16, range="minmax"), None),
        (4, 32),
    ),
    "mlp W5A8 per token": (MLP, Rule("*", CHANNELS, TOKENS, MENU), (5, 8)),
    "mlp LSQ W4A8": (MLP, Rule("*", SiteRule("lsq"), SiteRule("lsq"), MENU), (4, 8)),
    "cnn W8A8": (DigitsCNN, Rule("*", CHANNELS, TENSOR, MENU), (8, 8)),
    "cnn mixed": (DigitsCNN, Rule("*", CHANNELS, TENSOR, MENU), MIXED_CNN),
    "cnn mixed, with W4A4": (DigitsCNN, Rule("*", CHANNELS, TENSOR, MENU), ALL_CNN),
}


@pytest.mark.parametrize("name", CASES)
def test_qwix_computes_the_same_with_these_rules(name):
    qwix = pytest.importorskip("qwix", reason="qwix, of the extra peers, is not installed")
    module, rule, bits = CASES[name]
    model, params, qparams, rows, x = quantized(module(10), (rule,), bits)
    content = json.loads(qwix_json(model, params, qparams, rows, {}))
    assert content["differences"] == []
    rules = [qwix.QuantizationRule(**rule) for rule in content["rules"]]
    provider = qwix.PtqProvider(rules)
    pairs = {(rule.get("weight_qtype"), rule.get("act_qtype")) for rule in content["rules"]}
    if jax.default_backend() == "cpu" and any({*pair} <= {"int2", "int3", "int4"} for pair in pairs):
        pytest.skip("Qwix multiplies int4 by int4, which XLA does not compile for CPUs")
    theirs = qwix.quantize_model(module(10), provider)
    shapes = jax.eval_shape(lambda: theirs.init(jax.random.key(0), x, False))["params"]
    stored = {**params, "params": qwix.quantize_params(params["params"], shapes)}
    found, expected = theirs.apply(stored, x, False), model.apply(params, qparams, x, rows)
    assert not provider.get_unused_rules()
    in_float = model.fn(params, x)
    print(f"{name}: {np.max(np.abs(found - expected)):.1e}, float {np.max(np.abs(found - in_float)):.1e}")
    np.testing.assert_allclose(found, expected, atol=2e-3, rtol=0)
    # What quantizing changes is more than that, or else agreeing would take none.
    assert np.max(np.abs(expected - in_float)) > 20 * np.max(np.abs(found - expected))


# ---- What the file says


@pytest.mark.parametrize("name", CASES)
def test_what_qwix_can_do_has_no_differences(name):
    module, rule, bits = CASES[name]
    rules, found = differences(module(10), (rule,), bits)
    assert found == []
    model_bits = np.broadcast_to(bits, (len(rules), 2))
    for rule, (weight, _) in zip(rules, model_bits):
        assert rule.get("weight_qtype") == (None if weight == 32 else f"int{weight}")


def test_the_rules_of_a_layer_by_hand():
    model, params, qparams, rows, x = quantized(MLP(10), CASES["mlp mixed"][1:2], ALL_MLP)
    rules, _ = qwix_rules(model, params, qparams, rows)
    assert [rule["module_path"] for rule in rules] == ["linear1", "linear2", "linear3"]
    assert [rule["weight_qtype"] for rule in rules] == ["int8", "int4", "int3"]
    assert [rule["act_qtype"] for rule in rules] == ["int8", "int8", "int4"]
    # The scale is absmax / (2^(b-1) - 1); Qwix divides by 2^(b-1) - 1/2.
    factors = [float(rule["weight_calibration_method"].removeprefix("absmax,")) for rule in rules]
    np.testing.assert_allclose(factors, [127.5 / 127, 7.5 / 7, 3.5 / 3], rtol=1e-6)
    # Pixels and what a ReLU leaves are not negative: 256 steps from 0 to their largest.
    low, high = map(float, rules[0]["act_calibration_method"].removeprefix("fixed,").split(","))
    assert low == 0
    assert high == pytest.approx(float(jnp.max(x)))


PER_CHANNEL_INPUT = SiteRule(granularity="per_channel", range="minmax")
AFFINE = SiteRule(granularity="per_channel", symmetric=False, range="minmax")
OTHERWISE = {
    # (weight, input, bits, methods): (operand, what is said of linear1)
    (SiteRule(granularity="per_channel", range="mse"), TENSOR, (4, 8), ()): (
        "weight",
        "its scales are its own here; Qwix takes the absmax of every channel",
    ),
    (AFFINE, TENSOR, (4, 8), ()): ("weight", "not symmetric integers"),
    (SiteRule("nf4", "per_channel"), None, (4, 32), ()): ("weight", "not symmetric integers"),
    (CHANNELS, TENSOR, (4, 8), ("gptq",)): ("weight", "its codes are not those of the nearest steps here"),
    (CHANNELS, TENSOR, (4, 8), ("bias_correction",)): ("layer", "post-training methods left it a shift"),
    (CHANNELS, TENSOR, (4, 6), ()): ("input", "its codes are 0 to 63 here; those of Qwix are -32 to 31"),
    (CHANNELS, PER_CHANNEL_INPUT, (4, 8), ()): ("input", "its scales are per channel here"),
    (CHANNELS, SiteRule("dynamic"), (4, 8), ()): ("input", "its range is found otherwise here"),
    (None, TENSOR, (32, 8), ()): ("layer", "left in float: Qwix quantizes no input beside a weight in float"),
    (CHANNELS, TENSOR, (1, 8), ()): ("layer", "left in float: Qwix has no integers of 1 bits"),
    (CHANNELS, TENSOR, (0, 8), ()): ("layer", "left in float: Qwix has no integers of 0 bits"),
}


@pytest.mark.parametrize(("case", "said"), OTHERWISE.items(), ids=range(len(OTHERWISE)))
def test_what_qwix_does_otherwise_is_said(case, said):
    weight, x, bits, methods = case
    rules, found = differences(MLP(10), (Rule("*", weight, x),), bits, methods)
    assert found[0].layer == "linear1/kernel"
    assert found[0].operand == said[0]
    assert said[1] in found[0].what
    assert len({difference.layer for difference in found}) == 3
    assert ("weight_qtype" in rules[0]) == ("left in float" not in said[1])


@pytest.mark.parametrize("bits", [(4, 8), (8, 32)])
def test_a_convolution_of_two_types_is_left_in_float(bits):
    rules, found = differences(DigitsCNN(10), (Rule("*", CHANNELS, TENSOR),), bits)
    assert {difference.layer for difference in found} == {f"conv{i}/kernel" for i in range(1, 5)}
    assert {difference.what for difference in found} == {
        "left in float: a convolution of Qwix has one type for weight and input"
    }
    assert rules[0] == {"module_path": "conv1"}
    assert rules[-1]["weight_qtype"] == f"int{bits[0]}"
