"""Multiply-accumulates: against XLA's own count where it counts alike, by hand elsewhere."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from graph.zoo import ZOO, convolve, draw, kernel
from jax import lax

from qresearch.graph import find_layers, trace

BATCH = 4


def flops(fn, params, x):
    analysis = jax.jit(fn).lower(params, x).compile().cost_analysis()
    return (analysis[0] if isinstance(analysis, list) else analysis)["flops"]


def valid_convolutions(p, x):
    h = convolve(x, p["first"], padding="VALID")
    h = convolve(h, p["strided"], padding="VALID", strides=(2, 2))
    return h.reshape(x.shape[0], -1) @ p["dense"]


def dense_stack(p, x):
    return jnp.einsum("oi,bi->bo", p["last"], x @ p["first"])


# Without biases and activations, XLA's floating-point operations are exactly two per multiply-accumulate.
COUNTED = {
    "dense": (dense_stack, {"first": kernel(0, 8, 16), "last": kernel(1, 3, 16)}, draw(2, BATCH, 8)),
    "valid": (
        valid_convolutions,
        {"first": kernel(0, 3, 3, 3, 4), "strided": kernel(1, 2, 2, 4, 5), "dense": kernel(2, 80, 3)},
        draw(3, BATCH, 10, 10, 3),
    ),
    "grouped": (
        lambda p, x: convolve(x, p["w"], padding="VALID", feature_group_count=2),
        {"w": kernel(0, 3, 3, 2, 6)},
        draw(1, BATCH, 8, 8, 4),
    ),
    "dilated": (
        lambda p, x: convolve(x, p["w"], padding="VALID", rhs_dilation=(2, 2)),
        {"w": kernel(0, 3, 3, 3, 4)},
        draw(1, BATCH, 8, 8, 3),
    ),
}


@pytest.mark.parametrize("name", COUNTED)
def test_two_flops_are_one_mac(name):
    fn, params, x = COUNTED[name]
    assert flops(fn, params, x) == 2 * BATCH * sum(layer.macs for layer in find_layers(fn, params, x))


@pytest.mark.parametrize("name", ["mlp", "linen_transformer", "experts", "linen_tied"])
def test_flops_of_a_whole_model_are_its_macs_and_little_more(name):
    fn, params, x = ZOO[name]
    graph = trace(fn, params, x)
    macs = BATCH * sum(entry.macs for entry in (*graph.layers, *graph.unassigned))
    assert 2 * macs <= flops(fn, params, x) < 2 * macs + 60 * sum(leaf.size for leaf in jax.tree.leaves((params, x)))


# (macs per example, weights), by hand: outputs times kernel taps times input channels of a group.
BY_HAND = {
    "convolutions": {
        "same": (36 * 9 * 3 * 4, 9 * 3 * 4),  # 6 x 6 outputs: padding taps count
        "grouped": (16 * 9 * 2 * 4, 9 * 2 * 4),
        "depthwise": (16 * 9 * 1 * 8, 9 * 8),
        "strided": (4 * 9 * 8 * 4, 9 * 8 * 4),
        "dilated": (4 * 9 * 4 * 4, 9 * 4 * 4),
        "transposed": (16 * 9 * 4 * 2, 9 * 4 * 2),
        "dense": (32 * 3, 32 * 3),
    },
    "one_dimensional": {"conv": (3 * 3 * 8 * 4, 3 * 8 * 4), "torch": (2 * 2 * 4 * 3, 3 * 4 * 2)},
    "experts": {"w": (3 * 8 * 5, 3 * 8 * 5), "gate": (8 * 3, 8 * 3)},
    "scan_stack": {
        **{f"blocks/w@{i}": (64, 64) for i in range(3)},
        "every": (3 * 64, 64),
        "out": (16, 16),
    },
    "scan_rnn": {"in": (5 * 8 * 6, 48), "recurrent": (5 * 36, 36), "out": (18, 18)},
    "looped": {"mapped": (64, 64), "loop": (3 * 64, 64)},
    "linen_lstm": {"cell/hi/kernel": (5 * 6 * 24, 6 * 24), "cell/ii/kernel": (5 * 8 * 24, 8 * 24)},
    "einsums": dict.fromkeys("qkvo", (5 * 64, 64)),
    "linen_tied": {"Dense_0/kernel": (3 * 64, 64), "Embed_0/embedding": (3 * 56, 56)},
}


@pytest.mark.parametrize("name", BY_HAND)
def test_by_hand(name):
    assert {layer.name: (layer.macs, layer.size) for layer in find_layers(*ZOO[name])} == BY_HAND[name]


def test_training_and_evaluation_cost_the_same():
    # x is (images, key) in training: examples are counted along the images.
    costs = [[layer.macs for layer in find_layers(*ZOO[name])] for name in ("linen_cnn", "linen_train")]
    assert costs[0] == costs[1]


@pytest.mark.parametrize("name", ["mlp", "convolutions", "linen_transformer", "scan_rnn", "fused_qkv", "experts"])
@pytest.mark.parametrize("batch", [1, 7])
def test_macs_are_per_example(name, batch):
    fn, params, x = ZOO[name]
    other = jax.ShapeDtypeStruct((batch, *x.shape[1:]), x.dtype)
    graph, reference = trace(fn, params, other), trace(fn, params, x)
    assert [layer.macs for layer in graph.layers] == [layer.macs for layer in reference.layers]
    assert [found.macs for found in graph.unassigned] == [found.macs for found in reference.unassigned]


def test_examples_are_counted_along_the_first_array_of_x_with_an_axis():
    fn, params, x = ZOO["mlp"]
    for with_key in ((x, jax.random.key(0)), {"a_key": jax.random.key(0), "inputs": x}):
        layers = find_layers(lambda p, x: fn(p, jax.tree.leaves(x)[-1 if isinstance(x, dict) else 0]), params, with_key)
        assert [layer.macs for layer in layers] == [8 * 16, 16 * 3]


def test_ragged_dots_are_counted():
    for groups, macs in ((1, 64), (2, 64)):
        graph = trace(
            lambda w, x, n=groups: lax.ragged_dot(x, w, jnp.full((n,), BATCH // n, jnp.int32)),
            draw(0, groups, 8, 8),
            draw(1, BATCH, 8),
        )
        assert [found.macs for found in graph.unassigned] == [macs]
