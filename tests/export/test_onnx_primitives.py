"""Primitives, one by one: any function of them gives in ONNX Runtime what it gives in JAX."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from onnx_cases import ROUNDING, differences, draw, sessions

from qresearch.errors import GraphError
from qresearch.export.onnx.convert import PRIMITIVES, convert, trace_batch

KERNEL = draw(9, 3, 3, 4, 4)


def convolved(x):
    return lax.conv_general_dilated(x, KERNEL, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


# Functions of x [batch, 6, 5, 4]; those of a convolution's result get it with its channels before its pixels.
FUNCTIONS = {
    "unary": lambda x: -jnp.exp(jnp.sin(x)) + jnp.cos(x) * jnp.tanh(x) + jax.nn.sigmoid(x),
    "roots and logs": lambda x: jnp.log1p(jnp.abs(x)) + lax.rsqrt(x**2 + 1) + jnp.sqrt(jnp.abs(x)) + jnp.exp2(x),
    "logarithm": lambda x: jnp.log(x * x + 0.5) ** 3 + lax.pow(jnp.abs(x), 0.5),
    "rounding": lambda x: jnp.round(4 * x) + jnp.floor(x) * 10 + jnp.ceil(x) * 100 + jnp.sign(x),
    "gelu": lambda x: jax.nn.gelu(x, approximate=False) + jax.nn.gelu(x) + lax.erf(x),
    "comparisons": lambda x: jnp.where((x > 0) & (x <= 1) | (x == 0) ^ ~(x < -1), x, 2.0) + (x != 0) * 3 + (x >= 1),
    "clipping": lambda x: jnp.clip(x, -0.5, 0.5) + jnp.maximum(x, 0.1) + jax.nn.relu6(3 * x) + lax.clamp(0.0, x, 1.0),
    "integers": lambda x: (x * 10).astype(jnp.int32).astype(jnp.float32) + jnp.arange(4.0),
    "reductions": lambda x: jnp.sum(x, (1, 2)) + jnp.max(x, (1, 2)) * jnp.min(x, (1, 2)) + jnp.prod(x[:, :2, 0], 1),
    "softmax": lambda x: jax.nn.softmax(x.reshape(x.shape[0], -1, 4), axis=1),
    "mean over examples": lambda x: x - jnp.mean(x, 0, keepdims=True),
    "moved axes": lambda x: jnp.transpose(x, (0, 3, 1, 2)) + jnp.ones((4, 6, 5)),
    "moved, then flat": lambda x: jnp.transpose(convolved(x), (0, 2, 1, 3)).reshape(x.shape[0], -1),
    "every second pixel": lambda x: convolved(x)[:, ::2, 1::3] * 2,
    "slices": lambda x: x[:, 1:4, -1] + convolved(x)[:, 2:5, 0],
    "one row": lambda x: lax.squeeze(lax.slice_in_dim(lax.square(x), 1, 2, axis=1), (1,)),
    "repeated": lambda x: jnp.take(x, jnp.array([3, 1, 1, 0]), axis=2),
    "looked up": lambda x: jnp.take(KERNEL.reshape(36, 4), (jnp.abs(x[:, :, 0, 0]) * 9).astype(jnp.int32) % 36, axis=0),
    "padding": lambda x: jnp.pad(convolved(x), ((0, 0), (1, 2), (0, 0), (3, 0)), constant_values=1.5),
    "joining": lambda x: jnp.concatenate([convolved(x), x[:, :, :, :2]], axis=-1),
    "parts": lambda x: jnp.split(convolved(x), [1, 2], axis=-1)[2] * 2,
    "expanded": lambda x: (
        jnp.broadcast_to(x[:, None, :1], (x.shape[0], 3, 6, 5, 4)) + jnp.zeros((x.shape[0], 1, 1, 1, 4))
    ),
    "biases": lambda x: convolved(x) + jnp.arange(4.0)[None, None, None],
    "no biases": lambda x: jnp.ones((1, 1, 1, 1)) + convolved(x)[..., :1] + jnp.arange(4.0)[None, None, None],
    "a sum read twice": lambda x: (y := convolved(x)) * (y + jnp.arange(4.0)[None, None, None]),
    "sum of two": lambda x: convolved(x) + convolved(2 * x),
    "attention": lambda x: jnp.einsum("bqhd,bkhd->bhqk", x, x[:, :3]),
    "mixed": lambda x: jnp.einsum("bhqk,bkhd->bqhd", jnp.einsum("bqhd,bkhd->bhqk", x, x), x),
    "several axes": lambda x: jnp.einsum("bijc,ijcd->bd", x[:, :3, :3], KERNEL),
    "kernel on the left": lambda x: jnp.einsum("oc,bijc->obij", KERNEL[0, 0], x)[1],
    "several outputs of a dot": lambda x: jnp.einsum("bijc,cde->bijde", x, KERNEL[:, 0, :].reshape(4, 3, 4)),
    "of one vector": lambda x: jnp.dot(x, KERNEL[0, 0, 0]),
    "dilated": lambda x: lax.conv_general_dilated(
        x, KERNEL, (1, 2), ((2, 1), (0, 3)), rhs_dilation=(2, 1), dimension_numbers=("NHWC", "HWIO", "NHWC")
    ),
    "one-dimensional": lambda x: lax.conv_general_dilated(
        x[:, 0], KERNEL[0], (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")
    ),
    "pooling": lambda x: (
        lax.reduce_window(convolved(x), -jnp.inf, lax.max, (1, 3, 2, 1), (1, 2, 1, 1), "SAME")
        + 2 * lax.reduce_window(x, 0.0, lax.add, (1, 3, 2, 1), (1, 2, 1, 1), "SAME")
    ),
    "remat": jax.checkpoint(lambda x: jnp.sin(convolved(x))),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_gives_what_jax_gives_for_any_batch(name):
    function, x = FUNCTIONS[name], draw(1, 3, 6, 5, 4)
    traced = trace_batch(function, x[:2])
    assert traced.described == "any"
    expected = jax.jit(function)(x)
    assert max(differences(convert(traced, {}, {}), x, expected).values()) <= ROUNDING


def test_every_primitive_is_in_some_function():
    used = set()

    def walk(jaxpr):
        for equation in jaxpr.eqns:
            used.add(equation.primitive.name)
            for value in equation.params.values():
                if hasattr(value, "jaxpr") or hasattr(value, "eqns"):
                    walk(getattr(value, "jaxpr", value))

    for function in FUNCTIONS.values():
        walk(trace_batch(function, draw(1, 3, 6, 5, 4)).closed.jaxpr)
    elsewhere = {"onnx_quantize", "onnx_dequantize", "copy", "optimization_barrier", "stop_gradient"}
    assert set(PRIMITIVES) - used <= elsewhere


REFUSED = {
    "sort": (lambda x: jnp.sort(x), r"primitive 'sort' \(.*test_onnx_primitives\.py:\d+.*\) has no operator here"),
    "cumulative": (lambda x: jnp.cumsum(x, 1), "primitive 'cumsum'"),
    "interior": (lambda x: lax.pad(x, 0.0, ((0, 0, 0), (0, 0, 1))), "padding between elements"),
    "transposed": (
        lambda x: lax.conv_general_dilated(
            x[..., None], KERNEL[0, :, :1], (1,), ((1, 1),), (2,), dimension_numbers=("NWC", "WIO", "NWC")
        ),
        "transposed convolution",
    ),
    "away from zero": (lambda x: lax.round(x), "rounding away from zero"),
    "bits": (lambda x: (x.astype(jnp.int32) & 3) + x, "'and' of int32"),
    "scan": (lambda x: lax.scan(lambda c, y: (c + y, None), x[0], x)[0], "primitive 'scan'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_form_is_one_line_with_its_source(name):
    function, message = REFUSED[name]
    with pytest.raises(GraphError, match=message) as caught:
        convert(trace_batch(function, draw(1, 3, 6), batch=3), {}, {})
    assert "\n" not in str(caught.value)
    assert "test_onnx_primitives.py" in str(caught.value)


def operators(function):
    return [node.op_type for node in convert(trace_batch(function, draw(1, 3, 6, 5, 4)), {}, {}).graph.node]


def test_a_bias_joins_its_convolution_and_no_transposition_is_left_between_two():
    assert operators(FUNCTIONS["biases"]) == ["Transpose", "Conv", "Transpose", "Identity"]
    assert operators(lambda x: convolved(jax.nn.relu(FUNCTIONS["biases"](x)) * 2)).count("Transpose") == 2


def test_a_function_that_needs_a_number_of_examples_gets_one():
    traced = trace_batch(lambda x: x.reshape(3 * x.shape[0] // 6, -1), draw(1, 4, 6))
    assert traced.described.startswith("4, fixed: the function cannot be traced for any number (")
    x = draw(2, 4, 6)
    assert max(differences(convert(traced, {}, {}), x, x.reshape(2, 12)).values()) == 0


def test_several_inputs_and_outputs_keep_their_names():
    x = {"left": draw(1, 3, 4), "right": draw(2, 3, 4)}
    traced = trace_batch(lambda x: {"sum": x["left"] + x["right"], "constant": jnp.ones(2), "same": x["left"]}, x)
    running = sessions(convert(traced, {}, {}))[True]
    assert [found.name for found in running.get_inputs()] == ["x['left']", "x['right']"]
    assert [found.name for found in running.get_outputs()] == ["output['constant']", "output['same']", "output['sum']"]
    constant, same, total = running.run(None, {f"x['{key}']": value for key, value in x.items()})
    np.testing.assert_array_equal(constant, [1, 1])
    np.testing.assert_array_equal(same, x["left"])
    np.testing.assert_array_equal(total, x["left"] + x["right"])
