"""The kernel is lowered for CUDA without a device; every platform gets its own form."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from jax import export
from kernel_cases import drawn, stored

from qresearch.compat import gpu_to_lower_for
from qresearch.kernels import CUSTOM_CALL, prepare, weight_only_dot, xla_dot

pytestmark = pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated:DeprecationWarning")
WEIGHTS = {
    "int4 groups": stored(512, 192, scaled=128),
    "int4 affine": stored(512, 192, signed=False, affine=True, scaled=32),
    "int8 channels": stored(1000, 70, bits=8),
    "int2 affine": stored(80, 70, bits=2, affine=True),
    "odd groups": stored(96, 70, scaled=48),
}


def lowered(function, platform, *arguments):
    with gpu_to_lower_for():
        return jax.jit(function).trace(*arguments).lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("rows", [1, 4, 16, 100])
def test_on_cuda_it_is_triton_and_elsewhere_it_is_not(name, dtype, rows):
    weights = prepare(WEIGHTS[name])
    x = jax.ShapeDtypeStruct((rows, weights.shape[0]), dtype)
    assert lowered(weight_only_dot, "cuda", x, weights).count(CUSTOM_CALL) == 1
    if rows == 1:
        assert CUSTOM_CALL not in lowered(weight_only_dot, "cpu", x, weights)
        assert CUSTOM_CALL not in lowered(weight_only_dot, "tpu", x, weights)


def test_under_vmap_it_is_one_kernel():
    weights = prepare(WEIGHTS["int4 groups"])
    text = lowered(jax.vmap(weight_only_dot, (0, None)), "cuda", drawn(6, 512).reshape(2, 3, 512), weights)
    assert text.count(CUSTOM_CALL) == 1


def test_groups_too_small_for_tensor_cores_are_left_to_xla():
    weights = prepare(stored(96, 70, scaled=24))
    assert CUSTOM_CALL not in lowered(weight_only_dot, "cuda", drawn(2, 96), weights)


def test_one_artefact_holds_the_product_for_cpu_cuda_and_tpu():
    weights, x = prepare(WEIGHTS["int4 groups"]), drawn(3, 512, "bfloat16")
    leaves, tree = jax.tree.flatten(weights)

    def product(x, *leaves):
        return weight_only_dot(x, jax.tree.unflatten(tree, leaves))

    let_through = [export.DisabledSafetyCheck.custom_call(CUSTOM_CALL)]
    with gpu_to_lower_for():
        artefact = export.export(jax.jit(product), platforms=["cpu", "cuda", "tpu"], disabled_checks=let_through)(
            x, *leaves
        )
    loaded = export.deserialize(artefact.serialize())
    assert loaded.platforms == ("cpu", "cuda", "tpu")
    assert loaded.mlir_module().count(CUSTOM_CALL) == 1
    np.testing.assert_array_equal(loaded.call(x, *leaves), jax.jit(xla_dot)(x, weights))
