"""Small models in every JAX style, with the traps that an interpreter of jaxprs meets: name -> (fn, params, x).

``fn(params, x)`` is an ordinary float function; x's first array has the batch as its leading axis, of ``BATCH``.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn
from graph.zoo_functions import (
    CONVOLUTION_PARAMS,
    DERIVED_PARAMS,
    MLP_PARAMS,
    autoencoder,
    control_flow,
    convolutions,
    convolve,
    custom_rules,
    derived,
    einsums,
    experts,
    fused_qkv,
    leaky,
    looped,
    mlp,
    nested_jit,
    one_dimensional,
    remat_policy,
    reversed_gradient,
    scan_nested,
    scan_remat,
    scan_reverse,
    scan_rnn,
    scan_stack,
    shared,
    square,
)
from graph.zoo_modules import (
    PYTREE,
    HalfPrecision,
    LinenCNN,
    LinenScan,
    LinenTransformer,
    NNXModel,
    PytreeModel,
    TiedEmbedding,
    linen,
    linen_train,
    nnx_eval,
    nnx_scan,
    nnx_train,
)
from graph.zoo_parts import BATCH, IMAGE, SEQUENCE, SQUARE, Compilations, Entry, X, draw, kernel

__all__ = [
    "BATCH",
    "IMAGE",
    "SEQUENCE",
    "SQUARE",
    "ZOO",
    "Compilations",
    "Entry",
    "LinenCNN",
    "NNXModel",
    "X",
    "convolve",
    "draw",
    "kernel",
    "leaky",
    "reversed_gradient",
]


def _stack(seed: int, n: int, *shape: int) -> jax.Array:
    return kernel(seed, n, *shape) * 1.5


ZOO: dict[str, Entry] = {
    "mlp": Entry(mlp, MLP_PARAMS, X),
    "square": Entry(square, {"left": kernel(0, 16, 16), "right": kernel(1, 16, 16)}, SQUARE),
    "einsums": Entry(
        einsums,
        {"q": kernel(0, 8, 2, 4), "k": kernel(1, 2, 8, 4), "v": kernel(2, 4, 8, 2), "o": kernel(3, 8, 2, 4)},
        SEQUENCE,
    ),
    "derived": Entry(derived, DERIVED_PARAMS, X),
    "fused_qkv": Entry(fused_qkv, {"qkv": kernel(0, 8, 24), "out": kernel(1, 8, 8)}, SEQUENCE),
    "shared": Entry(shared, {"w": kernel(0, 8, 8), "b": draw(1, 8), "out": kernel(2, 8, 3)}, X),
    "autoencoder": Entry(autoencoder, {"w": kernel(0, 8, 8)}, X),
    "experts": Entry(experts, {"w": _stack(0, 3, 8, 5), "b": draw(1, 3, 5), "gate": kernel(2, 8, 3)}, X),
    "custom_rules": Entry(
        custom_rules, {"a": kernel(0, 8, 8), "b": kernel(1, 8, 4), "b2": kernel(2, 8, 4), "c": kernel(3, 8, 3)}, X
    ),
    "nested_jit": Entry(nested_jit, {"a": kernel(0, 8, 8), "b": kernel(1, 8, 6), "c": kernel(2, 6, 3)}, X),
    "remat_policy": Entry(remat_policy, {"a": kernel(0, 8, 8), "b": kernel(1, 8, 8), "c": kernel(2, 8, 3)}, X),
    "control_flow": Entry(control_flow, {"a": kernel(0, 8, 8), "b": kernel(1, 8, 3)}, X),
    "scan_stack": Entry(
        scan_stack,
        {"blocks": {"w": _stack(0, 3, 8, 8), "b": draw(1, 3, 8)}, "every": kernel(4, 8, 8), "out": kernel(5, 8, 2)},
        X,
    ),
    "scan_reverse": Entry(scan_reverse, {"w": _stack(0, 3, 8, 8)}, X),
    "scan_single": Entry(scan_reverse, {"w": _stack(0, 1, 8, 8)}, X),
    "scan_nested": Entry(
        scan_nested,
        {"own": _stack(0, 3, 8, 8), "stack": kernel(1, 3, 2, 8, 8), "again": _stack(7, 2, 8, 8)},
        X,
    ),
    "scan_rnn": Entry(
        scan_rnn, {"in": kernel(0, 8, 6), "recurrent": kernel(1, 6, 6), "out": kernel(2, 6, 3)}, SEQUENCE
    ),
    "scan_remat": Entry(scan_remat, {"w": _stack(0, 3, 8, 8)}, X),
    "looped": Entry(looped, {"mapped": kernel(0, 8, 8), "loop": kernel(1, 8, 8)}, X),
    "convolutions": Entry(convolutions, CONVOLUTION_PARAMS, IMAGE),
    "one_dimensional": Entry(one_dimensional, {"conv": kernel(0, 3, 8, 4), "torch": kernel(1, 3, 4, 2)}, SEQUENCE),
    "linen_cnn": linen(LinenCNN(), IMAGE, False),
    "linen_train": linen_train(),
    "linen_transformer": linen(LinenTransformer(), SEQUENCE),
    "linen_tied": linen(TiedEmbedding(), jnp.arange(BATCH * 3).reshape(BATCH, 3) % 7),
    "linen_scan": linen(LinenScan(), X),
    "linen_lstm": linen(nn.RNN(nn.OptimizedLSTMCell(6)), SEQUENCE),
    "linen_bf16": linen(HalfPrecision(), X),
    "nnx_train": nnx_train(),
    "nnx_eval": nnx_eval(),
    "nnx_scan": nnx_scan(),
    "pytree": Entry(jax.vmap(PytreeModel.__call__, in_axes=(None, 0)), PYTREE, X),
}
