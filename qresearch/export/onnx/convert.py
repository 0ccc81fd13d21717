"""From a traced JAX function to an ONNX model: one small function per primitive."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend import source_info_util

from qresearch.compat import evaluate_equation, is_dropped, is_literal, open_jaxpr
from qresearch.errors import GraphError, did_you_mean
from qresearch.export.batch import UNTRACEABLE, any_batch, with_batch
from qresearch.export.onnx import contractions, elementwise, shapes
from qresearch.export.onnx.biases import join_biases
from qresearch.export.onnx.builder import Builder, Tensor, Value, plain
from qresearch.export.onnx.elementwise import tensor_type
from qresearch.export.onnx.linear import DEQUANTIZE, QUANTIZE, dequantize_linear, quantize_linear
from qresearch.export.onnx.packages import import_onnx

DIMENSION = "dim_as_value"
OPSET, IR_VERSION = 21, 10  # the first with int4, and the newest that ONNX Runtime 1.24 to 1.31 all read

Primitive = Callable[[Builder, Any, list[Value]], Value | list[Value]]

PRIMITIVES: dict[str, Primitive] = {
    **dict.fromkeys((*elementwise.UNARY, *elementwise.BINARY), elementwise.same_name),
    **dict.fromkeys(elementwise.LOGICAL, elementwise.logical),
    "max": elementwise.maximum,
    "ne": elementwise.unequal,
    "square": elementwise.square,
    "rsqrt": elementwise.rsqrt,
    "integer_pow": elementwise.integer_pow,
    "erfc": elementwise.erfc,
    "log1p": elementwise.log1p,
    "exp2": elementwise.exp2,
    "rem": elementwise.remainder,
    "round": elementwise.round_half_even,
    "clamp": elementwise.clamp,
    "select_n": elementwise.select,
    "convert_element_type": elementwise.cast,
    "stop_gradient": elementwise.identity,
    "copy": elementwise.identity,
    "optimization_barrier": elementwise.identity,
    "transpose": shapes.transpose,
    "reshape": shapes.reshape,
    "broadcast_in_dim": shapes.broadcast,
    DIMENSION: shapes.dimension,
    "squeeze": shapes.squeeze,
    "slice": shapes.slice_,
    "pad": shapes.pad,
    "concatenate": shapes.concatenate,
    "split": shapes.split,
    "gather": shapes.gather,
    "dot_general": contractions.dot_general,
    "conv_general_dilated": contractions.convolution,
    **dict.fromkeys(contractions.REDUCTIONS, contractions.reduce),
    "reduce_window_max": contractions.max_pool,
    "reduce_window_sum": contractions.sum_pool,
    QUANTIZE: quantize_linear,
    DEQUANTIZE: dequantize_linear,
}

# Equations that hold a function, and the parameter that holds it.
INLINED = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "remat2": "jaxpr",
    "checkpoint": "jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
}


class Traced(NamedTuple):
    """A function of x to be converted. batch: the symbol in its shapes, or the number of examples it was traced for.

    inputs, outputs: shapes and dtypes of the leaves, by the names they get. fixed: why the batch is no symbol.
    """

    closed: Any
    inputs: dict[str, Any]
    outputs: dict[str, Any]
    batch: Any
    fixed: str = ""

    @property
    def described(self) -> str:
        """How many examples it takes."""
        return f"{self.batch}, fixed: {self.fixed}" if self.fixed else "any"


def trace_batch(fn: Callable[[Any], Any], x: Any, batch: int | None = None) -> Traced:
    """Traces fn(x) for any number of examples: the length of the leading axis of every array of x.

    batch: a number fixes it. Where a function cannot be traced for any number, that of x is taken, and ``fixed`` says
    so.
    """
    if batch is not None:
        return _trace(fn, with_batch(x, batch), "as asked")
    try:
        return _trace(fn, any_batch(x), "")
    except UNTRACEABLE as error:
        reason = f"the function cannot be traced for any number ({str(error).splitlines()[0]})"
        return _trace(fn, with_batch(x, int(jax.tree.leaves(x)[0].shape[0])), reason)


def _trace(fn: Callable[[Any], Any], shapes: Any, fixed: str) -> Traced:
    batch = jax.tree.leaves(shapes)[0].shape[0]
    closed, output = jax.make_jaxpr(fn, return_shape=True)(shapes)
    return Traced(closed, _names("x", shapes), _names("output", output), batch, fixed)


def convert(traced: Traced, arrays: Mapping[str, Any], metadata: Mapping[str, str]) -> Any:
    """The ``onnx.ModelProto`` of a traced function, opset 21, IR 10.

    arrays: the names of the arrays that the function holds, for its initializers. What does not depend on x is
    computed here, by JAX. GraphError names the first primitive that is not in ``PRIMITIVES``, and its source line.
    """
    symbol = None if traced.fixed else traced.batch
    b = Builder(symbol, next(iter(traced.inputs)))
    inputs = [Tensor(name, plain(len(aval.shape))) for name, aval in traced.inputs.items()]
    known = {id(array): name for name, array in arrays.items()}
    consts = [_host(b, const, known) for const in traced.closed.consts]
    outputs = _run(b, traced.closed.jaxpr, consts, inputs)
    for name, value in zip(traced.outputs, outputs):
        b.nodes.append(import_onnx().helper.make_node("Identity", [b.named(value)], [name], name=name))
    return _model(b, traced, dict(metadata))


def _run(b: Builder, jaxpr: Any, consts: Sequence[Value], arguments: Sequence[Value], where: str = "") -> list[Value]:
    """where: the source line of the call of this function, for equations that only JAX's own lines know."""
    values: dict[Any, Value] = dict(zip(jaxpr.invars, arguments)) | dict(zip(jaxpr.constvars, consts))

    def read(atom: Any) -> Value:
        return np.asarray(atom.val, atom.aval.dtype) if is_literal(atom) else values[atom]

    for equation in jaxpr.eqns:
        found = _equation(b, equation, [read(atom) for atom in equation.invars], where)
        values.update((v, value) for v, value in zip(equation.outvars, found) if not is_dropped(v))
    return [read(atom) for atom in jaxpr.outvars]


