"""fake_quant against what PyTorch, Brevitas and lsq-net computed, element by element.

Three of the recorded programs round an exact tie another way, by rules that the golden README states: torch multiplies
by 1 / scale, its learnable backward pass adds the zero-point before it rounds, and so does Brevitas. Those elements,
and no others, are left out: each is found by the program's own rule and must be a tie. A gradient that is a sum is
compared without their terms.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import golden_cases

from qresearch.numerics.fake_quant import fake_quant
from qresearch.numerics.grid import integer_range

pytestmark = pytest.mark.skipif(
    jax.default_backend() != "cpu", reason="ties need a correctly rounded division, which XLA promises on CPU only"
)
BREVITAS_ROUNDING = {"round": "half_even", "floor": "floor", "ceil": "ceil", "tozero": "toward_zero"}
BREVITAS_MASK = {"clamp": "rounded", "clampste": "none"}
NUMPY = {"half_even": np.rint, "floor": np.floor, "ceil": np.ceil, "toward_zero": np.trunc}


@cache
def compiled(mask: str, rounding: str):
    """(x, scale, zero_point, qmin, qmax, dy) -> the value and the five gradients."""

    @jax.jit
    def run(*arguments):
        value, pullback = jax.vjp(partial(fake_quant, mask=mask, rounding=rounding), *arguments[:-1])
        return value, *pullback(arguments[-1])

    return run


def ours(x, scale, zero_point, qmin, qmax, dy, mask="rounded", rounding="half_even") -> list[np.ndarray]:
    size = len(x)
    if x.ndim == 1:  # zeros with a zero upstream gradient, so that cases of many lengths are one compilation
        x, dy = (np.pad(value, (0, 96 - size)) for value in (x, dy))
    arrays = (jnp.asarray(value, jnp.float32) for value in (x, scale, zero_point, qmin, qmax, dy))
    value, dx, *sums = (np.asarray(value) for value in compiled(mask, rounding)(*arrays))
    return [value[:size], dx[:size], *sums]


@dataclass
class Comparison:
    """Compares within the stated limits, counts what was compared, and names the case that differs."""

    compared: int = 0
    ties: int = 0
    sums: int = 0
    names: set[str] = field(default_factory=set)

    def elements(self, case, name, found, wanted, keep, limit):
        found, wanted = np.broadcast_arrays(np.asarray(found), np.asarray(wanted))
        keep = np.broadcast_to(keep, found.shape)
        error = np.abs(found - wanted)[keep] / np.maximum(1, np.abs(wanted))[keep]
        assert (error <= limit).all(), f"{case['case']}: {name} differs by {error.max()}"
        self.compared += keep.sum()
        self.ties += (~keep).sum()
        self.names.add(name)

    def sum(self, case, name, found, wanted, limit=2e-5):
        found, wanted = np.asarray(found, np.float64), np.asarray(wanted, np.float64)
        assert found.size == wanted.size
        error = np.abs(found.reshape(-1) - wanted.reshape(-1)) / np.maximum(1, np.abs(wanted.reshape(-1)))
        assert (error <= limit).all(), f"{case['case']}: {name} differs by {error.max()}"
        self.sums += 1
        self.names.add(name)


def assert_ties(x, scale, left_out):
    """What is left out lies within float32 rounding of a half-integer number of steps."""
    steps = np.asarray(x, np.float64) / np.asarray(scale, np.float64)
    distance = np.abs(np.abs(steps - np.floor(steps)) - 0.5) / np.maximum(1, np.abs(steps))
    assert (distance[left_out] < 4 * np.finfo(np.float32).eps).all()


def terms(x, scale, zero_point, qmin, qmax, dy, code, mask):
    """The terms of the gradients in (scale, zero_point, qmin, qmax) for given codes, zero-point included: float64."""
    x, dy, scale = (np.asarray(value, np.float64) for value in (x, dy, scale))
    below, above = (code < qmin, code > qmax) if mask == "rounded" else (np.zeros(x.shape, bool),) * 2
    clipped = np.clip(code, qmin, qmax) - zero_point
    slope = dy * np.where(below | above, clipped, clipped - x / scale)
    return (
        slope,
        np.where(below | above, -dy * scale, 0),
        np.where(below, dy * scale, 0),
        np.where(above, dy * scale, 0),
    )


def torch_codes(x, scale, zero_point) -> tuple[np.ndarray, np.ndarray]:
    """The codes of torch's forward pass, and of its learnable backward pass: one fused multiply-add, then rounding."""
    inverse = np.float32(1) / np.asarray(scale, np.float32)
    fused = np.asarray(x, np.float64) * inverse + zero_point  # 24 by 24 bits: the product is exact in float64
    return np.rint(x * inverse) + zero_point, np.rint(fused.astype(np.float32))


