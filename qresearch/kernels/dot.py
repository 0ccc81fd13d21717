"""The weight-only product: floats times packed integers, by a kernel where there is one."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from qresearch.errors import GraphError
from qresearch.kernels.blocks import chosen_blocks
from qresearch.kernels.platforms import by_platform
from qresearch.kernels.triton import triton_dot
from qresearch.kernels.weights import KernelWeights, values

# What jax.export has to be told to let through: Triton's call is none of those it promises to keep for months.
CUSTOM_CALL = "__gpu$xla.gpu.triton"
SMALLEST_CHUNK = 16  # the tensor cores' smallest step along K
LARGEST_PAYLOAD = 2**31  # the kernel's offsets are int32


def weight_only_dot(x: Float[Array, "... K"], weights: KernelWeights) -> Float[Array, "... N"]:
    """x W for x in bfloat16, float16 or float32, summed in float32, in the dtype of x.

    On CUDA by ``triton_dot``, elsewhere by ``xla_dot``: which one is decided when the program is lowered, so that one
    exported for several platforms holds both. The two agree within 2^-23 (K + 2) sum |x| (|code| + |zero_point|) scale,
    the rounding of a float32 sum in another order, and one rounding to the dtype of x. Groups along K whose largest
    power of two is below 16, and payloads from 2 GiB, go through XLA on CUDA too. GraphError for an x that does not
    match. No gradient is defined: the integers are frozen. Works under jit and vmap; under a sharded jit XLA cannot
    split the kernel and gathers its operands, so shard by shard_map.
    """
    depth, features = weights.shape
    if x.ndim == 0 or x.shape[-1] != depth or not jnp.issubdtype(x.dtype, jnp.floating):
        raise GraphError(
            f"weight_only_dot takes floats [..., {depth}] for weights {weights.shape}, got {x.dtype}{x.shape}"
        )
    rows = x.reshape(-1, depth)
    fits = x.size > 0 and x.dtype.itemsize <= 4 and weights.chunk >= SMALLEST_CHUNK
    if fits and weights.payload.size < LARGEST_PAYLOAD:
        kernel = functools.partial(triton_dot, blocks=chosen_blocks(rows.shape[0], weights))
        product = by_platform(rows, weights, cuda=kernel, default=xla_dot)
    else:
        product = xla_dot(rows, weights)
    return product.reshape(*x.shape[:-1], features)


def xla_dot(x: Float[Array, "rows K"], weights: KernelWeights) -> Float[Array, "rows N"]:
    """The plain form and the reference: decode the weights, multiply in float32, return x's dtype.

    Along K both operands stay as they lie in memory: with W transposed, XLA on CPU takes five times as long for a row.
    """
    numbers = (((1,), (1,)), ((), ()))
    matrix = values(weights).T
    product = jax.lax.dot_general(x.astype(jnp.float32), matrix, numbers, precision=jax.lax.Precision.HIGHEST)
    return product.astype(x.dtype)
