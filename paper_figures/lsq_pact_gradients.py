"""What teaches the quantizer: the gradient of LSQ's step against that of PACT's clipping bound.

Paper: Learned Step Size Quantization, Esser et al. 2020, https://arxiv.org/abs/1902.08153, the figure that compares
  the gradients of LSQ and PACT at 2 unsigned bits; PACT, Choi et al. 2018, https://arxiv.org/abs/1805.06085.
Published: curves, no numbers. By the equations, at step s: LSQ's ∂x̂/∂s is round(x/s) - x/s inside, 0 below and
  q_max above; PACT's ∂x̂/∂α is 0 inside and 1 above: no transition between two levels teaches it anything
  (zhutmost/lsq-net lsq.py; IntelLabs/distiller @d859fc8 q_utils.py). The paper's third curve, QIL, is left out.
Recipe: ``lsq`` and ``pact`` at 2 unsigned bits, s = 1, α = 3, on 361 points from -1 to 4, none at a jump; ``jax.grad``
  of every point by itself, LSQ's without its factor 1 / sqrt(N q_max).
Run: CPU (x86-64, JAX 0.10.2), 2 s.
Tolerance: 1e-6 between autodiff and the equations; 0.01 for the largest gradient between two levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from paper_figures.figure import Figure, Record, Row, find

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Picture

BITS, STEP, LARGEST_CODE, POINTS = 2, 1.0, 3, 361


def run() -> list[Record]:
    """A record per method: its gradient and its value at every x."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from qresearch.quantizers.base import QuantSpec
    from qresearch.quantizers.lsq import LSQ, lsq
    from qresearch.quantizers.pact import PACT, pact

    x = np.linspace(-1.0, 4.0, POINTS) + 1e-4  # no point at a jump
    given = jnp.asarray(x, jnp.float32)
    wide = np.asarray(given, np.float64)
    above = (wide > LARGEST_CODE * STEP).astype(float)
    inside = (wide >= 0) & (above == 0)
    spec = QuantSpec(signed=False)
    step, bound = jnp.full((1,), STEP, jnp.float32), jnp.full((1,), LARGEST_CODE * STEP, jnp.float32)
    cases = {
        # One element shares the step here, so that the factor to be undone is 1 / sqrt(q_max).
        "LSQ": (lsq(spec), LSQ(step), LARGEST_CODE**0.5, inside * (np.round(wide) - wide) + LARGEST_CODE * above),
        "PACT": (pact(spec), PACT(bound), 1.0, above),
    }
    found: list[Record] = []
    for name, (quantizer, qparams, undo, equation) in cases.items():

        def value(qparams: Any, x: Any, quantizer: Any = quantizer) -> Any:
            return quantizer.apply(qparams, x[None], float(BITS))[0]

        both = jax.jit(jax.vmap(jax.value_and_grad(value), in_axes=(None, 0)))
        values, gradients = both(qparams, given)
        ours = undo * np.asarray(gradients[0], np.float64)[:, 0]
        found.append(
            {
                "method": name,
                "x": x.round(6).tolist(),
                "value": np.asarray(values, np.float64).round(7).tolist(),
                "gradient": ours.round(7).tolist(),
                "equation": equation.round(7).tolist(),
                "largest_difference": float(np.abs(ours - equation).max()),
            }
        )
    return found


def rows(records: Sequence[Record]) -> list[Row]:
    """How far autodiff is from the equations, and the largest gradient between two levels."""
    found = []
    for method, largest in (("LSQ", 0.5), ("PACT", 0.0)):
        far = find(records, "largest_difference", method=method)
        found.append(Row(f"{method}, largest distance of autodiff from the equation", 0.0, far, 1e-6))
        x, gradient = find(records, "x", method=method), find(records, "gradient", method=method)
        inside = None if x is None else [abs(g) for v, g in zip(x, gradient) if 0 <= v <= LARGEST_CODE * STEP]
        ours = None if inside is None else max(inside)
        found.append(Row(f"{method}, largest gradient between the first and the last level", largest, ours, 0.01))
    return found


def draw(records: Sequence[Record]) -> Picture:
    """The quantizer's output above the gradients of its one parameter."""
    from qresearch.report.figure import new_figure

    picture = new_figure(6.4, 5.6)
    above, below = picture.subplots(2, 1, sharex=True)
    for record, colour, name in zip(records, ("#0072B2", "#D55E00"), ("∂x̂/∂s, LSQ", "∂x̂/∂α, PACT")):
        below.plot(record["x"], record["gradient"], color=colour, linewidth=1.3, label=name)
        below.plot(record["x"][::8], record["equation"][::8], ".", color=colour, markersize=4)
    below.plot([], [], ".", color="#555555", markersize=4, label="the paper's equation")
    above.plot(records[0]["x"], records[0]["value"], color="#333333", linewidth=1.3)
    above.plot(records[0]["x"], records[0]["x"], color="#999999", linestyle=":", linewidth=1)
    above.set(ylabel="x̂", title=f"{BITS} unsigned bits, s = {STEP:g}, α = {LARGEST_CODE * STEP:g}")
    below.set(xlabel="x", ylabel="gradient, autodiff")
    for axes in (above, below):
        axes.grid(alpha=0.25)
    below.legend(fontsize=8)
    return picture


FIGURE = Figure(
    title="Gradients of LSQ's step and PACT's bound",
    paper="LSQ (Esser et al. 2020), figure of gradients",
    run=run,
    rows=rows,
    draw=draw,
)
