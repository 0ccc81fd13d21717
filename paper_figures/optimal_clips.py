"""Optimal clips and steps against bits: what a uniform grid, a half-wave grid and a free codebook can do on known laws.

Paper: ACIQ, Banner et al. 2019, https://arxiv.org/abs/1810.05723 (table of optimal clips); HWGQ, Cai et al. 2017,
  https://arxiv.org/abs/1702.00953 (optimal steps); Max 1960, https://doi.org/10.1109/TIT.1960.1057548 (tables of equal
  and of free levels); the bound 2^(-2b) of normal data, Shannon 1959.
Published: ACIQ, 1 to 8 bits: Laplace 1.86 2.83 3.89 5.03 6.20 7.41 8.64 9.89, normal 1.24 1.71 2.15 2.55 2.93 3.28 3.61
  3.92 (IntelLabs/distiller @d859fc8). HWGQ, 2 to 5 bits: 0.5380 0.3218 0.1813 0.1029 (XinDongol's HWGQ for TensorFlow).
  Max, 2 to 5 bits: steps 0.9957 0.5860 0.3352 0.1881, errors 0.1188 0.03744 0.01154 0.003495, and 0.1175 0.03454
  0.009497 0.002499 for free levels: quoted from memory, not read at the paper, and said so in every row.
Recipe: the closed forms of ``qresearch.numerics.ranges_aciq``; the other optima by a search over the step on 65,536
  quantiles of the law (nothing is random), with the library's quantizers; free levels by ``kmeans_levels``.
Run: CPU (x86-64, JAX 0.10.2), 11 s.
Tolerance: 0.01 (ACIQ), 2 % (HWGQ; its published 4-bit step is off, least error needs 0.1842), 0.0005 (Max, steps),
  0.5 % (errors of equal levels), 1 % (of free levels: k-means on quantiles).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from paper_figures.figure import Figure, Record, Row, find

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Picture

ACIQ = {
    "Laplace": (1.86, 2.83, 3.89, 5.03, 6.20, 7.41, 8.64, 9.89),
    "normal": (1.24, 1.71, 2.15, 2.55, 2.93, 3.28, 3.61, 3.92),
}
HWGQ = {2: 0.5380, 3: 0.3218, 4: 0.1813, 5: 0.1029}
MAX_STEPS = {2: 0.9957, 3: 0.5860, 4: 0.3352, 5: 0.1881}
MAX_ERRORS = {2: 0.1188, 3: 0.03744, 4: 0.01154, 5: 0.003495}
LLOYD = {2: 0.1175, 3: 0.03454, 4: 0.009497, 5: 0.002499}
QUANTILES = 2**16
MEMORY = ", published value from memory"


def run() -> list[Record]:
    """A record per curve and width."""
    import jax.numpy as jnp
    import numpy as np
    from scipy.stats import norm

    from qresearch.numerics.fake_quant import fake_quant
    from qresearch.numerics.kmeans import kmeans_levels
    from qresearch.numerics.ranges_aciq import gauss_clip, laplace_clip
    from qresearch.quantizers.base import QuantSpec
    from qresearch.quantizers.midpoint import Midpoint, midpoint

    shares = (np.arange(QUANTILES) + 0.5) / QUANTILES
    normal = norm.ppf(shares).astype(np.float32)
    half, quantizer = norm.ppf((1 + shares) / 2).astype(np.float32), midpoint(QuantSpec())
    found: list[Record] = []
    for bits in range(1, 9):
        found.append({"curve": "clip Laplace", "bits": bits, "value": float(laplace_clip(bits))})
        found.append({"curve": "clip normal", "bits": bits, "value": float(gauss_clip(bits))})
        levels = np.asarray(kmeans_levels(jnp.asarray(normal), jnp.int32(2**bits), 2**bits))
        middle = (levels[1:] + levels[:-1]) / 2
        error = np.mean((levels[np.searchsorted(middle, normal)] - normal.astype(np.float64)) ** 2)
        found.append({"curve": "error free levels", "bits": bits, "value": float(error)})

        def equal(step: Any, bits: int = bits) -> Any:
            bound = (step * 2.0 ** (bits - 1)).reshape(1)
            return quantizer.apply(Midpoint(-bound, bound), jnp.asarray(normal), float(bits))

        def half_wave(step: Any, bits: int = bits) -> Any:
            return fake_quant(jnp.asarray(half), step, 0.0, 1.0, 2.0**bits - 1.0)

        for curve, quantize, x in (("equal levels", equal, normal), ("half wave", half_wave, half)):
            step, error = _best(quantize, x, 10.0 * 2.0**-bits)
            found.append({"curve": f"step {curve}", "bits": bits, "value": step})
            found.append({"curve": f"error {curve}", "bits": bits, "value": error})
    return found


def _best(quantize: Callable[[Any], Any], x: Any, largest: float) -> tuple[float, float]:
    """(step, error) of the least error, of steps up to ``largest``."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from scipy.optimize import minimize_scalar

    compiled, wide = jax.jit(quantize), x.astype(np.float64)

    def error(step: float) -> float:
        return float(np.mean((np.asarray(compiled(jnp.float32(step)), np.float64) - wide) ** 2))

    found = minimize_scalar(error, bounds=(largest / 10, largest), options={"xatol": 1e-6})
    return float(found.x), float(found.fun)


