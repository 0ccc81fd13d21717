"""Frozen models of the zoo: integers equal their simulation bit for bit, and need none of the float kernels."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from graph import product_cases
from quantized_models import CHANNELS, ENTRIES, QUICK, TENSOR, build, full

from qresearch.errors import GraphError
from qresearch.frozen import EXECUTIONS, freeze, run_frozen
from qresearch.kernels import KernelWeights
from qresearch.rules import Rule, SiteRule

SLOW = pytest.mark.slow
TRAINING = ("linen_train", "nnx_train")  # their x holds a random key
EACH = Rule(weight=CHANNELS, input=TENSOR, shared="each")


@functools.cache
def model_of(name):
    return build(ENTRIES[name], EACH if name == "autoencoder" else QUICK)


def frozen_of(own, bits, **options):
    """A frozen model, and the qparams it was made of."""
    bits = np.asarray(bits, np.float32)
    qparams = jax.jit(own.model.init)(own.params, own.x, bits)
    return freeze(own.model, own.params, qparams, bits, **options), qparams


def mixed_bits(model) -> np.ndarray:
    """Every layer at widths of its own, from 2 to 8."""
    generator = np.random.default_rng(len(model.layers))
    return generator.integers(2, 8, (len(model.layers), 2), endpoint=True).astype(np.float32)


def same(left, right):
    jax.tree.map(np.testing.assert_array_equal, left, right)


def close(left, right, tolerance=1e-4):
    def compare(a, b):
        half = a.dtype == jnp.bfloat16
        a, b = (np.asarray(value, np.float32) for value in (a, b))
        np.testing.assert_allclose(a, b, rtol=2e-2 if half else tolerance, atol=2e-2 if half else 1e-5)

    jax.tree.map(compare, left, right)


def paths_of(frozen):
    return {layer.path for layer in frozen.layers}


QUICKLY = ("mlp", "einsums", "shared", "experts", "scan_nested", "one_dimensional", "linen_tied", "linen_bf16", "cnn")


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n in QUICKLY else SLOW) for n in ENTRIES if n not in TRAINING],
)
def test_integers_are_their_simulation_and_need_no_kernels(name):
    own = model_of(name)
    bits = mixed_bits(own.model)
    frozen, qparams = frozen_of(own, bits)
    assert paths_of(frozen) == {"integer"}, [layer.reason for layer in frozen.layers]
    assert [[layer.weight_bits, layer.input_bits] for layer in frozen.layers] == bits.tolist()
    outputs = {execution: frozen.apply(own.x, execution) for execution in EXECUTIONS}
    same(outputs["integer"], outputs["codes"])
    close(outputs["integer"], outputs["dequantized"])
    close(outputs["dequantized"], own.apply(own.params, qparams, own.x, bits))
    kernels = {layer.parameter for layer in own.model.layers if layer.whole}
    also_in_float = {"params/Embed_0/embedding"} if name == "linen_tied" else set()
    assert frozen.arrays["params"].keys() & kernels == also_in_float


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n in ("linen", "gpt") else SLOW) for n in product_cases.NAMES],
)
def test_products_and_look_ups_run_on_codes_too(name):
    rules = (product_cases.PRODUCTS, product_cases.LOOKUPS)
    asked = [rule for rule in rules if any(n.startswith(rule.pattern[:-1]) for n in product_cases.NAMES[name])]
    own = build(product_cases.ENTRIES[name], *asked, product_cases.KERNELS)
    frozen, qparams = frozen_of(own, full(own.model, 6.0, 7.0))
    for layer in frozen.layers:
        look_up = layer.name.startswith("embedding:")
        assert layer.path == ("weight_only" if look_up else "integer"), layer.reason
    same(frozen.apply(own.x), frozen.apply(own.x, "codes"))
    close(frozen.apply(own.x), own.apply(own.params, qparams, own.x, full(own.model, 6.0, 7.0)))


def test_one_float_iteration_takes_the_others_out_of_integers():
    own = model_of("scan_stack")
    bits = np.array(full(own.model, 8.0))
    first = next(i for i, layer in enumerate(own.model.layers) if "@" in layer.name)
    bits[first] = 32.0, 32.0
    frozen, qparams = frozen_of(own, bits)
    base = own.model.layers[first].name.partition("@")[0]
    for layer in frozen.layers:
        among = layer.name.partition("@")[0] == base
        assert layer.path == ("simulated" if among else "integer")
        assert bool(layer.reason) == among
    close(frozen.apply(own.x), own.apply(own.params, qparams, own.x, bits))


@pytest.mark.parametrize(
    ("bits", "path", "reason"),
    [
        ((4, 32), "weight_only", "its input is in float"),
        ((32, 8), "simulated", "its weight is in float"),
        ((0, 8), "simulated", "it is pruned"),
        ((8, 0), "simulated", "it is pruned"),
        ((32, 32), "float", "neither operand is quantized"),
        ((9, 8), "simulated", "the codes of its kernel, -"),
        ((8, 12), "simulated", "the codes of its input, "),
    ],
)
def test_a_layer_without_integers_says_why(bits, path, reason):
    own = model_of("cnn")
    frozen, qparams = frozen_of(own, full(own.model, *bits))
    assert paths_of(frozen) == {path}
    assert all(layer.reason.startswith(reason) for layer in frozen.layers)
    for execution in EXECUTIONS:
        close(frozen.apply(own.x, execution), own.apply(own.params, qparams, own.x, full(own.model, *bits)))


@pytest.mark.parametrize("name", ["cnn", "linen_transformer"])
def test_fixed_point_is_its_simulation_and_near_the_float_one(name):
    own = model_of(name)
    fixed, _ = frozen_of(own, full(own.model, 8.0), requantize="fixed")
    in_float, _ = frozen_of(own, full(own.model, 8.0))
    same(fixed.apply(own.x), fixed.apply(own.x, "codes"))
    close(fixed.apply(own.x), in_float.apply(own.x), 0.02)  # a rounding tie may fall to the other side
    assert any(
        np.any(np.asarray(a) != np.asarray(b))
        for a, b in zip(*map(jax.tree.leaves, (fixed.apply(own.x), in_float.apply(own.x))))
    )


def test_a_larger_batch_and_a_gradient():
    own = model_of("cnn")
    frozen, _ = frozen_of(own, full(own.model, 4.0, 8.0))
    twice = jnp.concatenate([own.x, own.x])
    np.testing.assert_array_equal(frozen.apply(twice), jnp.concatenate([frozen.apply(own.x)] * 2))
    gradient = jax.grad(lambda x: frozen.forward(frozen.arrays, x, "dequantized").sum())(own.x)
    assert np.any(np.asarray(gradient) != 0)


def test_a_handler_of_ones_own_sees_every_layer_with_what_is_stored():
    own, seen = model_of("linen_cnn"), []
    frozen, _ = frozen_of(own, full(own.model, 4.0, 8.0))

    def handler(layer, unit, call, stored):
        seen.append((layer.name, unit.layer.name, stored["weight"].bits))
        return call.contract(call.weight, call.input)

    run_frozen(frozen, handler, frozen.arrays, own.x)
    assert seen == [(layer.name, layer.name, 4) for layer in own.model.layers]
    scanned = model_of("scan_stack")
    with pytest.raises(GraphError, match="scan's iterations"):
        run_frozen(frozen_of(scanned, full(scanned.model, 8.0))[0], handler, {"params": {}, "layers": {}}, scanned.x)


@pytest.mark.parametrize("name", TRAINING)
def test_a_training_function_is_refused(name):
    own = model_of(name)
    with pytest.raises(GraphError, match="holds a random key: give the function that predicts"):
        freeze(own.model, own.params, own.qparams, full(own.model, 8.0))


@pytest.mark.parametrize(
    ("bits", "options", "message"),
    [
        (np.full((3, 2), 2.5), {}, r"whole widths of shape \[3, 2\], got shape \(3, 2\) with 2.5"),
        (np.full((2, 2), 8), {}, r"got shape \(2, 2\)"),
        (np.full((3, 2), 8), {"requantize": "fixd"}, "unknown requantize 'fixd'; did you mean 'fixed'"),
    ],
)
def test_what_cannot_be_frozen_is_one_clear_line(bits, options, message):
    own = model_of("cnn")
    with pytest.raises(GraphError, match=message):
        freeze(own.model, own.params, own.qparams, bits, **options)


def test_an_unknown_execution_is_one_clear_line():
    own = model_of("cnn")
    with pytest.raises(GraphError, match="unknown execution 'integers'; did you mean 'integer'"):
        frozen_of(own, full(own.model, 8.0))[0].apply(own.x, "integers")


def test_groups_of_channels_and_dynamic_inputs():
    group = SiteRule(granularity="per_group", group_size=4, symmetric=False, range="minmax")
    for site in (
        SiteRule("dynamic", "per_token", range="minmax", symmetric=False),
        SiteRule("dynamic", "per_group", 4, range="minmax"),
        SiteRule("dynamic", "per_group", 8, range="minmax"),
    ):
        own = build(ENTRIES["fused_qkv"], Rule(weight=group, input=site))
        frozen, qparams = frozen_of(own, full(own.model, 4.0, 8.0))
        clash = site.group_size == 8
        assert paths_of(frozen) == ({"simulated"} if clash else {"integer"})
        assert not clash or "differ in size" in frozen.layers[0].reason
        same(frozen.apply(own.x), frozen.apply(own.x, "codes"))
        close(frozen.apply(own.x), own.apply(own.params, qparams, own.x, full(own.model, 4.0, 8.0)))


@pytest.mark.parametrize(
    "name",
    [
        "linen_tied",
        "linen_bf16",
        "scan_stack",
        *(pytest.param(n, marks=SLOW) for n in ("einsums", "fused_qkv", "convolutions")),
    ],
)
@pytest.mark.parametrize("bits", [4.0, pytest.param(8.0, marks=SLOW)])
def test_a_model_prepared_for_kernels_is_the_same_model(name, bits):
    group = SiteRule(granularity="per_group", group_size=2, symmetric=False, range="minmax")
    for weight in (CHANNELS, group) if name in ("fused_qkv", "einsums") else (CHANNELS,):
        own = build(ENTRIES[name], Rule(weight=weight, input=None))
        frozen, _ = frozen_of(own, full(own.model, bits, 32.0))
        ready = frozen.prepared()
        assert paths_of(frozen) == {"weight_only"}
        held = [isinstance(stored["weight"], KernelWeights) for stored in ready.arrays["layers"].values()]
        assert all(held) if name not in ("convolutions", "scan_stack") else not all(held)
        close(ready.apply(own.x), frozen.apply(own.x), 1e-5)