@pytest.mark.parametrize(
    ("name", "cases", "elements", "ties"),
    [("torch_fake_quantize_per_tensor", 48, 3924, 7), ("torch_fake_quantize_per_channel", 17, 4728, 26)],
)
def test_torch_fake_quantize(name, cases, elements, ties):
    result, number = Comparison(), 0
    for case, arrays in golden_cases(name):
        x, dy = arrays["x"], arrays["dy"]
        along = [-1 if axis == case.get("axis") else 1 for axis in range(x.ndim)]
        scale = np.reshape(np.float32(arrays.get("scale", case.get("scale"))), along)
        zero_point = np.reshape(np.float32(arrays.get("zero_point", case.get("zero_point"))), along)
        value, dx, *_ = ours(x, scale, zero_point, case["qmin"], case["qmax"], dy)
        keep = torch_codes(x, scale, zero_point)[0] == np.rint(x / scale) + zero_point
        assert_ties(x, scale, ~keep)
        result.elements(case, "y", value, arrays["y"], keep, 1e-6)
        result.elements(case, "dx", dx, arrays["dx"], keep, 2e-5)
        number += 1
    print(f"{name}: {number} cases, {result.compared} values compared, {result.ties} ties left out")
    assert (number, result.compared, result.ties) == (cases, 2 * (elements - ties), 2 * ties)


def test_torch_learnable_per_tensor():
    result, number = Comparison(), 0
    for case, arrays in golden_cases("torch_learnable_per_tensor"):
        x, dy, scale, zero_point = (arrays[key] for key in ("x", "dy", "scale", "zero_point"))
        offset, bounds = np.rint(zero_point), (case["qmin"], case["qmax"])
        forward, backward = torch_codes(x, scale, offset)
        code = np.rint(x / scale) + offset
        keep_forward, keep = forward == code, backward == code
        assert_ties(x, scale, ~keep)
        value, dx, *_ = ours(x, scale[0], zero_point[0], *bounds, dy)
        result.elements(case, "y", value, arrays["y"], keep_forward, 1e-6)
        result.elements(case, "dx", dx, arrays["dx"], keep, 2e-5)
        _, _, dscale, dzero_point, *_ = ours(x, scale[0], zero_point[0], *bounds, np.where(keep, dy, 0))
        theirs = terms(x, scale, offset, *bounds, np.where(keep, 0, dy), backward, "rounded")
        factor = case["grad_factor"]
        result.sum(case, "dscale", factor * dscale, arrays["dscale"] - factor * theirs[0].sum())
        result.sum(case, "dzero_point", factor * dzero_point, arrays["dzero_point"] - factor * theirs[1].sum())
        number += 1
    print(f"learnable: {number} cases, {result.compared} values and {result.sums} sums, {result.ties} ties left out")
    assert (number, result.sums) == (96, 192)
    assert (result.compared, result.ties) == (2 * 7464 - 674, 674)  # 14 in the forward pass, 660 in the backward pass


