"""Quantized models: one program for all allocations, memoization, errors, training mode."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from graph.zoo import IMAGE, ZOO, Compilations, LinenCNN, X, kernel
from quantized_models import (
    CHANNELS,
    CNN,
    QUICK,
    STEPS,
    TENSOR,
    build,
    case,
    full,
    small_cnn,
)

from qresearch.errors import GraphError
from qresearch.qmodel import quantize_model
from qresearch.rules import Rule, SiteRule

# --- one program for every allocation --------------------------------------------------------------------------------


def test_every_pair_of_widths_runs_in_one_compiled_program():
    traces = []

    def counted(p, x):
        traces.append(1)
        return small_cnn(p, x)

    model, params, x, qparams, apply = build(CNN._replace(fn=counted))
    exact = jax.jit(small_cnn)(params, x)
    apply(params, qparams, x, full(model, 8.0))
    traced = len(traces)
    widths = [*range(1, 9), 16, 32]
    pairs = [jnp.array([pair] * 3, jnp.float32) for pair in itertools.product(widths, widths)]
    with Compilations() as compilations:
        outputs = [apply(params, qparams, x, bits) for bits in pairs]
    assert (compilations.count, len(traces)) == (0, traced)
    assert all(jnp.isfinite(output).all() for output in outputs)
    errors = {tuple(bits[0].tolist()): float(jnp.abs(y - exact).max()) for bits, y in zip(pairs, outputs)}
    assert errors[32, 32] == 0.0  # bit for bit
    assert errors[16, 16] < errors[8, 8] < errors[4, 4] < errors[2, 2]
    assert len(set(errors.values())) > 90


def test_64_allocations_are_one_compilation():
    model, params, x, qparams, apply = case("linen_scan")
    rng = np.random.default_rng(0)
    allocations = [jnp.asarray(rng.integers(2, 9, (len(model.layers), 2)), jnp.float32) for _ in range(64)]
    with Compilations() as compilations:
        outputs = [apply(params, qparams, x, bits) for bits in allocations]
    assert compilations.count == 1
    assert len({output.tobytes() for output in map(np.asarray, outputs)}) == 64


@pytest.mark.parametrize("name", ["scan_nested", "linen_cnn", "nnx_scan", "linen_bf16"])
def test_float_widths_are_the_float_model_bit_for_bit(name):
    model, params, x, qparams, apply = case(name)
    outputs = apply(params, qparams, x, full(model, 32.0))
    np.testing.assert_array_equal(outputs, jax.jit(ZOO[name].fn)(params, x))


def test_zero_bits_prune():
    model, params, x, qparams, apply = case("cnn")
    bits = full(model, 32.0)
    expected = jax.jit(small_cnn)(params | {"hidden": 0 * params["hidden"]}, x)
    np.testing.assert_array_equal(apply(params, qparams, x, bits.at[1, 0].set(0.0)), expected)
    assert not np.any(apply(params, qparams, x, bits.at[2, 1].set(0.0)))


def test_odd_widths_give_finite_outputs_and_gradients():
    model, params, x, qparams, _ = case("cnn", STEPS)
    loss = jax.grad(lambda p, q, bits: jnp.sum(model.apply(p, q, x, bits) ** 2), argnums=(0, 1, 2))
    gradient = jax.jit(loss)
    for bits in (-3.0, 0.0, 0.5, 1.0, 2.5, 24.0, 31.0, 32.0, 200.0):
        values = gradient(params, qparams, full(model, bits))
        assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(values)), bits


def test_few_bits_on_both_operands_run_and_differ_for_dense_and_convolution():
    # Elsewhere weights and inputs of at most 4 bits crash on CPU.
    model, params, x, qparams, apply = case("cnn")
    outputs = [apply(params, qparams, x, full(model, bits)) for bits in (1.0, 2.0, 3.0, 4.0)]
    assert all(jnp.isfinite(output).all() for output in outputs)
    assert len({np.asarray(output).tobytes() for output in outputs}) == 4


def test_a_square_batch_through_a_square_layer():
    model, params, x, qparams, apply = case("square", Rule("*", weight=CHANNELS, input=TENSOR))
    assert qparams["right"]["weight"].high.shape == (1, 16)
    assert qparams["left"]["weight"].high.shape == (16, 1)
    error = jnp.abs(apply(params, qparams, x, full(model, 8.0)) - ZOO["square"].fn(params, x)).max()
    assert 0 < error < 0.2


# --- memoization -----------------------------------------------------------------------------------------------------


def test_equal_arguments_give_the_same_object_without_compiling():
    fn, params, x = ZOO["mlp"]
    model = quantize_model(fn, params, x, [Rule(weight=CHANNELS)])
    copies, rules = jax.tree.map(jnp.copy, (params, x)), (Rule(weight=SiteRule(**vars(CHANNELS))),)
    with Compilations() as compilations:
        again = quantize_model(fn, *copies, rules)
    assert again is model
    assert compilations.count == 0
    assert quantize_model(fn, params, x, [Rule(weight=CHANNELS, shared="each")]) is not model
    assert quantize_model(fn, params, x[:2], [Rule(weight=CHANNELS)]) is not model
    assert quantize_model(fn, params, -jnp.abs(x), [Rule(weight=CHANNELS)]) is model  # signed either way


def test_another_batch_shape_is_traced_once():
    traces = []

    def counted(p, x):
        traces.append(x.shape)
        return small_cnn(p, x)

    model, params, x, qparams, apply = build(CNN._replace(fn=counted))
    whole = apply(params, qparams, x, full(model, 4.0))
    for batch in (x[:1], x[:3], x[:1]):
        outputs = apply(params, qparams, batch, full(model, 4.0))
        np.testing.assert_allclose(outputs, whole[: len(batch)], atol=0.02)
    jax.eval_shape(model.init, params, x[:3], full(model, 4.0))
    assert sorted(traces) == [(1, 4, 4, 1), (3, 4, 4, 1), (4, 4, 4, 1)]


@pytest.mark.slow
def test_no_tracer_leaks_into_the_memoized_graphs():
    fn, params, x = CNN
    model = quantize_model(lambda p, x: fn(p, x) + jnp.arange(3.0), params, x, [QUICK])
    with jax.checking_leaks():
        jax.jit(model.init).lower(params, x[:2], full(model, 8.0))
    qparams = jax.jit(model.init)(params, x[:2], full(model, 8.0))  # with the graph that was traced inside
    assert jax.tree.structure(qparams) == jax.tree.structure(case("cnn").qparams)


def test_the_params_of_a_float_checkpoint_are_used_unchanged():
    model, params, x, qparams, _ = case("linen_cnn")
    before = jax.tree.map(np.array, params)
    gradient = jax.jit(jax.grad(lambda p: model.apply(p, qparams, x, full(model, 4.0)).sum()))(params)
    assert jax.tree.structure(gradient) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, params, before)
    assert set(qparams) == {layer.name for layer in model.layers}


def test_shapes_are_enough_where_no_sign_is_to_be_decided():
    fn, params, x = ZOO["mlp"]
    signed = Rule(weight=CHANNELS, input=SiteRule(range="minmax", signed=True))
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), (params, x))
    assert quantize_model(fn, *shapes, [signed]) is quantize_model(fn, params, x, [signed])
    with pytest.raises(GraphError, match="calibration batch"):
        quantize_model(fn, *shapes, [QUICK])


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2, 2), (4, 2), (3,), (3, 3), (2,), ()])
def test_bits_need_one_row_per_layer(shape):
    # JAX would read a missing row as the last one.
    model, params, x, qparams, _ = case("cnn")
    for call in (lambda bits: model.apply(params, qparams, x, bits), lambda bits: model.init(params, x, bits)):
        with pytest.raises(GraphError, match=r"shape \[3, 2\]"):
            call(jnp.full(shape, 8.0))


def test_a_function_without_layers_is_refused_with_the_reason():
    weight = kernel(0, 8, 8)
    with pytest.raises(GraphError, match=r"no layers.*closes over"):
        quantize_model(lambda p, x: x @ weight + p["b"], {"b": jnp.zeros(8)}, X)
    assert quantize_model(lambda p, x: x + p["b"], {"b": jnp.zeros(8)}, X, [Rule("*", None, None)]).layers == ()


def test_a_group_size_that_does_not_divide_is_refused():
    groups = SiteRule(granularity="per_group", group_size=5, range="minmax")
    with pytest.raises(GraphError, match="group_size 5 does not divide"):
        case("mlp", Rule(weight=groups, input=TENSOR))


def test_groups_of_an_input_are_refused_where_scales_are_kept():
    groups = SiteRule(granularity="per_group", group_size=4, range="minmax")
    with pytest.raises(GraphError, match="keeps the scales of the calibration batch"):
        case("mlp", Rule(weight=CHANNELS, input=groups))


def test_groups_that_divide_have_a_scale_each():
    groups = SiteRule(granularity="per_group", group_size=4, range="minmax")
    model, params, x, qparams, apply = case("mlp", Rule(weight=groups, input=TENSOR))
    assert qparams["hidden/w"]["weight"].high.shape == (2, 1, 16)
    outputs = apply(params, qparams, x, full(model, 8.0))
    assert 0 < jnp.abs(outputs - ZOO["mlp"].fn(params, x)).max() < 0.1


def test_iterations_may_differ_in_menu_but_not_in_method():
    fn, params, x = ZOO["scan_stack"]
    first = Rule("blocks/w@0", weight=CHANNELS, input=TENSOR, menu=((8, 8),))
    model = quantize_model(fn, params, x, [first, QUICK])
    assert [len(menu) for menu in model.menus] == [1, 5, 5, 5, 5]
    for other in (STEPS, Rule(weight=None, input=TENSOR), Rule("blocks/w@[12]", None, None)):
        with pytest.raises(GraphError, match="one program"):
            quantize_model(fn, params, x, [first, other, *([QUICK] if other.pattern != "*" else [])])


# --- training mode ---------------------------------------------------------------------------------------------------


def test_the_twin_trains_with_dropout_and_batch_statistics():
    train, variables, batch = ZOO["linen_train"]
    model, _, _, qparams, _ = case("linen_cnn", STEPS, at=4.0)
    twin = model.twin(train, variables, batch)
    assert twin.layers == model.layers
    assert twin.units is model.units
    assert model.twin(train, variables, batch) is twin
    outputs, state = jax.jit(twin.apply)(variables, qparams, batch, full(model, 32.0))
    expected = jax.jit(train)(variables, batch)
    np.testing.assert_array_equal(outputs, expected[0])
    jax.tree.map(np.testing.assert_array_equal, state, expected[1])

    def loss(variables, qparams):
        outputs, state = twin.apply(variables, qparams, batch, full(model, 4.0))
        return jnp.sum(outputs**2), state

    gradients, state = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(variables, qparams)
    assert all(jnp.any(leaf != 0) for leaf in jax.tree.leaves(gradients[1]))
    assert not np.array_equal(
        state["batch_stats"]["BatchNorm_0"]["mean"], expected[1]["batch_stats"]["BatchNorm_0"]["mean"]
    )


def test_a_twin_must_have_the_same_layers():
    fn, params, x = CNN
    model, *_ = case("cnn")
    with pytest.raises(GraphError, match=r"lacks the layers \['out'\]"):
        model.twin(lambda p, x: fn(p | {"out": jnp.ones((8, 3))}, x), params, x)
    with pytest.raises(GraphError, match=r"also uses \['out#2'\]"):
        model.twin(lambda p, x: fn(p, x) @ p["out"][:3], params, x)


def test_a_module_in_training_mode_alone_is_quantized_too():
    model, variables, batch, qparams, apply = case("linen_train")
    outputs, state = apply(variables, qparams, batch, full(model, 8.0))
    assert outputs.shape == (4, 3)
    assert set(state) == {"batch_stats"}
    assert LinenCNN().apply(variables, IMAGE, False).shape == outputs.shape


@pytest.mark.parametrize("name", ZOO)
def test_every_model_of_the_zoo_is_quantized(name):
    # Discovery, rules and states fit together for every style; "each" where one kernel is used in two layouts.
    fn, params, x = ZOO[name]
    sites = SiteRule(range="minmax", signed=True)
    model = quantize_model(fn, params, x, [Rule(weight=sites, input=sites, shared="each")])

    def shapes(params, x, bits):
        qparams = model.init(params, x, bits)
        return qparams, model.apply(params, qparams, x, bits)

    qparams, outputs = jax.eval_shape(shapes, params, x, full(model, 4.0))
    assert set(qparams) == {layer.name for layer in model.layers}
    assert outputs == jax.eval_shape(fn, params, x)
