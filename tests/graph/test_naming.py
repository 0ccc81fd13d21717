"""Names: of layers after their parameters, of inputs beside them."""

from __future__ import annotations

import jax
import pytest
from flax import nnx
from graph.zoo import IMAGE, SEQUENCE, ZOO, NNXModel, X, kernel

from qresearch.errors import GraphError
from qresearch.graph import find_layers

W = kernel(0, 8, 8)


def test_params_may_be_any_pytree():
    assert [layer.name for layer in find_layers(lambda p, x: x @ p[0] @ p[1][0], (W, [W]), X)] == ["0", "1/0"]
    assert len(find_layers(lambda w, x: x @ w, W, X)) == 1


def test_a_parameter_called_value_keeps_its_name():
    params = {"attention": {"query": W, "value": W}, "other": {"value": W}}
    layers = find_layers(lambda p, x: x @ p["attention"]["value"] + x @ p["other"]["value"], params, X)
    assert [layer.name for layer in layers] == ["attention/value", "other/value"]


def test_an_nnx_module_or_its_state_gives_names_without_value():
    module = nnx.eval_shape(lambda: NNXModel(nnx.Rngs(0)))
    module.eval()
    assert [layer.name for layer in find_layers(lambda m, x: m(x), module, IMAGE)] == [
        "conv/kernel",
        "layers/0/kernel",
        "layers/1/kernel",
    ]


def test_the_params_collection_is_not_part_of_a_name_and_others_are():
    params = {"params": {"a": W}, "ema": {"a": W}}
    layers = find_layers(lambda p, x: x @ p["params"]["a"] @ p["ema"]["a"], params, X)
    assert [layer.name for layer in layers] == ["a", "ema/a"]


@pytest.mark.parametrize(
    "params",
    [{"params": {"a": W}, "a": W}, {"a/b": W, "a": {"b": W}}, {"a#2": W}, {"a@0": W}],
    ids=["collection", "slash", "use", "iteration"],
)
def test_names_that_could_be_confused_are_refused(params):
    with pytest.raises(GraphError, match="rename"):
        find_layers(lambda p, x: x @ jax.tree.leaves(p)[0], params, X)


def test_a_kernel_of_several_parameters_is_named_after_the_one_of_its_size():
    def lora(p, x):
        return x @ (p["a"] @ p["b"] + p["base"])

    rank_two = {"a": W[:, :2], "b": W[:2], "base": W}
    assert [layer.name for layer in find_layers(lora, rank_two, X)] == ["base"]
    larger = {"table": kernel(1, 10, 8, 8), "w": W}
    assert [layer.name for layer in find_layers(lambda p, x: x @ (p["table"].mean(0) * p["w"]), larger, X)] == ["w"]


@pytest.mark.parametrize(
    ("name", "site"),
    [("mlp", "hidden/input"), ("scan_stack", "blocks/input@0"), ("shared", "input"), ("fused_qkv", "input")],
)
def test_the_input_has_a_site_name_beside_the_kernel(name, site):
    assert find_layers(*ZOO[name])[0].input_site == site


def test_the_second_use_has_an_input_site_of_its_own():
    assert find_layers(*ZOO["shared"])[1].input_site == "input#2"


def test_a_vector_and_a_sequence_have_layers_too():
    assert [layer.macs for layer in find_layers(lambda w, x: x @ w, W[0], X)] == [8]
    assert [layer.macs for layer in find_layers(lambda w, x: x @ w, W, SEQUENCE)] == [5 * 64]
