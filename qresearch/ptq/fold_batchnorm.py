"""BatchNorm folding: the per-channel scale and shift after a contraction move into its kernel and a bias."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import jax
from jax import Array

from qresearch.errors import GraphError
from qresearch.graph.affine import Tail, affine_tails, coefficients, other_scales, scales
from qresearch.graph.channels import scale_leaf
from qresearch.graph.program import Program, Shapes, execute, program_of, without
from qresearch.graph.trace import Function, Graph, layer_name, layer_names

Params = Any
FOLDED = "folded"


def fold_batchnorm(fn: Function, params: Params, x: Any) -> tuple[Function, Params]:
    """Moves every BatchNorm that follows a contraction into its kernel and a bias: (folded_fn, folded_params).

    folded_fn(folded_params, x) = fn(params, x) up to rounding.
    A layer's output y becomes a y + b, with a and b [channels] computed from params: its kernel becomes a * kernel, at
    its old path, and b is added to its output. folded_params: for a dict {**params, "folded": {layer name: b}}, for
    any other pytree {"params": params, "folded": ...}; layers keep their names either way. What was folded stays in
    params, unread. x: a batch, or its shapes; folded_fn takes any that fn takes, for inference: a remat is inlined.
    Equal arguments give equal functions. A layer whose output is not scaled, or cannot be folded, is left as it is
    (``why_not_folded``); if all are, fn and params are returned.
    Jacob et al., Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference, 2017,
    https://arxiv.org/abs/1712.05877, section 3.2. Where we differ: found from the dataflow, not from module names, so
    that any scale computed from parameters is folded (LayerScale, a hand-written normalization).
    """
    _, program = program_of(fn, Shapes(params), Shapes(x))
    tails = _foldable(program)
    if not tails:
        return fn, params
    if type(params) is dict and FOLDED in params:
        raise GraphError(f"params already have an entry '{FOLDED}': rename it, fold_batchnorm adds one of that name")

    def fold(originals: list[Array]) -> tuple[list[Array], dict[str, Array]]:
        leaves, biases = list(originals), {}
        for name, tail in tails.items():
            assert tail.leaf is not None
            a, b = coefficients(tail, program, originals)
            biases[name] = b[tail.output.ravel()]  # in the order of the layer's output: adding it takes a reshape only
            leaves[tail.leaf] = scale_leaf(originals[tail.leaf], tail.kernel, a)
        return leaves, biases

    kernels, biases = jax.jit(fold)(jax.tree.leaves(params))  # op by op it would take seconds
    folded_fn = FoldedFunction(fn, tuple(tails), type(params) is dict)
    return folded_fn, folded_fn.join(jax.tree.unflatten(jax.tree.structure(params), kernels), biases)


def why_not_folded(fn: Function, params: Params, x: Any) -> dict[str, str]:
    """The reason, by name, for every layer of fn(params, x) that ``fold_batchnorm`` leaves as it is, and for every
    parameter that goes on scaling channels, such as ``bn1/scale`` of a BatchNorm that follows no layer.
    """
    graph, program = program_of(fn, Shapes(params), Shapes(x))
    reasons = {name: "it is inside a scan" for site in graph.plan.sites() for name in layer_names(site)}
    for tail in affine_tails(program):
        reasons[tail.site.base] = tail.why_not if scales(tail, program) else f"no scale follows: {tail.end}"
    paths = [path for path, _ in jax.tree.leaves_with_path(params)]
    for leaf, reason in other_scales(program, _foldable(program).values()).items():
        reasons[layer_name(jax.tree_util.keystr(paths[leaf], simple=True, separator="/"))] = reason
    return {name: reason for name, reason in reasons.items() if reason}


@dataclass(frozen=True)
class FoldedFunction:
    """``fn`` with the layers of these names folded: a function of ``folded_params``. merged: the biases are an entry
    of params itself.
    """

    fn: Function
    layers: tuple[str, ...]
    merged: bool

    def __call__(self, params: Params, x: Any) -> Any:
        original, biases = self.split(params)
        graph, program, tails = _rewritten(self, Shapes(original), Shapes(x))
        shifts = {name: biases[name].reshape(tail.output.shape) for name, tail in tails.items()}
        outputs = execute(program, jax.tree.leaves((original, x)), shifts)
        return jax.tree.unflatten(graph.output_tree, outputs)

    def join(self, params: Params, biases: dict[str, Any]) -> Params:
        """The params of this function."""
        return {**params, FOLDED: biases} if self.merged else {"params": params, FOLDED: biases}

    def split(self, params: Params) -> tuple[Params, dict[str, Any]]:
        """(params of fn, biases by layer name)."""
        rest = {name: entry for name, entry in params.items() if name != FOLDED}
        return (rest if self.merged else rest["params"]), params[FOLDED]


def _foldable(program: Program) -> dict[str, Tail]:
    """The tails that can be folded and scale their layer's output, by the layer's name."""
    tails = [tail for tail in affine_tails(program) if tail.leaf is not None]
    return {tail.site.base: tail for tail in tails if scales(tail, program)}


@functools.lru_cache(maxsize=64)
def _rewritten(folded: FoldedFunction, params: Shapes, x: Shapes) -> tuple[Graph, Program, dict[str, Tail]]:
    """The program without the tails of the folded layers, and these tails."""
    graph, program = program_of(folded.fn, params, x)
    tails = _foldable(program)
    if missing := [name for name in folded.layers if name not in tails]:
        raise GraphError(
            f"layer {missing[0]} is folded, but for inputs of this shape nothing that can be folded follows it: fold"
            " with an x of that shape"
        )
    tails = {name: tails[name] for name in folded.layers}
    aliases = {operation.output: operation.previous for tail in tails.values() for operation in tail.operations}
    return graph, without(program, aliases), tails
