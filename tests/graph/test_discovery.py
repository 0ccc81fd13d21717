"""Every contraction of a model is a layer, or is reported with the reason why not."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from graph.zoo import BATCH, ZOO, X, draw, kernel
from jax import lax
from jax.extend import core

from qresearch.graph import find_layers, trace
from qresearch.graph.handlers import record

W = kernel(0, 8, 8)

ATTENTION = "MultiHeadDotProductAttention_0"
# In the order of execution, by hand.
NAMES = {
    "mlp": ["hidden/w", "out/w"],
    "square": ["right", "left"],
    "einsums": ["q", "k", "v", "o"],
    "derived": ["scaled", "normed/v", "base", "first", "cast", "transposed", "masked"],
    "fused_qkv": ["qkv", "qkv#2", "qkv#3", "out"],
    "shared": ["w", "w#2", "w#3", "out"],
    "autoencoder": ["w", "w#2"],
    "experts": ["w", "gate"],
    "custom_rules": ["a", "b", "b2", "c"],
    "nested_jit": ["a", "b", "c"],
    "remat_policy": ["a", "a#2", "b", "b#2", "c"],
    "control_flow": ["a", "b"],
    "scan_stack": ["blocks/w@0", "blocks/w@1", "blocks/w@2", "every", "out"],
    "scan_reverse": ["w@0", "w@1", "w@2"],
    "scan_single": ["w@0"],
    "scan_nested": [
        *(f"stack@{outer}@{inner}" for outer in range(3) for inner in range(2)),
        *("own@0", "own@1", "own@2", "again@0", "again@1"),
    ],
    "scan_rnn": ["in", "recurrent", "out"],
    "scan_remat": ["w@0", "w@1", "w@2", "w#2@0", "w#2@1", "w#2@2"],
    "looped": ["mapped", "loop"],
    "convolutions": ["same", "grouped", "depthwise", "strided", "dilated", "transposed", "dense"],
    "one_dimensional": ["conv", "torch"],
    "linen_cnn": ["Conv_0/kernel", "Conv_1/kernel", "ConvTranspose_0/kernel", "Dense_0/kernel"],
    "linen_train": ["Conv_0/kernel", "Conv_1/kernel", "ConvTranspose_0/kernel", "Dense_0/kernel"],
    "linen_transformer": [
        *(f"{ATTENTION}/{part}/kernel" for part in ("query", "key", "value", "out")),
        *("Dense_1/kernel", "Dense_0/kernel"),
    ],
    "linen_tied": ["Dense_0/kernel", "Embed_0/embedding"],
    "linen_scan": [
        *(f"blocks/Dense_1/kernel@{i}" for i in range(3)),
        *(f"blocks/Dense_0/kernel@{i}" for i in range(3)),
        "head/kernel",
    ],
    "linen_lstm": ["cell/hi/kernel", "cell/ii/kernel"],
    "linen_bf16": ["Dense_0/kernel", "Dense_1/kernel"],
    "nnx_train": ["conv/kernel", "layers/0/kernel", "layers/1/kernel"],
    "nnx_eval": ["conv/kernel", "layers/0/kernel", "layers/1/kernel"],
    "nnx_scan": ["stack/kernel@0", "stack/kernel@1", "stack/kernel@2"],
    "pytree": ["query", "value", "layers/0/weight", "layers/1/weight"],
}
# The number of contractions that are no layers: products of activations (attention, gating) and of LoRA's factors.
UNASSIGNED = {"square": 1, "einsums": 2, "derived": 1, "fused_qkv": 2, "experts": 1, "linen_transformer": 2}

every_model = pytest.mark.parametrize("name", ZOO)


def shapes_of(tree):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)


def count_macs(jaxpr, times=1):
    """All contractions of a jaxpr, counted without qresearch: elements of the left operand by outputs of the right."""
    total = 0
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    for equation in jaxpr.eqns:
        left, right = ([*atom.aval.shape] for atom in [*equation.invars, *equation.outvars * 2][:2])
        if equation.primitive.name == "dot_general":
            (_, contracting), (_, batch) = equation.params["dimension_numbers"]
            free = [size for axis, size in enumerate(right) if axis not in (*contracting, *batch)]
            total += times * math.prod(left) * math.prod(free)
        if equation.primitive.name == "conv_general_dilated":
            output = equation.params["dimension_numbers"].rhs_spec[0]
            total += times * math.prod(equation.outvars[0].aval.shape) * math.prod(right) // right[output]
        inner = times * (equation.params["length"] if equation.primitive.name == "scan" else 1)
        total += sum(count_macs(sub, inner) for sub in core.jaxprs_in_params(equation.params))
    return total


@every_model
def test_the_layers_have_the_names_of_their_parameters(name):
    layers = find_layers(*ZOO[name])
    assert [layer.name for layer in layers] == NAMES[name]
    paths = {"/".join(str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", "")))) for key in path)
             for path, _ in jax.tree.leaves_with_path(ZOO[name].params)}  # fmt: skip
    assert {layer.parameter for layer in layers} <= paths | {path.removesuffix("/value") for path in paths}


@every_model
def test_shapes_are_enough(name):
    fn, params, x = ZOO[name]
    assert find_layers(fn, shapes_of(params), shapes_of(x)) == find_layers(fn, params, x)


@every_model
def test_no_contraction_is_lost(name):
    fn, params, x = ZOO[name]
    graph = trace(fn, params, x)
    # A scanned layer stands for one iteration each, so that a sum over layers is a sum over executions.
    found = sum(entry.macs for entry in (*graph.layers, *graph.unassigned)) * BATCH
    if name == "square":
        found = found // BATCH * 16
    assert found == count_macs(jax.make_jaxpr(fn)(params, x))


@every_model
def test_what_is_not_a_layer_is_reported_with_reason_macs_and_place(name):
    unassigned = trace(*ZOO[name]).unassigned
    assert len(unassigned) == UNASSIGNED.get(name, 0)
    for found in unassigned:
        assert found.macs > 0
        assert found.reason
        assert not found.refused
        assert ".py" in found.source


@every_model
def test_kernel_axes_are_either_contracted_or_channels(name):
    for layer in find_layers(*ZOO[name]):
        contraction = layer.contraction
        axes = (*contraction.channel_axes, *contraction.weight_contracting)
        assert sorted(axes) == list(range(len(contraction.weight_shape)))
        assert layer.size == math.prod(contraction.weight_shape)


@pytest.mark.parametrize("name", ["einsums", "experts", "square", "convolutions", "one_dimensional"])
def test_contracted_axes_of_kernel_and_input_belong_together(name):
    # To drop an index of the kernel is to drop it of the input, whatever the layout.
    fn, params, x = ZOO[name]

    def without_first(array, axis):
        return array.at[(slice(None),) * axis + (0,)].set(0)

    def handler(call):
        facts = call.site.contraction
        pairs = list(zip(facts.weight_contracting, facts.input_contracting, strict=False))
        if facts.feature_groups > 1:
            pairs = []  # an index of a grouped kernel is one of every group
        differences = [
            (
                call.contract(without_first(call.weight, k), call.input),
                call.contract(call.weight, without_first(call.input, i)),
            )
            for k, i in pairs
        ]
        output = call.contract(call.weight, call.input)
        return output, [(a, b, output) for a, b in differences]

    checked = 0
    for pairs in trace(fn, params, x).run(handler, params, x)[1].values():
        for dropped_kernel, dropped_input, output in pairs:
            np.testing.assert_allclose(dropped_kernel, dropped_input, atol=1e-6)
            assert not np.allclose(dropped_kernel, output, atol=1e-4)
            checked += 1
    assert checked >= 2


def test_shapes_never_decide():
    # The batch, the input, and both kernels are 16 x 16, and each kernel stands on another side.
    right, left = find_layers(*ZOO["square"])
    assert (right.contraction.weight_operand, left.contraction.weight_operand) == (1, 0)
    fn, params, x = ZOO["square"]
    recorded = trace(fn, params, x).run(record, params, x)[1]
    np.testing.assert_array_equal(recorded["right"]["weight"][0], params["right"])
    np.testing.assert_array_equal(recorded["left"]["weight"][0], params["left"])
    np.testing.assert_array_equal(recorded["left"]["input"][0], x.T)


def test_recorded_tensors_are_those_of_the_model():
    fn, params, x = ZOO["mlp"]
    recorded = trace(fn, params, x).run(record, params, x)[1]
    hidden = jax.nn.relu(x @ params["hidden"]["w"] + params["hidden"]["b"])
    np.testing.assert_array_equal(recorded["out/w"]["input"][0], hidden)
    fn, params, x = ZOO["convolutions"]
    recorded = trace(fn, params, x).run(record, params, x)[1]
    np.testing.assert_array_equal(recorded["grouped"]["weight"][0], params["grouped"])
    assert recorded["strided"]["input"].shape == (1, BATCH, 4, 4, 8)


def test_the_slices_of_a_fused_kernel_are_layers_of_their_own():
    fn, params, x = ZOO["fused_qkv"]
    recorded = trace(fn, params, x).run(record, params, x)[1]
    for i, name in enumerate(["qkv", "qkv#2", "qkv#3"]):
        np.testing.assert_array_equal(recorded[name]["weight"][0], params["qkv"][:, 8 * i : 8 * i + 8])
    assert [layer.whole for layer in find_layers(fn, params, x)] == [False, False, False, True]


def test_depthwise_and_transposed_kernels_know_their_channels():
    layers = {layer.name: layer.contraction for layer in find_layers(*ZOO["convolutions"])}
    assert (layers["depthwise"].feature_groups, layers["depthwise"].channel_axes) == (4, (3,))
    assert (layers["grouped"].feature_groups, layers["grouped"].weight_shape) == (2, (3, 3, 2, 4))
    assert layers["transposed"].channel_axes == (3,)
    torch = find_layers(*ZOO["one_dimensional"])[1].contraction
    assert (torch.channel_axes, torch.weight_contracting, torch.input_contracting) == ((0,), (1, 2), (1,))


# --- what cannot be a layer ----------------------------------------------------------------------------------------


def unassigned(fn, params=None, x=X):
    graph = trace(fn, params or {"w": W}, x)
    return [layer.name for layer in graph.layers], graph.unassigned


def test_a_kernel_that_is_closed_over_is_reported():
    layers, (found,) = unassigned(lambda p, x: x @ W @ p["w"])
    assert layers == ["w"]
    assert "closes over" in found.reason
    assert found.macs == 64


def test_a_product_of_activations_inside_a_scan_counts_every_iteration():
    def fn(p, x):
        return lax.scan(lambda h, _: (x @ h, None), x.T, None, 5)[0] @ p["w"]

    layers, (found,) = unassigned(fn, x=draw(0, 8, 8))
    assert layers == ["w"]
    assert (found.macs, "depend on the input" in found.reason) == (5 * 8 * 8, True)


def test_a_kernel_that_a_loop_counter_picks_is_reported():
    stack = {"w": kernel(0, 3, 8, 8)}
    layers, (found,) = unassigned(lambda p, x: lax.fori_loop(0, 3, lambda i, h: h @ p["w"][i], x), stack)
    assert layers == []
    assert "counter" in found.reason
    assert found.macs == 3 * 64


def test_a_parameter_that_is_convolved_as_an_image_is_reported():
    numbers = ("NHWC", "HWIO", "NHWC")

    def fn(p, x):
        return lax.conv_general_dilated(p["w"], x.reshape(1, 1, 4, 8), (1, 1), "SAME", dimension_numbers=numbers)

    layers, (found,) = unassigned(fn, {"w": draw(0, 1, 3, 3, 4)})
    assert layers == []
    assert "image" in found.reason


def test_contractions_of_parameters_alone_are_reported():
    def fn(p, x):
        return x @ (p["w"] + p["a"] @ p["b"]) + jnp.eye(4) @ jnp.ones((4, 8))

    layers, (product, constant) = unassigned(fn, {"w": W, "a": W[:, :2], "b": W[:2]})
    assert layers == ["w"]
    assert ("parameters alone" in product.reason, product.macs) == (True, 8 * 2 * 8 // BATCH)
    assert "constants alone" in constant.reason


def test_a_kernel_is_followed_through_primitives_of_several_values():
    def fn(p, x):
        w, x = lax.optimization_barrier((p["w"], x))
        return x @ w

    assert unassigned(fn) == (["w"], ())