def test_lsq_net():
    result, number = Comparison(), 0
    for case, arrays in golden_cases("lsqnet_lsq"):
        x = arrays["x"]
        value, dx, dscale, *_ = ours(x, arrays["scale"], 0.0, case["qmin"], case["qmax"], arrays["dy"], "unrounded")
        result.elements(case, "y", value, arrays["y"], np.True_, 1e-6)
        result.elements(case, "dx", dx, arrays["dx"], np.True_, 2e-5)
        result.sum(case, "dscale", case["grad_factor"] * dscale, arrays["dscale"])
        number += 1
    print(f"lsq-net: {number} cases, {result.compared} values and {result.sums} sums, {result.ties} left out")
    assert (number, result.compared, result.ties, result.sums) == (48, 2 * 7632, 0, 48)


def brevitas_cases(rounding: str):
    """Brevitas truncates after adding the zero-point, where that is no matter of ties: another function, left out."""
    for case, arrays in golden_cases("brevitas_int_quant"):
        if case["rounding"] == rounding and not (rounding == "tozero" and case["zero_point"] != 0):
            yield case, arrays


@pytest.mark.parametrize(
    ("rounding", "cases", "elements", "ties"),
    [("round", 80, 4276, 232), ("floor", 32, 1720, 0), ("ceil", 32, 1720, 0), ("tozero", 16, 860, 0)],
)
def test_brevitas_int_quant(rounding, cases, elements, ties):
    result, number, skipped = Comparison(), 0, 0
    for case, arrays in brevitas_cases(rounding):
        x, dy = arrays["x"], arrays["dy"]
        scale, zero_point = np.float32(case["scale"]), np.float32(case["zero_point"])
        mask, name = BREVITAS_MASK[case["clamp"]], BREVITAS_ROUNDING[rounding]
        to_range = partial(integer_range, signed=case["signed"], narrow=case["narrow"])
        bounds, to_bits = jax.vjp(to_range, jnp.float32(case["bits"]))
        assert [float(end) for end in bounds] == [case["qmin"], case["qmax"]]
        bounds = [np.asarray(end) for end in bounds]
        theirs = NUMPY[name](x / scale + zero_point)
        keep = theirs == NUMPY[name](x / scale) + zero_point
        assert_ties(x, scale, ~keep)
        value, dx, *_ = ours(x, scale, zero_point, *bounds, dy, mask, name)
        result.elements(case, "y", value, arrays["y"], keep, 1e-6)
        result.elements(case, "dx", dx, arrays["dx"], keep, 2e-5)
        _, _, *found = ours(x, scale, zero_point, *bounds, np.where(keep, dy, 0), mask, name)
        left = terms(x, scale, zero_point, *bounds, np.where(keep, 0, dy), theirs, mask)
        left = [term.sum() for term in left]
        result.sum(case, "dscale", found[0], arrays["dscale"] - left[0])
        result.sum(case, "dzero_point", found[1], arrays["dzero_point"] - left[1])
        if np.isnan(arrays["dbit_width"]):  # Brevitas gives no gradient to the width where its clamp passes everything
            assert mask == "none"
            assert found[2] == found[3] == 0
            skipped += 1
        else:
            (dbits,) = to_bits((jnp.asarray(found[2]), jnp.asarray(found[3])))
            (left_bits,) = to_bits((jnp.float32(left[2]), jnp.float32(left[3])))
            result.sum(case, "dbit_width", dbits, arrays["dbit_width"] - left_bits)
        number += 1
    print(
        f"Brevitas {rounding}: {number} cases, {result.compared} values and {result.sums} sums compared,"
        f" {result.ties} ties left out, {skipped} cases without a gradient to the width"
    )
    assert number == cases
    assert (result.compared, result.ties) == (2 * (elements - ties), 2 * ties)
    assert (result.sums, skipped) == (2 * cases + cases // 2, cases // 2)
