"""Primitives that compute every element by itself: any layout will do, so the one that is there is kept."""

from __future__ import annotations

from typing import Any

import numpy as np

from qresearch.errors import GraphError
from qresearch.export.onnx.builder import Builder, Tensor, Value, common_layout

UNARY = {
    "neg": "Neg",
    "exp": "Exp",
    "log": "Log",
    "tanh": "Tanh",
    "abs": "Abs",
    "sign": "Sign",
    "floor": "Floor",
    "ceil": "Ceil",
    "sqrt": "Sqrt",
    "logistic": "Sigmoid",
    "erf": "Erf",
    "sin": "Sin",
    "cos": "Cos",
}
BINARY = {
    "add": "Add",
    "sub": "Sub",
    "mul": "Mul",
    "div": "Div",
    "min": "Min",
    "pow": "Pow",
    "eq": "Equal",
    "lt": "Less",
    "le": "LessOrEqual",
    "gt": "Greater",
    "ge": "GreaterOrEqual",
}
LOGICAL = {"and": "And", "or": "Or", "xor": "Xor", "not": "Not"}


def same_name(b: Builder, equation: Any, values: list[Value]) -> Value:
    """A primitive that ONNX has too."""
    return _write(b, equation, values, (UNARY | BINARY)[equation.primitive.name])


def maximum(b: Builder, equation: Any, values: list[Value]) -> Value:
    """``max``; with zero it is Relu, which runtimes join to what stands beside it."""
    x, other = values if isinstance(values[1], np.ndarray) else values[::-1]
    if isinstance(other, np.ndarray) and other.ndim == 0 and other == 0 and np.issubdtype(other.dtype, np.floating):
        return _write(b, equation, [x], "Relu")
    return _write(b, equation, values, "Max")


def logical(b: Builder, equation: Any, values: list[Value]) -> Value:
    """Of booleans; of integers it would be bitwise."""
    if equation.invars[0].aval.dtype != np.bool_:
        raise GraphError(f"'{equation.primitive.name}' of {equation.invars[0].aval.dtype} is not written to ONNX")
    return _write(b, equation, values, LOGICAL[equation.primitive.name])


def unequal(b: Builder, equation: Any, values: list[Value]) -> Value:
    """``ne``: it is true of two NaNs, as the negation of Equal is."""
    equal = _write(b, equation, values, "Equal")
    return Tensor(b.node("Not", equal.name), equal.layout)


def square(b: Builder, equation: Any, values: list[Value]) -> Value:
    """x x."""
    return _write(b, equation, [values[0], values[0]], "Mul")


def rsqrt(b: Builder, equation: Any, values: list[Value]) -> Value:
    """1 / √x."""
    root = _write(b, equation, values, "Sqrt")
    return Tensor(b.node("Reciprocal", root.name), root.layout)


def integer_pow(b: Builder, equation: Any, values: list[Value]) -> Value:
    """x^y for a static y."""
    exponent = np.asarray(equation.params["y"], equation.invars[0].aval.dtype)
    return _write(b, equation, [values[0], exponent], "Pow")


def erfc(b: Builder, equation: Any, values: list[Value]) -> Value:
    """1 - erf(x): the same to an absolute rounding error, which is all that a GELU sees of it."""
    erf = _write(b, equation, values, "Erf")
    return _write(b, equation, [np.ones((), equation.invars[0].aval.dtype), erf], "Sub")


def log1p(b: Builder, equation: Any, values: list[Value]) -> Value:
    """log(1 + x), to an absolute rounding error."""
    total = _write(b, equation, [values[0], np.ones((), equation.invars[0].aval.dtype)], "Add")
    return Tensor(b.node("Log", total.name), total.layout)


def exp2(b: Builder, equation: Any, values: list[Value]) -> Value:
    """2^x."""
    return _write(b, equation, [np.full((), 2, equation.invars[0].aval.dtype), values[0]], "Pow")


def remainder(b: Builder, equation: Any, values: list[Value]) -> Value:
    """Of the sign of the dividend."""
    return _write(b, equation, values, "Mod", fmod=1)


def round_half_even(b: Builder, equation: Any, values: list[Value]) -> Value:
    """ONNX's Round is half to even; the other rounding of ``lax.round`` has no operator."""
    if int(equation.params["rounding_method"]) != 1:
        raise GraphError("rounding away from zero is not written to ONNX, whose Round is half to even")
    return _write(b, equation, values, "Round")


def clamp(b: Builder, equation: Any, values: list[Value]) -> Value:
    """min(max(x, low), high): Clip takes scalar bounds only."""
    low, x, high = values
    return _write(b, equation, [_write(b, equation, [x, low], "Max"), high], "Min")


def select(b: Builder, equation: Any, values: list[Value]) -> Value:
    """``select_n`` of two cases: the second where the predicate is true."""
    if len(values) != 3 or equation.invars[0].aval.dtype != np.bool_:
        raise GraphError("a selection of more than two cases is not written to ONNX")
    which = values[0]
    if isinstance(which, np.ndarray) and which.ndim == 0:
        return values[1 + int(which)]
    return _write(b, equation, [which, values[2], values[1]], "Where")


def cast(b: Builder, equation: Any, values: list[Value]) -> Value:
    """Another dtype; nothing where it is the same."""
    dtype, old = equation.outvars[0].aval.dtype, equation.invars[0].aval.dtype
    return values[0] if dtype == old else _write(b, equation, values, "Cast", to=tensor_type(dtype))


def identity(b: Builder, equation: Any, values: list[Value]) -> list[Value]:
    """What only matters to derivatives or to the compiler."""
    return list(values)


def tensor_type(dtype: Any) -> int:
    """ONNX's number of a dtype."""
    from qresearch.export.onnx.packages import import_onnx

    return int(import_onnx().helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))


def _write(b: Builder, equation: Any, values: list[Value], operator: str, **attributes: Any) -> Tensor:
    rank = len(equation.outvars[0].aval.shape)
    layout = common_layout(values, rank)
    # Operands of rank 0 are the scalars that jaxprs broadcast without a word, as ONNX does.
    names = [b.named(value, layout if _rank(value) == rank else None) for value in values]
    return Tensor(b.node(operator, *names, **attributes), layout)


def _rank(value: Value) -> int:
    return value.ndim if isinstance(value, np.ndarray) else len(value.layout)
