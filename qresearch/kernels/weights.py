"""Weights as the kernel reads them: packed so that codes are unpacked in registers, where they lie."""

from __future__ import annotations

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from qresearch.errors import GraphError
from qresearch.numerics.codes import Codes
from qresearch.numerics.packing import QTensor, from_qtensor

CONTAINERS = (2, 4, 8)  # bits that divide a byte: a code of 3 bits takes 4, one of 5 to 7 bits takes 8
# What columns and depth are padded to, so that the kernel's blocks divide them and no load of weights needs a mask.
COLUMNS, CHUNK, CHUNKS = 64, 128, 8


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class KernelWeights:
    """A quantized matrix W [K, N] for ``weight_only_dot``. Build with ``prepare``; ``values`` gives W back.

    payload: [columns, depth], K innermost. Byte (j, k) holds the codes (k, j), (k, j + columns), ... from its lowest
      bits up, 8 / bits of them: its fields. Neighbours in memory are neighbours along K whatever the width, so that
      unpacking moves no code to another thread, and all codes of a byte meet the same x. What is stored is never
      negative: a signed code is its distance from the smallest of the container.
    scale, zero_point: float32 [fields, columns, groups] of depth / groups codes each: W = (code - zero_point) scale.
      zero_point is None where all codes are signed around zero.
    bits (of the container), signed and shape (K, N) are static.
    """

    payload: UInt8[Array, "columns depth"]
    scale: Float[Array, "fields columns groups"]
    zero_point: Float[Array, "fields columns groups"] | None
    bits: int = field(metadata={"static": True})
    signed: bool = field(metadata={"static": True})
    shape: tuple[int, int] = field(metadata={"static": True})

    @property
    def middle(self) -> int:
        """What is added to a signed code to store it."""
        return 2 ** (self.bits - 1) if self.signed else 0

    @property
    def chunk(self) -> int:
        """Consecutive codes along K that surely share a scale: a power of two where a group is meant."""
        depth, groups = self.payload.shape[1], self.scale.shape[2]
        return CHUNK if groups == 1 else depth // groups


def prepare(tensor: QTensor, axis: int = 0) -> KernelWeights:
    """The kernel's layout of a stored matrix [K, N] ([N, K] for axis 1), scaled per tensor, channel or group along K.

    In the view of ``per_group`` the axis of K is two, (groups, size). Codes of 2 to 8 bits and their scales do not
    change; a group whose size is no power of two is stored as several of the largest power of two that divides it, all
    with its scale. zero_point becomes None where it is known (not traced) and all zero. GraphError for codebooks, other
    widths and other shapes.
    """
    if tensor.codebook is not None or not 2 <= tensor.bits <= 8:
        kind = "codes with a codebook" if tensor.codebook is not None else f"codes of {tensor.bits} bits"
        raise GraphError(f"weight_only_dot takes uniform codes of 2 to 8 bits, got {kind}: decode the weights")
    codes = _grouped(from_qtensor(tensor), axis)
    groups, size, features = codes.values.shape
    bits = min(container for container in CONTAINERS if container >= tensor.bits)
    fields = 8 // bits
    columns = COLUMNS * -(-features // (fields * COLUMNS))
    columns_missing = (0, fields * columns - features)
    chunks = -(-size // CHUNK) if groups == 1 else groups
    chunks += -chunks % min(CHUNKS, 1 << (chunks - 1).bit_length())  # the slices of the kernel take whole chunks
    depth_missing = (0, chunks * (CHUNK if groups == 1 else size) - groups * size)
    middle = 2 ** (bits - 1) if tensor.signed else 0
    from_zero = (codes.values.reshape(groups * size, features).T.astype(jnp.int32) + middle).astype(jnp.uint8)
    from_zero = jnp.pad(from_zero, (columns_missing, depth_missing)).reshape(fields, columns, -1)
    payload = from_zero[0]
    for index in range(1, fields):
        payload = payload | from_zero[index] << jnp.uint8(bits * index)

    def stored(value: Array) -> Array:
        missing = (0, 0 if groups == 1 else chunks - groups)
        return jnp.pad(value.T, (columns_missing, missing)).reshape(fields, columns, -1)

    known = not isinstance(tensor.zero_point, jax.core.Tracer)
    zero_point = None if known and not bool(jnp.any(tensor.zero_point)) else stored(codes.zero_point)
    return KernelWeights(payload, stored(codes.scale), zero_point, bits, tensor.signed, (groups * size, features))


def values(weights: KernelWeights) -> Float[Array, "K N"]:
    """The float32 matrix that the weights stand for, exactly as ``decode`` gives it."""
    depth, features = weights.shape
    fields, columns, groups = weights.scale.shape
    shifts = jnp.arange(fields, dtype=jnp.uint8)[:, None, None] * jnp.uint8(weights.bits)
    stored = (weights.payload[None] >> shifts) & jnp.uint8(2**weights.bits - 1)
    codes = (stored.astype(jnp.int32) - weights.middle).astype(jnp.float32).reshape(fields, columns, groups, -1)
    if weights.zero_point is not None:
        codes = codes - weights.zero_point[..., None]
    return (codes * weights.scale[..., None]).reshape(fields * columns, -1)[:features, :depth].T


def _grouped(codes: Codes, axis: int) -> Codes:
    """Codes as [groups, size, N], scale and zero_point as [groups, N]."""
    grouped = codes.values.ndim == 3
    if codes.values.ndim not in (2, 3) or axis not in (0, 1):
        raise GraphError(f"weight_only_dot takes a matrix, or one with groups along K, got {codes.values.shape}")

    def depth_first(value: Array) -> Array:
        if grouped:
            return value if axis == 0 else value.transpose(1, 2, 0)
        return (value if axis == 0 else value.T)[None]

    values, scale, zero_point = depth_first(codes.values), depth_first(codes.scale), depth_first(codes.zero_point)
    if max(scale.shape[1], zero_point.shape[1]) > 1:
        raise GraphError(
            f"weight_only_dot takes one scale per tensor, channel or group along K, got scales {codes.scale.shape} for"
            f" codes {codes.values.shape}: use per_group"
        )
    groups, size, features = values.shape
    power = size & -size if groups > 1 else size

    def refined(value: Array) -> Array:
        return jnp.repeat(jnp.broadcast_to(value[:, 0], (groups, features)), size // power, axis=0)

    return Codes(values.reshape(-1, power, features), refined(scale), refined(zero_point))
