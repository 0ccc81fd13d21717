"""The weight-only product: the kernel (interpreted), its plain form and decoding first give the same numbers."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from kernel_cases import assert_is_the_product, drawn, stored

from qresearch.errors import GraphError
from qresearch.kernels import prepare, values, weight_only_dot, xla_dot
from qresearch.kernels.blocks import default_blocks
from qresearch.kernels.triton import Blocks, fitted, triton_dot
from qresearch.numerics.codes import Codes, decode
from qresearch.numerics.packing import from_qtensor, to_qtensor

BLOCKS = Blocks(slices=4, tile=64, depth=64, splits=2, warps=4, stages=2)


# Not made smaller where they fail: each example is a compilation.
@settings(deadline=None, derandomize=True, database=None, max_examples=4, phases=[Phase.generate])
@given(
    bits=st.sampled_from([2, 3, 4, 7, 8]),
    signed=st.booleans(),
    affine=st.booleans(),
    scaled=st.sampled_from(["tensor", "channel", 16, 32, 48]),
    groups=st.integers(1, 5),
    features=st.integers(1, 150),
    rows=st.integers(1, 20),
    dtype=st.sampled_from(["bfloat16", "float16", "float32"]),
    slices=st.sampled_from([1, 2, 8]),
    splits=st.sampled_from([1, 3]),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_kernel_and_its_plain_form_are_the_product_with_the_decoded_weights(
    bits, signed, affine, scaled, groups, features, rows, dtype, slices, splits, seed
):
    depth = groups * (37 if isinstance(scaled, str) else scaled)
    tensor = stored(depth, features, bits, signed, affine, scaled, seed)
    x, weights = drawn(rows, depth, dtype, seed), prepare(tensor)
    np.testing.assert_array_equal(values(weights), decode(from_qtensor(tensor)).reshape(depth, -1))
    kernel = triton_dot(x, weights, BLOCKS._replace(slices=slices, splits=splits), interpret=True)
    plain = xla_dot(x, weights)
    assert kernel.dtype == plain.dtype == x.dtype
    assert_is_the_product(kernel, x, tensor)
    assert_is_the_product(plain, x, tensor)


@pytest.mark.parametrize(
    ("rows", "depth", "features", "bits", "scaled", "affine"),
    [
        (1, 2048, 128, 4, "channel", False),  # a step after another in every slice
        (2, 1024, 256, 4, 128, True),  # a slice holds one group
        (4, 2048, 130, 8, 128, False),  # a slice holds two
        (70, 256, 96, 8, "channel", True),  # several programs along the rows
        (16, 1408, 64, 2, 128, True),  # 11 groups, padded to 16 for the slices
    ],
)
def test_the_blocks_by_rule_give_the_product(rows, depth, features, bits, scaled, affine):
    tensor = stored(depth, features, bits, not affine, affine, scaled)
    x, weights = drawn(rows, depth, "bfloat16"), prepare(tensor)
    assert_is_the_product(triton_dot(x, weights, default_blocks(rows, weights), interpret=True), x, tensor)


@pytest.mark.parametrize("splits", [3, 5, 8])
def test_splits_need_not_divide_the_steps(splits):
    tensor = stored(512, 64, affine=True, scaled=64)
    x, weights = drawn(2, 512), prepare(tensor)
    blocks = Blocks(slices=1, tile=64, depth=64, splits=splits, warps=4, stages=2)
    assert_is_the_product(triton_dot(x, weights, blocks, interpret=True), x, tensor)


def only_shapes(depth, features, bits, scaled):
    """``prepare`` of weights that are never made."""

    def build():
        shape = (depth, features) if isinstance(scaled, str) else (depth // scaled, scaled, features)
        scale = jnp.ones((1, features) if isinstance(scaled, str) else (shape[0], 1, features))
        return prepare(to_qtensor(Codes(jnp.zeros(shape, jnp.int32), scale, jnp.zeros_like(scale)), bits, signed=True))

    return jax.eval_shape(build)


@settings(deadline=None, derandomize=True, database=None, max_examples=15)
@given(
    rows=st.sampled_from([1, 2, 3, 7, 16, 33, 200]),
    depth=st.sampled_from([16, 80, 128, 1000, 4096, 11008]),
    features=st.sampled_from([1, 10, 64, 1000, 4096]),
    bits=st.sampled_from([2, 4, 8]),
    scaled=st.sampled_from(["channel", 16, 128]),
    powers=st.tuples(st.integers(0, 3), *[st.integers(0, 10)] * 3),
)
def test_fitted_blocks_cover_the_weights_once(rows, depth, features, bits, scaled, powers):
    weights = only_shapes(
        depth, features, bits, scaled if isinstance(scaled, int) and depth % scaled == 0 else "channel"
    )
    (columns, padded), groups = weights.payload.shape, weights.scale.shape[2]
    asked = Blocks(*(2**power for power in powers), warps=4, stages=2)
    for blocks in (fitted(asked, weights, jnp.bfloat16), fitted(default_blocks(rows, weights), weights, jnp.bfloat16)):
        assert blocks.tile % blocks.slices == 0
        assert columns % (blocks.tile // blocks.slices) == 0
        assert padded % (blocks.slices * blocks.depth) == 0
        assert weights.chunk % blocks.depth == 0
        assert groups == 1 or groups % blocks.slices == 0
        assert 1 <= blocks.splits <= padded // blocks.slices // blocks.depth


@pytest.mark.parametrize("scaled", ["tensor", "channel", 16, 24])
def test_a_matrix_stored_as_its_transpose_is_the_same(scaled):
    tensor = stored(96, 40, affine=True, scaled=scaled)
    codes = from_qtensor(tensor)
    order = (1, 0) if isinstance(scaled, str) else (2, 0, 1)
    turned = Codes(codes.values.transpose(order), codes.scale.transpose(order), codes.zero_point.transpose(order))
    other = prepare(to_qtensor(turned, 4, signed=True), axis=1)
    for found, wanted in zip(jax.tree.leaves(other), jax.tree.leaves(prepare(tensor)), strict=True):
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize(("bits", "container"), [(2, 2), (3, 4), (4, 4), (5, 8), (8, 8)])
def test_weights_take_the_bytes_of_their_container(bits, container):
    assert prepare(stored(1024, 512, bits)).payload.nbytes == 1024 * 512 * container // 8


def test_symmetric_weights_need_no_zero_point_and_traced_ones_keep_it():
    tensor = stored(64, 64)
    assert prepare(tensor).zero_point is None
    traced = jax.jit(prepare)(tensor)
    assert not np.any(traced.zero_point)
    np.testing.assert_array_equal(values(traced), values(prepare(tensor)))


def test_leading_axes_stay_and_vmap_is_a_loop():
    weights, x = prepare(stored(64, 48, affine=True, scaled=16)), drawn(6, 64)
    wanted = xla_dot(x, weights)
    np.testing.assert_allclose(
        weight_only_dot(x.reshape(2, 3, 64), weights), wanted.reshape(2, 3, 48), rtol=1e-5, atol=1e-5
    )
    looped = jax.vmap(lambda row: weight_only_dot(row, weights))(x)
    np.testing.assert_allclose(looped, wanted, rtol=1e-5, atol=1e-5)
    assert weight_only_dot(x[:0], weights).shape == (0, 48)


@pytest.mark.parametrize(
    ("tensor", "axis", "message"),
    [
        (stored(16, 8, bits=1, signed=False), 0, "2 to 8 bits, got codes of 1 bits"),
        (stored(16, 8, bits=12), 0, "2 to 8 bits, got codes of 12 bits"),
        (to_qtensor(Codes(jnp.zeros((4, 4), int), *[jnp.ones((1, 4))] * 2, jnp.ones(16)), 4, False), 0, "codebook"),
        (to_qtensor(Codes(jnp.zeros((4, 4), int), *[jnp.ones((4, 1))] * 2), 4, True), 0, "one scale per tensor"),
        (to_qtensor(Codes(jnp.zeros(4, int), *[jnp.ones(1)] * 2), 4, True), 0, "takes a matrix"),
        (stored(16, 8), 2, "takes a matrix"),
    ],
)
def test_what_has_no_layout_is_one_line(tensor, axis, message):
    with pytest.raises(GraphError, match=message) as caught:
        prepare(tensor, axis)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("x", [jnp.zeros((2, 15)), jnp.zeros(()), jnp.zeros((2, 16), jnp.int8)])
def test_an_x_that_does_not_match_is_one_line(x):
    with pytest.raises(GraphError, match=r"floats \[\.\.\., 16\]"):
        weight_only_dot(x, prepare(stored(16, 8)))
