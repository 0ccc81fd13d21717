"""Tutorial: a quantizer of your own, from its equation to its place on a sweep's front.

Command: python experiments/tutorials/add_a_quantizer.py
Data: scikit-learn's digits. Time: 18 CPU seconds (x86-64). For one that stays, see docs/how_to/quantizer.md; for one in
a package of yours, docs/how_to/package.md: then every worker knows it, and --engine inline is not needed.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from qresearch.cli import main as qresearch
from qresearch.numerics.codes import Codes, encode_uniform
from qresearch.numerics.fake_quant import fake_quant
from qresearch.numerics.grid import integer_range
from qresearch.quantizers import QUANTIZERS
from qresearch.quantizers.base import Bits, Quantizer, QuantSpec, at_width


class Deviations(NamedTuple):
    """What is calibrated: the step, of x's rank with ones on shared axes."""

    scale: Float[Array, "..."]


def deviations(spec: QuantSpec, /, *, width: float = 3.0) -> Quantizer:
    """The idea: the grid ends at ``width`` standard deviations, whatever the outliers; its step is learned."""

    def init(x: Array, bits: Bits) -> Deviations:
        _, qmax = integer_range(bits, spec.signed, spec.narrow)
        sigma = jnp.sqrt(jnp.mean(x**2, axis=spec.granularity.shared_axes(x.ndim), keepdims=True))
        return Deviations(jnp.maximum(width * sigma / jnp.maximum(qmax, 1.0), 1e-12))

    def grid(qparams: Deviations, bits: Bits) -> tuple[Array, Array, Array, Array]:
        scale = jnp.maximum(jnp.abs(qparams.scale), 1e-12)
        return (scale, jnp.zeros_like(scale), *integer_range(bits, spec.signed, spec.narrow))

    def apply(qparams: Deviations, x: Array, bits: Bits, *, key: Array | None = None) -> Array:
        return at_width(bits, x, fake_quant(x, *grid(qparams, bits), rounding=spec.rounding, key=key))

    def encode(qparams: Deviations, x: Array, bits: Bits) -> Codes:
        return encode_uniform(x, *grid(qparams, bits), spec.rounding)

    return Quantizer(init, apply, encode, learnable=("scale",))


CONFIG = """\
name: tutorial
data: {name: digits}
model: {name: mlp}
float: {epochs: 10}
quantize:
  weight: {quantizer: lsq, granularity: per_channel, range: own}
  input: {quantizer: lsq, range: own}
flow: qat
qat: {epochs: 2, learning_rate: 1e-3}
allocation: {bits: [4, 4]}
sweep:
  grid: {allocation.bits: [[4, 4], [3, 3], [2, 2]]}
  list:
    - {}
    - {quantize.weight.quantizer: deviations, quantize.input.quantizer: deviations}
"""


def main() -> None:
    QUANTIZERS["deviations"] = deviations  # the one line of registration
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "tutorial.yaml"
        config.write_text(CONFIG)
        status = qresearch(["sweep", str(config), "--engine", "inline", "--set", f"output={folder}/results"])
    if status:
        raise SystemExit(status)


if __name__ == "__main__":
    main()
