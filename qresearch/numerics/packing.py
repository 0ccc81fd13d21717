"""Packed codes: several to a byte, and the tensor that stores them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer, UInt8

from qresearch.numerics.codes import Codes

MAX_CODE_BITS = 31  # an unsigned code of 31 bits still fits int32


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class QTensor:
    """A quantized tensor as it is stored. Build with ``to_qtensor``; ``decode(from_qtensor(q))`` are its values.

    payload: the packed codes (``pack``). scale, zero_point, codebook: as in ``Codes``, in the granularity's view.
    bits, shape (of the view) and signed are static: they belong to the type, so that jit sees them.
    """

    payload: UInt8[Array, "..."]
    scale: Float[Array, "..."]
    zero_point: Float[Array, "..."]
    codebook: Float[Array, " levels"] | None
    bits: int = field(metadata={"static": True})
    shape: tuple[int, ...] = field(metadata={"static": True})
    signed: bool = field(metadata={"static": True})


def to_qtensor(codes: Codes, bits: int, signed: bool) -> QTensor:
    """Packs codes of a static width. Indices into a codebook are unsigned whatever the values are."""
    signed = signed and codes.codebook is None
    payload = pack(codes.values, bits)
    return QTensor(payload, codes.scale, codes.zero_point, codes.codebook, bits, tuple(codes.values.shape), signed)


def from_qtensor(tensor: QTensor) -> Codes:
    """The codes of a packed tensor, as int8 or uint8 (int32 above 8 bits), so that their dtype says their sign."""
    values = unpack(tensor.payload, tensor.bits, math.prod(tensor.shape), tensor.signed)
    return Codes(values.reshape(tensor.shape), tensor.scale, tensor.zero_point, tensor.codebook)


def narrow(codes: Codes, signed: bool) -> Codes:
    """Codes of at most 8 bits as int8 or uint8: what ``from_qtensor`` gives, for codes that are never packed."""
    return codes._replace(values=codes.values.astype(jnp.int8 if signed else jnp.uint8))


def pack(values: Integer[Array, "..."], bits: int) -> UInt8[Array, "..."]:
    """Codes to bytes, in the order of the flattened array, the first code in the lowest bits.

    8, 4, 2 and 1 bits: 1, 2, 4 and 8 codes a byte, uint8[bytes] (for 4 and 2 bits ONNX's layout). Other widths:
    bit-planes, uint8[bits, bytes], plane k holding bit k of eight codes a byte. The last byte is filled with zeros.
    Negative codes are stored in two's complement. Codes that do not fit ``bits`` lose their high bits.
    """
    unsigned = jax.lax.bitcast_convert_type(values.reshape(-1).astype(jnp.int32), jnp.uint32)
    width = _field_width(bits)
    if width == bits:
        return _to_bytes(unsigned & (2**bits - 1), width)
    planes = unsigned[None, :] >> jnp.arange(bits, dtype=jnp.uint32)[:, None]
    return _to_bytes(planes & 1, width)


def unpack(payload: UInt8[Array, "..."], bits: int, size: int, signed: bool) -> Integer[Array, " size"]:
    """The ``size`` codes that ``pack`` stored: int8 where signed, uint8 where not; int32 above 8 bits."""
    width = _field_width(bits)
    fields = _from_bytes(payload, width)[..., :size]
    if width != bits:
        fields = jnp.sum(fields << jnp.arange(bits, dtype=jnp.uint32)[:, None], axis=0, dtype=jnp.uint32)
    codes = fields.astype(jnp.int32)
    if signed:  # extends the sign: the highest of the stored bits counts negatively
        codes = (codes ^ 2 ** (bits - 1)) - 2 ** (bits - 1)
    if bits > 8:
        return codes
    return codes.astype(jnp.int8 if signed else jnp.uint8)


def packed_bytes(size: int, bits: int) -> int:
    """The bytes of a payload of ``size`` codes."""
    width = _field_width(bits)
    return bits // width * math.ceil(size * width / 8)


def _field_width(bits: int) -> int:
    """How many bits of a code stand together in a byte: all of them where they divide it, else one."""
    if not 1 <= bits <= MAX_CODE_BITS:
        raise ValueError(f"codes have from 1 to {MAX_CODE_BITS} bits, got {bits}; a pruned or float tensor has none")
    return bits if 8 % bits == 0 else 1


def _to_bytes(fields: Array, width: int) -> Array:
    """uint32 fields [..., n] below 2^width to uint8 [..., ceil(n width / 8)]."""
    count = 8 // width
    missing = -fields.shape[-1] % count
    padded = jnp.pad(fields, [(0, 0)] * (fields.ndim - 1) + [(0, missing)])
    grouped = padded.reshape(*fields.shape[:-1], (fields.shape[-1] + missing) // count, count)
    grouped = grouped << _shifts(width, grouped.ndim)
    return jnp.sum(grouped, axis=-1, dtype=jnp.uint32).astype(jnp.uint8)


def _from_bytes(payload: Array, width: int) -> Array:
    """uint8 [..., bytes] to uint32 fields [..., bytes * 8 / width]."""
    fields = payload.astype(jnp.uint32)[..., None] >> _shifts(width, payload.ndim + 1)
    return (fields & (2**width - 1)).reshape(*payload.shape[:-1], payload.shape[-1] * 8 // width)


def _shifts(width: int, ndim: int) -> Array:
    return jnp.arange(0, 8, width, dtype=jnp.uint32).reshape(*[1] * (ndim - 1), -1)
