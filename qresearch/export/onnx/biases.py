"""A bias added to a convolution becomes the convolution's own: runtimes run it in integers only so."""

from __future__ import annotations

import collections
from collections.abc import Sequence
from typing import Any

import numpy as np

from qresearch.export.onnx.builder import Builder
from qresearch.export.onnx.packages import import_onnx


def join_biases(b: Builder, nodes: Sequence[Any]) -> list[Any]:
    """The nodes without the Adds of a constant per channel to a Conv that nothing else reads."""
    uses = collections.Counter(name for node in nodes for name in node.input)
    convolutions = {node.output[0]: node for node in nodes if node.op_type == "Conv" and uses[node.output[0]] == 1}
    kept = []
    for node in nodes:
        name = next((name for name in node.input if name in convolutions), "")
        bias = _bias(b, node, name) if name and node.op_type == "Add" else None
        if bias is None:
            kept.append(node)
            continue
        made = convolutions.pop(name)
        made.input.append(b.initializer(bias, f"{name}/bias"))
        made.output[0] = node.output[0]  # it stands before all that read the sum
    return kept


def _bias(b: Builder, node: Any, convolution: str) -> np.ndarray | None:
    """What an Add adds to a convolution, if that is one constant for every channel."""
    constant = next((b.initializers[name] for name in node.input if name in b.initializers), None)
    if constant is None:
        return None
    array = import_onnx().numpy_helper.to_array(constant)
    one_each = array.ndim > 2 and array.size == array.shape[1] == b.channels[convolution]
    return np.ascontiguousarray(array.reshape(-1)) if one_each else None
