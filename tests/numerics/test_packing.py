from __future__ import annotations

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qresearch.numerics.codes import Codes, decode, encode_uniform
from qresearch.numerics.granularity import PER_TENSOR, per_channel, per_group
from qresearch.numerics.grid import integer_range, scale_from_range
from qresearch.numerics.packing import QTensor, from_qtensor, narrow, pack, packed_bytes, to_qtensor, unpack

WIDTHS = (*range(1, 9), 12, 31)
SIZES = (0, 1, 3, 8, 13)  # each is a compilation
X = np.random.default_rng(0).normal(0, 1, (4, 6, 31)).astype(np.float32)


def code_range(bits: int, signed: bool) -> tuple[int, int]:
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)


@cache
def there_and_back(size: int):
    """For every width: the payload of int32 codes, and what comes back, unsigned and signed. Compiled once a length."""

    def run(values):
        payloads = [pack(value, bits) for value, bits in zip(values, WIDTHS)]
        back = [[unpack(payload, *each, size, s) for payload, *each in zip(payloads, WIDTHS)] for s in (False, True)]
        return payloads, back

    return jax.jit(run)


@settings(deadline=None, derandomize=True, database=None, max_examples=60)
@given(st.sampled_from(SIZES), st.booleans(), st.integers(0, 2**32 - 1))
def test_codes_come_back_from_every_width_and_length(size, signed, seed):
    generator = np.random.default_rng(seed)
    values = [generator.integers(*code_range(bits, signed), size, np.int32, endpoint=True) for bits in WIDTHS]
    payloads, back = there_and_back(size)(values)
    for bits, value, payload, found in zip(WIDTHS, values, payloads, back[signed]):
        np.testing.assert_array_equal(found, value)
        assert payload.dtype == jnp.uint8
        assert payload.size == packed_bytes(size, bits)
        assert found.dtype == (jnp.int32 if bits > 8 else jnp.int8 if signed else jnp.uint8)


@pytest.mark.parametrize("signed", [True, False])
def test_the_extreme_codes_of_every_width_come_back(signed):
    values = [np.asarray((*code_range(bits, signed), 0), np.int32) for bits in WIDTHS]
    for value, found in zip(values, there_and_back(3)(values)[1][signed]):
        np.testing.assert_array_equal(found, value)


@pytest.mark.parametrize(("bits", "codes_a_byte"), [(8, 1), (4, 2), (2, 4), (1, 8)])
def test_widths_that_divide_a_byte_lie_side_by_side_from_the_lowest_bits(bits, codes_a_byte):
    codes = np.random.default_rng(bits).integers(0, 2**bits, 3 * codes_a_byte)
    wanted = (codes.reshape(3, -1) << (np.arange(codes_a_byte) * bits)).sum(1)
    np.testing.assert_array_equal(pack(jnp.asarray(codes, jnp.int32), bits), wanted)


def test_four_bits_are_laid_out_as_in_onnx():
    """The first of two in the low half: 1 and -1 make 0xF1; a missing last one is zero."""
    np.testing.assert_array_equal(pack(jnp.asarray([1, -1, -8], jnp.int32), 4), [0xF1, 0x08])


@pytest.mark.parametrize("bits", [3, 5, 6, 7])
def test_other_widths_are_bit_planes(bits):
    codes = np.random.default_rng(bits).integers(0, 2**bits, 21)
    planes = np.packbits(codes >> np.arange(bits)[:, None] & 1, axis=1, bitorder="little")
    found = pack(jnp.asarray(codes, jnp.int32), bits)
    np.testing.assert_array_equal(found, planes)
    assert found.shape == (bits, 3)


def test_a_megabyte_of_weights_takes_what_its_width_says():
    for bits in (2, 3, 4, 5, 6, 8):
        payload = jax.eval_shape(lambda v, bits=bits: pack(v, bits), jax.ShapeDtypeStruct((2**20,), jnp.int32))
        assert payload.size == 2**20 * bits // 8


@pytest.mark.parametrize("bits", [0, -1, 32])
def test_a_width_without_codes_is_refused(bits):
    with pytest.raises(ValueError, match=f"from 1 to 31 bits, got {bits}"):
        pack(jnp.zeros(3, jnp.int32), bits)


@pytest.mark.parametrize(("signed", "symmetric"), [(True, True), (False, False)])
@pytest.mark.parametrize("granularity", [PER_TENSOR, per_channel(1), per_group(1, 3)])
def test_a_packed_tensor_decodes_to_the_same_values(granularity, signed, symmetric):
    view = granularity.view(jnp.asarray(X))
    axes = granularity.shared_axes(view.ndim)
    low, high = view.min(axes, keepdims=True), view.max(axes, keepdims=True)
    for bits in (2, 3, 8):
        qmin, qmax = integer_range(float(bits), signed)
        codes = encode_uniform(view, *scale_from_range(low, high, qmin, qmax, symmetric), qmin, qmax)
        packed = to_qtensor(codes, bits, signed)
        restored = from_qtensor(packed)
        np.testing.assert_array_equal(restored.values, codes.values)
        np.testing.assert_array_equal(decode(restored), decode(codes))
        assert packed.shape == view.shape
        assert restored.values.dtype == narrow(codes, signed).values.dtype
        np.testing.assert_array_equal(restored.values, narrow(codes, signed).values)


def test_a_codebook_is_stored_with_its_indices():
    codes = Codes(jnp.asarray([[0, 3, 2], [1, 1, 3]], jnp.int32), jnp.ones((2, 1)), jnp.zeros((2, 1)), jnp.arange(4.0))
    packed = to_qtensor(codes, 2, signed=True)  # the values have a sign, their indices have not
    assert not packed.signed
    assert packed.payload.size == 2
    np.testing.assert_array_equal(decode(from_qtensor(packed)), decode(codes))


def test_it_is_a_pytree_whose_width_and_shape_are_static():
    codes = Codes(jnp.arange(-4, 3).reshape(7, 1), jnp.full((1, 1), 0.5), jnp.zeros((1, 1)))
    packed = jax.jit(lambda codes: to_qtensor(codes, 3, signed=True))(codes)
    assert isinstance(packed, QTensor)
    assert (packed.bits, packed.shape, packed.signed) == (3, (7, 1), True)
    leaves, structure = jax.tree.flatten(packed)
    assert [leaf.dtype for leaf in leaves] == [jnp.uint8, jnp.float32, jnp.float32]
    assert structure == jax.tree.structure(to_qtensor(codes, 3, signed=True))
    assert structure != jax.tree.structure(to_qtensor(codes, 4, signed=True))
    values = jax.jit(lambda packed: decode(from_qtensor(packed)))(packed)
    np.testing.assert_array_equal(values, 0.5 * np.arange(-4, 3).reshape(7, 1))