def rows(records: Sequence[Record]) -> list[Row]:
    """Every published number."""
    found = [
        Row(f"ACIQ clip, {law}, {bits} bits", value, find(records, "value", curve=f"clip {law}", bits=bits), 0.01)
        for law, values in ACIQ.items()
        for bits, value in enumerate(values, start=1)
    ]
    for what, curve, published, tolerance in (
        ("HWGQ step", "step half wave", HWGQ, {bits: 0.02 * step for bits, step in HWGQ.items()}),
        (f"Max step of equal levels{MEMORY}", "step equal levels", MAX_STEPS, dict.fromkeys(MAX_STEPS, 0.0005)),
        (f"Max error of equal levels{MEMORY}", "error equal levels", MAX_ERRORS, _share(MAX_ERRORS, 0.005)),
        (f"Max error of free levels{MEMORY}", "error free levels", LLOYD, _share(LLOYD, 0.01)),
    ):
        for bits, value in published.items():
            ours = find(records, "value", curve=curve, bits=bits)
            found.append(Row(f"{what}, {bits} bits", value, ours, tolerance[bits]))
    return found


def _share(values: dict[int, float], share: float) -> dict[int, float]:
    return {bits: share * value for bits, value in values.items()}


def draw(records: Sequence[Record]) -> Picture:
    """Clips, steps and errors: lines are ours, open marks the published values."""
    from qresearch.report.figure import new_figure

    picture = new_figure(13.0, 4.2)
    clips, steps, errors = picture.subplots(1, 3)

    def line(axes: Any, curve: str, label: str, colour: str, published: dict[int, float]) -> None:
        own = sorted((record["bits"], record["value"]) for record in records if record["curve"] == curve)
        axes.plot(*zip(*own), color=colour, marker=".", linewidth=1.2, label=label)
        if published:
            axes.plot(*zip(*published.items()), "o", markersize=9, color=colour, fillstyle="none")

    line(clips, "clip Laplace", "Laplace, in b", "#0072B2", dict(enumerate(ACIQ["Laplace"], start=1)))
    line(clips, "clip normal", "normal, in σ", "#D55E00", dict(enumerate(ACIQ["normal"], start=1)))
    clips.set(title="ACIQ: clip of least error", ylabel="clip α")
    line(steps, "step equal levels", "equal levels, N(0, 1) (Max)", "#009E73", MAX_STEPS)
    line(steps, "step half wave", "half wave, |N(0, 1)| (HWGQ)", "#CC79A7", HWGQ)
    steps.set(title="step of least error", ylabel="step", yscale="log")
    line(errors, "error equal levels", "equal levels (Max)", "#009E73", MAX_ERRORS)
    line(errors, "error free levels", "free levels (Lloyd-Max)", "#0072B2", LLOYD)
    widths = sorted({record["bits"] for record in records})
    errors.plot(widths, [4.0**-bits for bits in widths], "k--", linewidth=1, label=r"bound $2^{-2b}$")
    errors.set(title="mean squared error on N(0, 1)", ylabel="mean squared error", yscale="log")
    for axes in (clips, steps, errors):
        axes.plot([], [], "o", color="#555555", markersize=9, fillstyle="none", label="published")
        axes.set_xlabel("bits")
        axes.grid(alpha=0.25)
        axes.legend(fontsize=8)
    return picture


FIGURE = Figure(
    title="Optimal clips and steps against bits",
    paper="ACIQ (Banner et al. 2019), HWGQ (Cai et al. 2017), Max 1960",
    run=run,
    rows=rows,
    draw=draw,
)