def _equation(b: Builder, equation: Any, inputs: list[Value], where: str) -> Sequence[Value]:
    name, where = equation.primitive.name, source_info_util.summarize(equation.source_info) or where
    if name in INLINED:
        inner, consts = open_jaxpr(equation.params[INLINED[name]])
        return _run(b, inner, [np.asarray(const) for const in consts], inputs, where)
    if _is_constant(equation, inputs):
        return [np.asarray(output) for output in evaluate_equation(equation, inputs)]
    if name not in PRIMITIVES:
        raise GraphError(
            f"export to ONNX: primitive '{name}' ({where}) has no operator here{did_you_mean(name, PRIMITIVES)}"
        )
    try:
        found = PRIMITIVES[name](b, equation, inputs)
    except GraphError as error:
        raise GraphError(f"export to ONNX: {error} ({where})") from None
    return found if isinstance(found, list) else [found]


def _is_constant(equation: Any, inputs: Sequence[Value]) -> bool:
    """Whether an equation can be computed now: it depends on no input, and its shapes not on the batch."""
    if equation.primitive.name in (QUANTIZE, DEQUANTIZE, DIMENSION):
        return False
    sizes = [size for atom in equation.outvars for size in atom.aval.shape]
    return all(isinstance(value, np.ndarray) for value in inputs) and all(isinstance(size, int) for size in sizes)


def _host(b: Builder, array: Any, known: Mapping[int, str]) -> np.ndarray:
    found = np.asarray(array)
    if id(array) in known:
        b.name_array(found, known[id(array)])
    return found


def _names(base: str, tree: Any) -> dict[str, Any]:
    leaves = jax.tree.leaves_with_path(tree)
    if len(leaves) == 1:
        return {base: leaves[0][1]}
    return {base + jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def _model(b: Builder, traced: Traced, metadata: dict[str, str]) -> Any:
    onnx = import_onnx()
    nodes = join_biases(b, _needed(b.nodes, set(traced.outputs)))
    read = {name for node in nodes for name in node.input}
    graph = onnx.helper.make_graph(
        nodes,
        "qresearch",
        [_info(traced, name, aval) for name, aval in traced.inputs.items()],
        [_info(traced, name, aval) for name, aval in traced.outputs.items()],
        [tensor for name, tensor in b.initializers.items() if name in read],
    )
    opset = [onnx.helper.make_opsetid("", OPSET)]
    model = onnx.helper.make_model(graph, opset_imports=opset, ir_version=IR_VERSION, producer_name="qresearch")
    onnx.helper.set_model_props(model, {"qresearch.batch": traced.described, **metadata})
    onnx.checker.check_model(model, full_check=True)
    return model


def _info(traced: Traced, name: str, aval: Any) -> Any:
    shape = [size if isinstance(size, int) else str(size) for size in aval.shape]
    return import_onnx().helper.make_tensor_value_info(name, tensor_type(aval.dtype), shape)


def _needed(nodes: Sequence[Any], wanted: set[str]) -> list[Any]:
    """The nodes that something wanted depends on, in order."""
    kept = []
    for node in reversed(nodes):
        if not wanted.isdisjoint(node.output):
            wanted.update(node.input)
            kept.append(node)
    return kept[::-1]
