"""The weight-only product as a Pallas kernel for GPUs, compiled by Triton."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Float, UInt8

from qresearch.kernels.weights import KernelWeights

LARGEST_TILE = 64  # rows of x in one program; more rows are several programs


class Blocks(NamedTuple):
    """How the work is divided among programs, and within one.

    slices: pieces of K within a program, so that few rows still fill the tensor cores and a narrow W many warps. tile:
    columns of the payload times slices, per program. depth: codes along K in a step (at most those that share a scale).
    splits: programs along K; XLA adds up what they give. warps, stages: Triton's, per program and of loads in flight.
    """

    slices: int
    tile: int
    depth: int
    splits: int
    warps: int
    stages: int


def triton_dot(
    x: Float[Array, "rows K"], weights: KernelWeights, blocks: Blocks, interpret: bool = False
) -> Float[Array, "rows N"]:
    """x W: codes are multiplied as they are, exactly, and their sums scaled in float32; x's dtype at the end.

    A program takes ``tile`` rows of the payload cut in slices along K, [columns slices, depth / slices] (a reshape that
    moves nothing), and x cut alike, [rows slices, depth / slices]. The tensor cores multiply all pairs of slices, which
    costs nothing while rows * slices <= 16 (their smallest operand), and only the pairs of the same slice are added up.
    ``blocks`` are made to fit (``fitted``). ``interpret``: run by JAX on any device, for tests.
    """
    (depth, features), padded = weights.shape, weights.payload.shape[1]
    rows, (fields, columns, groups) = x.shape[0], weights.scale.shape
    blocks = fitted(blocks, weights, x.dtype)
    slices, own_columns = blocks.slices, blocks.tile // blocks.slices
    own_rows = min(max(pl.next_power_of_2(rows), 8 // slices), LARGEST_TILE)
    x = jnp.pad(x, ((0, -rows % own_rows), (0, padded - depth)))
    scales = [weights.scale] if weights.zero_point is None else [weights.scale, weights.zero_point]
    if groups > 1:
        scales = [value.reshape(fields, columns * slices, groups // slices) for value in scales]
    own_scales = pl.BlockSpec(
        (fields, scales[0].shape[1] // (columns // own_columns), scales[0].shape[2]), lambda i, j, k: (0, i, 0)
    )
    partial = pl.pallas_call(
        functools.partial(_kernel, blocks=blocks, bits=weights.bits, middle=weights.middle),
        grid=(columns // own_columns, x.shape[0] // own_rows, blocks.splits),
        in_specs=[
            pl.BlockSpec((own_rows * slices, padded // slices), lambda i, j, k: (j, 0)),
            pl.BlockSpec((blocks.tile, padded // slices), lambda i, j, k: (i, 0)),
            *[own_scales] * len(scales),
        ],
        out_specs=pl.BlockSpec((1, own_rows, fields, own_columns), lambda i, j, k: (k, j, 0, i)),
        out_shape=jax.ShapeDtypeStruct(
            (blocks.splits, x.shape[0], fields, columns), x.dtype if blocks.splits == 1 else jnp.float32
        ),
        compiler_params=triton.CompilerParams(num_warps=blocks.warps, num_stages=blocks.stages),
        interpret=interpret,
        name="weight_only_dot",
    )(x.reshape(-1, padded // slices), weights.payload.reshape(-1, padded // slices), *scales)
    total = partial[0] if blocks.splits == 1 else jnp.sum(partial, axis=0).astype(x.dtype)
    return total.reshape(x.shape[0], -1)[:rows, :features]


def fitted(blocks: Blocks, weights: KernelWeights, dtype: Any) -> Blocks:
    """The nearest blocks that divide these weights; all are powers of two. float32 has no tensor cores: small steps, or
    registers overflow.
    """
    columns, depth = weights.payload.shape
    slices = math.gcd(blocks.slices, depth // weights.chunk)
    own_columns = math.gcd(max(blocks.tile // slices, 1), columns)
    step = min(blocks.depth, weights.chunk, 32 if jnp.dtype(dtype).itemsize == 4 else blocks.depth)
    splits = min(blocks.splits, depth // slices // step)
    return blocks._replace(slices=slices, tile=own_columns * slices, depth=step, splits=splits)


def _kernel(x_ref: Any, payload_ref: Any, scale_ref: Any, *rest: Any, blocks: Blocks, bits: int, middle: int) -> None:
    """One tile: x [rows slices, depth], payload [tile, depth], scale and maybe zero_point [fields, ..., groups]."""
    *zero_refs, out_ref = rest
    (length, depth), (fields, _, groups) = x_ref.shape, scale_ref.shape
    step = blocks.depth

    def of_tile(ref: Any, index: int, group: Array | int) -> Array:
        """Scales [tile, 1]: with groups every slice has its own, else a column's serves all its slices."""
        value = ref[index, :, group]
        if value.shape[0] < blocks.tile:
            value = jnp.broadcast_to(value[:, None], (value.shape[0], blocks.slices)).reshape(blocks.tile)
        return value[:, None]

    def rescaled(index: int, products: Array, total: Array | None, group: Array | int) -> Array:
        if total is not None:
            products -= of_tile(zero_refs[0], index, group) * total[None, :]
        return products * of_tile(scale_ref, index, group)

    def body(i: Array, carry: tuple[list[Array], Array | None]) -> tuple[list[Array], Array | None]:
        sums, total = carry
        at = pl.ds(pl.multiple_of(i * step, step), step)
        x, payload = x_ref[:, at], payload_ref[:, at]
        own = jnp.sum(x.astype(jnp.float32), axis=1) if zero_refs else None
        products = [_products(_codes(payload, bits, index, middle, x.dtype), x) for index in range(fields)]
        if groups > 1:
            group = i * step // (depth // groups)
            products = [rescaled(index, products[index], own, group) for index in range(fields)]
        elif total is not None and own is not None:
            total = total + own
        return [a + b for a, b in zip(sums, products)], total

    steps = pl.cdiv(pl.cdiv(depth, step), blocks.splits)
    first = pl.program_id(2) * steps
    sums = [jnp.zeros((blocks.tile, length), jnp.float32) for _ in range(fields)]
    total = jnp.zeros(length, jnp.float32) if zero_refs and groups == 1 else None
    sums, total = jax.lax.fori_loop(first, jnp.minimum(first + steps, depth // step), body, (sums, total))
    for index in range(fields):
        value = sums[index] if groups > 1 else rescaled(index, sums[index], total, 0)
        out_ref[0, :, index, :] = _own_slices(value, blocks.slices).T.astype(out_ref.dtype)


def _codes(payload: UInt8[Array, "..."], bits: int, index: int, middle: int, dtype: Any) -> Float[Array, "..."]:
    """The codes of a field as floats, exactly: conversion instructions are slow, and Triton's for bytes slower.

    A stored code u is written into the lowest bits of the mantissa of 2^m, m the bits of the mantissa, which makes the
    number 2^m + u; then 2^m and the middle are subtracted. bfloat16 has too short a mantissa for 8 bits: via float32.
    """
    exact = jnp.dtype(jnp.float32 if bits > jnp.finfo(dtype).nmant else dtype)
    word = jnp.uint32 if exact.itemsize == 4 else jnp.uint16
    base = np.asarray(2.0 ** jnp.finfo(exact).nmant, exact)
    stored = payload.astype(word)
    if bits < 8:
        stored = (stored >> word(bits * index)) & word(2**bits - 1)
    shifted = jax.lax.bitcast_convert_type(stored | word(int(base.view(word))), exact)
    return (shifted - jnp.asarray(float(base) + middle, exact)).astype(dtype)


def _products(codes: Float[Array, "tile step"], x: Float[Array, "length step"]) -> Float[Array, "tile length"]:
    """codes xᵀ, summed in float32. HIGHEST: float32 is not rounded to TF32."""
    numbers = (((1,), (1,)), ((), ()))
    return jax.lax.dot_general(
        codes, x, numbers, precision=jax.lax.Precision.HIGHEST, preferred_element_type=jnp.float32
    )


def _own_slices(value: Float[Array, "tile length"], slices: int) -> Float[Array, "columns rows"]:
    """The sum over the slices of K of what belongs together: slice s of a column and slice s of a row."""
    if slices == 1:
        return value
    tile, length = value.shape
    of_tile, of_length = (jax.lax.broadcasted_iota(jnp.int32, value.shape, axis) % slices for axis in (0, 1))
    same = jnp.where(of_tile == of_length, value, 0.0)
    summed = jnp.sum(same.reshape(tile // slices, slices, length), axis=1)
    return jnp.sum(summed.reshape(tile // slices, length // slices, slices), axis=2)
