"""Quantized layers: what ONNX Runtime computes from the exported codes is what JAX computes from the same codes."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import pytest
from onnx_cases import LAYERS, ROUNDING, convolution, differences, draw, frozen_layer, frozen_of

from qresearch.export.onnx import SESSION_OPTIONS, export_onnx, reduced_range
from qresearch.export.onnx.files import make_session
from qresearch.rules import Rule, SiteRule

INPUT = SiteRule(range="minmax")
KERNEL = SiteRule(granularity="per_channel", range="minmax")


def written(frozen, x, given=None):
    """The exported layer, after a check that both levels of optimization give what the frozen model gives."""
    exported = export_onnx(frozen, x)
    given = x if given is None else given
    assert max(differences(exported.model, given, frozen.apply(given, "dequantized")).values()) <= ROUNDING
    return exported.layers[0]


CASES = [  # 2 and 4 bits share a container: one of them is for the slow suite
    pytest.param(case, bits, granularity, marks=[pytest.mark.slow] * (bits == 4))
    for case, bits, granularity in itertools.product(LAYERS, (2, 4, 8), ("per_tensor", "per_channel", "per_group"))
    if (case, granularity) != ("depthwise", "per_group")  # it sums over one channel
]


@pytest.mark.parametrize(("case", "bits", "granularity"), CASES)
def test_a_layer_gives_what_its_codes_give(case, bits, granularity):
    site = SiteRule(granularity=granularity, group_size=4 if granularity == "per_group" else None, range="minmax")
    layer = written(*frozen_layer(case, site, INPUT, (bits, 8), seed=bits // 2 + len(case)))
    assert layer.weight.container == ("INT8" if bits == 8 else "INT4")
    assert ("held in" in layer.weight.note) == (bits == 2)


@pytest.mark.parametrize("bits", [5, 12, *(pytest.param(bits, marks=pytest.mark.slow) for bits in (2, 8))])
@pytest.mark.parametrize("options", [{}, {"narrow": True, "signed": True}, {"symmetric": False}], ids=str)
def test_data_saturates_where_its_grid_ends(bits, options):
    """Values far outside the calibrated range, and ties."""
    frozen, x = frozen_layer("dense", KERNEL, SiteRule(range="minmax", **options), (8, bits), seed=bits)
    far = np.concatenate([10 * x, -10 * x, np.round(4 * x) / 4])
    assert written(frozen, x, far).input.container.endswith("INT16" if bits == 12 else "INT8")


def test_four_bits_after_a_relu_keep_it():
    """ONNX Runtime 1.31 drops a Relu before a QuantizeLinear to int4: data has 8 bits at least."""
    params = {"layer": {"kernel": draw(0, 8, 4)}}
    rules = (Rule(weight=KERNEL, input=SiteRule(range="minmax", signed=True)),)
    x = draw(1, 5, 8)
    frozen = frozen_of(lambda params, x: jax.nn.relu(x) @ params["layer"]["kernel"], params, x, rules, (4, 4))
    assert written(frozen, x).input == ("INT8", "4 bits held in 8")


@pytest.mark.parametrize(
    ("site", "container", "note"),
    [
        (SiteRule("nf4", granularity="per_group", group_size=4), "decoded", "codebook"),
        (SiteRule("dorefa"), "INT8", "zero-points are halves"),
        (SiteRule("minmax", granularity="per_channel", symmetric=False), "INT4", ""),
        (None, "float", ""),
    ],
)
def test_kernels_of_other_methods(site, container, note):
    operand = written(*frozen_layer("dense", site, INPUT, (4, 8))).weight
    assert operand.container == container
    assert note in operand.note
    assert bool(note) == bool(operand.note)


@pytest.mark.parametrize(
    ("site", "container", "note"),
    [
        (SiteRule("dynamic"), "computed", "taken from every tensor"),
        (SiteRule("dynamic", granularity="per_token", symmetric=False), "computed", "taken from every tensor"),
        (SiteRule("minmax", granularity="per_channel"), "computed", "vary along what is summed"),
        (SiteRule("minmax", rounding="floor"), "computed", "rounded half to even"),
        (None, "float", ""),
    ],
)
def test_data_of_other_methods(site, container, note):
    operand = written(*frozen_layer("dense", KERNEL, site, (8, 5), seed=1)).input
    assert operand.container == container
    assert note in operand.note
    assert bool(note) == bool(operand.note)


def test_data_that_onnx_cannot_compute_is_left_in_float_and_it_says_so():
    frozen, x = frozen_layer("dense", KERNEL, SiteRule("fp8_e4m3", range=None), (8, 8), seed=1)
    exported = export_onnx(frozen, x)
    operand = exported.layers[0].input
    assert operand.container == "float"
    assert "left in float" in operand.note
    assert "primitive 'bitcast_convert_type'" in operand.note
    alone, _ = frozen_layer("dense", KERNEL, None, (8, 32), seed=1)
    assert max(differences(exported.model, x, alone.apply(x, "dequantized")).values()) <= ROUNDING


@pytest.mark.parametrize("option", [(0, 8), (8, 0), (32, 32), (32, 8), (4, 32)])
def test_pruned_and_float_operands(option):
    frozen, x = frozen_layer("dense", KERNEL, INPUT, option)
    if 0 not in option:
        assert written(frozen, x).bits == option
        return
    exported = export_onnx(frozen, x)
    assert "pruned" in exported.layers[0].weight.note + exported.layers[0].input.note
    zeros = np.asarray(frozen.apply(x, "dequantized"))
    assert not zeros.any()
    assert max(differences(exported.model, x, zeros + 1).values()) == 1


def test_a_reduced_range_leaves_seven_bits_of_weights():
    bits = np.array([[8, 8], [4, 8], [32, 8], [0, 4]])
    np.testing.assert_array_equal(reduced_range(bits), [[7, 8], [4, 8], [32, 8], [0, 4]])
    frozen, x = frozen_layer("dense", KERNEL, INPUT, (7, 8))
    model = export_onnx(frozen, x).model
    (codes,) = [found for found in model.graph.initializer if found.name == "layer/kernel/codes"]
    assert np.abs(np.frombuffer(codes.raw_data, np.int8)).max() == 63


def optimized_operators(frozen, x, path):
    """What ONNX Runtime makes of an exported model."""
    data = export_onnx(frozen, x).model.SerializeToString()
    make_session(data, True, SESSION_OPTIONS, save=path)
    return {node.op_type for node in onnx.load(path).graph.node}


def two_convolutions(params, x):
    hidden = jax.nn.relu(convolution({"layer": params["first"]}, x) + params["first"]["bias"])
    return convolution(params, hidden)


def test_onnx_runtime_finds_its_integer_kernels(tmp_path):
    path = tmp_path / "optimized.onnx"
    assert "MatMulIntegerToFloat" in optimized_operators(*frozen_layer("dense", KERNEL, INPUT, (8, 8)), path)
    assert "MatMulNBits" in optimized_operators(*frozen_layer("dense", KERNEL, None, (4, 32)), path)
    params = {
        "first": {"kernel": draw(0, 3, 3, 8, 6), "bias": draw(1, 1, 1, 1, 6)},
        "layer": {"kernel": draw(2, 3, 3, 6, 4)},
    }
    x = draw(3, 2, 8, 8, 8)
    frozen = frozen_of(two_convolutions, params, x, (Rule(weight=KERNEL, input=INPUT),), (8, 8))
    assert "QLinearConv" in optimized_operators(frozen, x, path)


def attended(params, tokens):
    x = jnp.take(params["tokens"]["embedding"], tokens, axis=0)
    query, key, value = (x @ params[name]["kernel"] for name in ("query", "key", "value"))
    return jax.nn.softmax(jnp.einsum("bqd,bkd->bqk", query, key)) @ value


def test_products_of_data_and_look_ups():
    params = {name: {"kernel": draw(i, 8, 8)} for i, name in enumerate(("query", "key", "value"))}
    params["tokens"] = {"embedding": draw(5, 12, 8)}
    tokens = np.arange(10, dtype=np.int32).reshape(2, 5) - 1
    data = SiteRule(range="minmax")
    rules = (Rule("embedding:*", weight=KERNEL), Rule("product:*", data, data), Rule(weight=KERNEL, input=INPUT))
    frozen = frozen_of(attended, params, tokens, rules, (4, 8))
    exported = export_onnx(frozen, tokens)
    containers = {
        layer.name.partition(":")[0]: (layer.weight.container, layer.input.container) for layer in exported.layers
    }
    assert containers.pop("embedding") == ("INT4", "float")
    assert containers.pop("product") == ("INT8", "UINT8")
    assert set(containers.values()) == {("INT4", "INT8")}
    assert max(differences(exported.model, tokens, frozen.apply(tokens, "dequantized")).values()) <= ROUNDING
