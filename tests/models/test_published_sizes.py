"""Parameters, layers and multiply-accumulates of every model, at its own example: nothing is computed."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qresearch.graph import find_layers
from qresearch.graph.handlers import identity
from qresearch.graph.trace import trace
from qresearch.models import MODELS
from qresearch.qmodel import quantize_model
from qresearch.rules import Rule, SiteRule

# name: (classes, trainable parameters), and where the number is published.
PARAMETERS = {
    # Where no source is named, none publishes a number: these count what the model's docstring says.
    "mlp": (10, 17_226),
    "digits_cnn": (10, 25_370),
    "nnx_cnn": (10, 14_458),
    "lenet5": (10, 1_663_370),  # McMahan et al., https://arxiv.org/abs/1602.05629, section 3
    "vgg7": (10, 12_979_082),  # Li et al., https://arxiv.org/abs/1605.04711, section 3, name the layers, no number
    "resnet20": (10, 269_722),  # README of pytorch_resnet_cifar10 (option A): 0.27M, 0.46M, 0.85M
    "resnet32": (10, 464_154),
    "resnet56": (10, 853_018),  # 855,770, sometimes quoted, are those of option B: 2,752 more, in two projections
    "preact_resnet20": (10, 269_722),  # that of ResNet-20: its norms see as many channels in all
    "resnet18": (1000, 11_689_512),  # torchvision's model pages, num_params
    "resnet50": (1000, 25_557_032),
    "mobilenet_v2": (1000, 3_504_872),
    "vit_tiny": (1000, 5_717_416),  # DeiT paper, table 1: 5M; timm's deit_tiny_patch16_224: 5,717,416
    # 12 w² + 13 w per block, 2 w for the last norm, 65 w for the embedding, w = 192.
    "gpt": (65, 2 * (12 * 192**2 + 13 * 192) + (2 + 65) * 192),
    "detector": (10, 144_639),
}

# Multiply-accumulates of one image in billions: "GFLOPS" on torchvision's model pages.
GIGA_MACS = {"resnet18": 1.814, "resnet50": 4.089, "mobilenet_v2": 0.3008}

LAYERS = {"resnet20": 20, "resnet32": 32, "resnet56": 56, "preact_resnet20": 20, "resnet18": 21, "resnet50": 54}

QUICK = ("mlp", "nnx_cnn", "lenet5", "gpt", "detector")  # compiled twice in a few seconds

every_model = pytest.mark.parametrize("name", MODELS)


@functools.cache
def traced(name):
    """(variables as shapes, graph) for a batch of two: one would hide macs that are counted per batch."""
    model = MODELS[name](PARAMETERS[name][0])
    inputs = jax.ShapeDtypeStruct((2, *model.example.shape), model.example.dtype)
    variables = jax.eval_shape(model.init, jax.random.key(0), inputs)
    return variables, trace(model.apply, variables, inputs)


def named(tree):
    """Leaves by their path, as layers are named."""
    paths = jax.tree_util.tree_leaves_with_path(tree)
    return {"/".join(key.key for key in path): leaf for path, leaf in paths}


@every_model
def test_parameter_counts(name):
    variables, _ = traced(name)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == PARAMETERS[name][1]


@pytest.mark.parametrize("name", GIGA_MACS)
def test_multiply_accumulates(name):
    _, graph = traced(name)
    assert math.isclose(sum(layer.macs for layer in graph.layers) / 1e9, GIGA_MACS[name], rel_tol=0.01)


@every_model
def test_every_kernel_is_a_layer(name):
    variables, graph = traced(name)
    kernels = {path for path in named(variables["params"]) if path.rpartition("/")[2] == "kernel"}
    found = [layer.name for layer in graph.layers]
    assert len(set(found)) == len(found)
    assert kernels <= set(found)
    # The only other kernel is GPT-2's: its logits are the embedding again.
    assert set(found) - kernels == ({"tokens/embedding"} if name == "gpt" else set())
    assert all(layer.whole and layer.calls == 1 for layer in graph.layers)
    assert len(graph.layers) == LAYERS.get(name, len(graph.layers))


@every_model
def test_what_is_no_layer_is_an_attention_product(name):
    _, graph = traced(name)
    blocks = {"gpt": 2, "vit_tiny": 12}.get(name, 0)
    assert len(graph.unassigned) == 2 * blocks
    assert all(not found.refused and "both operands depend on the input" in found.reason for found in graph.unassigned)


def test_attention_products_are_counted():
    _, graph = traced("gpt")
    # q·k and p·v: time * time * width each, in every block; the mask saves nothing in a dense product.
    assert [found.macs for found in graph.unassigned] == [128 * 128 * 192] * 4


def test_depthwise_convolutions_have_a_group_per_channel():
    _, graph = traced("mobilenet_v2")
    depthwise = [layer for layer in graph.layers if "depthwise" in layer.name]
    assert len(depthwise) == 17
    for layer in depthwise:
        assert layer.contraction.weight_shape[-2] == 1
        assert layer.contraction.feature_groups == layer.contraction.weight_shape[-1]


@every_model
def test_find_layers_refuses_nothing(name):
    model = MODELS[name](PARAMETERS[name][0])
    variables, graph = traced(name)
    inputs = jax.ShapeDtypeStruct((2, *model.example.shape), model.example.dtype)
    assert [layer.name for layer in find_layers(model.apply, variables, inputs)] == [
        layer.name for layer in graph.layers
    ]


@every_model
def test_every_model_quantizes(name):
    variables, graph = traced(name)
    example = MODELS[name](PARAMETERS[name][0]).example
    x = jax.ShapeDtypeStruct((2, *example.shape), example.dtype)
    sites = SiteRule(granularity="per_channel", range="minmax"), SiteRule(signed=True, range="minmax")
    first = graph.layers[0].name
    rules = (Rule(first, *sites, menu=((8, 8),)), Rule("*", *sites, menu=((4, 4), (8, 8))))
    model = quantize_model(MODELS[name](PARAMETERS[name][0]).apply, variables, x, rules)
    assert [layer.name for layer in model.layers] == [layer.name for layer in graph.layers]
    assert [len(menu) for menu in model.menus] == [1, *[2] * (len(graph.layers) - 1)]
    bits = jax.ShapeDtypeStruct((len(model.layers), 2), jnp.float32)
    qparams = jax.eval_shape(model.init, variables, x, bits)
    outputs = jax.eval_shape(model.apply, variables, qparams, x, bits)
    assert outputs.shape == jax.eval_shape(model.fn, variables, x).shape
    for layer in model.layers:
        low = qparams[layer.name]["weight"].low
        assert low.size == np.prod([layer.contraction.weight_shape[i] for i in layer.contraction.channel_axes])


def test_the_tied_logits_are_a_layer_of_their_own_rule():
    variables, _ = traced("gpt")
    x, site = jax.ShapeDtypeStruct((2, 128), jnp.int32), SiteRule(signed=True, range="minmax")
    rules = (Rule("tokens/embedding", site, site, menu=((8, 8),)), Rule("*", None, None))
    model = quantize_model(MODELS["gpt"](65).apply, variables, x, rules)
    assert [layer.name for layer in model.layers] == ["tokens/embedding"]
    assert (model.layers[0].macs, model.layers[0].size) == (128 * 192 * 65, 192 * 65)


@pytest.mark.parametrize(("name", "blocks", "embeddings"), [("gpt", 2, ["tokens/embedding"]), ("vit_tiny", 12, [])])
def test_attention_products_and_embeddings_are_layers_where_a_rule_asks(name, blocks, embeddings):
    variables, graph = traced(name)
    model, site = MODELS[name](PARAMETERS[name][0]), SiteRule(signed=True, range="minmax")
    x = jax.ShapeDtypeStruct((2, *model.example.shape), model.example.dtype)
    asked = [Rule("product:*", site, site), *(Rule(f"embedding:{path}", site, None) for path in embeddings)]
    quantized = quantize_model(model.apply, variables, x, (*asked, Rule("*", site, site)))
    names = {layer.name for layer in quantized.layers}
    # The first product of a block is q·k, the second p·v.
    products = {f"product:block{i}/attention{use}" for i in range(blocks) for use in ("", "#2")}
    assert names == {layer.name for layer in graph.layers} | products | {f"embedding:{path}" for path in embeddings}
    bits = jax.ShapeDtypeStruct((len(names), 2), jnp.float32)
    qparams = jax.eval_shape(quantized.init, variables, x, bits)
    outputs = jax.eval_shape(quantized.apply, variables, qparams, x, bits)
    assert outputs.shape == jax.eval_shape(model.apply, variables, x).shape


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name not in QUICK)) for name in MODELS]
)
def test_running_the_graph_is_the_model(name):
    model = MODELS[name](5)
    shape = (2, *(min(size, 32) for size in model.example.shape[:2]), *model.example.shape[2:])
    x = jax.random.randint(jax.random.key(0), shape, 0, 5, jnp.int32)
    x = x.astype(model.example.dtype)
    variables = jax.jit(model.init)(jax.random.key(1), x)
    graph = trace(model.apply, variables, x)
    ran = jax.jit(lambda variables, x: graph.run(identity, variables, x)[0])(variables, x)
    np.testing.assert_array_equal(ran, jax.jit(model.apply)(variables, x))
