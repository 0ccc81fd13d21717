"""Gradients of the three parametrizations of a uniform quantizer, U1 to U3, from autodiff and from the closed form.

Paper: Mixed Precision DNNs: All you need is a good parametrization, Uhlich et al. 2020,
  https://arxiv.org/abs/1905.11452, the figure of gradients (sony/ai-research-code @cfe96df, mixed-precision-dnns,
  imgs/gradients.png).
Published: curves, no numbers. From the paper's equations, at b bits and step d: U1 (b, d): ∂d is (Q - x) / d inside
  and ±(2^(b-1) - 1) outside, ∂b is 0 inside and ±2^(b-1) ln 2 d outside. U2 (b, q_max): ∂b is -2^(b-1) ln 2 /
  (2^(b-1) - 1) (Q - x) inside and 0 outside, ∂q_max is (Q - x) / q_max inside and ±1 outside. U3 (d, q_max): ∂d is
  (Q - x) / d inside and 0 outside, ∂q_max is 0 inside and ±1 outside: bounded, and never both.
Recipe: ``dq_u1``, ``dq_u2`` and ``dq_u3`` at 3 bits and d = 1/2 on 361 points from -2.25 to 2.25, none at a jump;
  ``jax.grad`` of every point by itself, in float32.
Run: CPU (x86-64, JAX 0.10.2), 2 s.
Tolerance: 1e-6 between autodiff and the equations; 0.01 for the largest gradients (they are met between two points).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from paper_figures.figure import Figure, Record, Row, find

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Picture

BITS, STEP, POINTS = 3, 0.5, 361
LARGEST_CODE = 2 ** (BITS - 1) - 1
BOUND = LARGEST_CODE * STEP
PER_BIT = 2 ** (BITS - 1) * math.log(2)  # the derivative of 2^(b-1)
NAMES = {"bits": "∂Q/∂b", "scale": "∂Q/∂d", "bound": "∂Q/∂q_max"}
LARGEST = {  # of the absolute gradients, by the equations
    "U1 scale": LARGEST_CODE,
    "U1 bits": PER_BIT * STEP,
    "U2 bits": PER_BIT / LARGEST_CODE * STEP / 2,
    "U2 bound": 1.0,
    "U3 scale": 0.5,
    "U3 bound": 1.0,
}


def run() -> list[Record]:
    """A record per parametrization and parameter: its gradient at every x, by autodiff and by the equation."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from qresearch.quantizers.base import QuantSpec
    from qresearch.quantizers.dq import DQU1, DQU2, DQU3, dq_u1, dq_u2, dq_u3

    x = np.linspace(-2.25, 2.25, POINTS) + 1e-4  # no point at a jump
    bits, step, bound = (jnp.full((1,), value, jnp.float32) for value in (BITS, STEP, BOUND))
    starts: dict[str, tuple[Any, Any]] = {
        "U1": (dq_u1, DQU1(step, bits)),
        "U2": (dq_u2, DQU2(bits, bound)),
        "U3": (dq_u3, DQU3(step, bound)),
    }
    found: list[Record] = []
    for name, (factory, qparams) in starts.items():
        quantizer = factory(QuantSpec())

        def value(qparams: Any, x: Any, quantizer: Any = quantizer) -> Any:
            return quantizer.apply(qparams, x[None], float(BITS))[0]

        given = jnp.asarray(x, jnp.float32)
        gradients = jax.jit(jax.vmap(jax.grad(value), in_axes=(None, 0)))(qparams, given)
        for parameter in qparams._fields:
            ours = np.asarray(getattr(gradients, parameter), np.float64)[:, 0]
            wanted = _equation(name, parameter)(np.asarray(given, np.float64), np)
            found.append(
                {
                    "curve": f"{name} {parameter}",
                    "x": x.round(6).tolist(),
                    "gradient": ours.round(7).tolist(),
                    "equation": wanted.round(7).tolist(),
                    "largest_difference": float(np.abs(ours - wanted).max()),
                }
            )
    return found


def _equation(name: str, parameter: str) -> Callable[[Any, Any], Any]:
    """The paper's gradient of a parameter as a function of x, and of numpy, which is imported late."""

    def gradient(x: Any, np: Any) -> Any:
        inside, sign = np.abs(x) <= BOUND, np.sign(x)
        error = sign * STEP * np.round(np.abs(x) / STEP) - x
        within, beyond = {
            "U1 scale": (error / STEP, sign * LARGEST_CODE),
            "U1 bits": (0.0 * x, sign * PER_BIT * STEP),
            "U2 bits": (-PER_BIT / LARGEST_CODE * error, 0.0 * x),
            "U2 bound": (error / BOUND, sign),
            "U3 scale": (error / STEP, 0.0 * x),
            "U3 bound": (0.0 * x, sign),
        }[f"{name} {parameter}"]
        return np.where(inside, within, beyond)

    return gradient


def rows(records: Sequence[Record]) -> list[Row]:
    """For every gradient how far autodiff is from the equation, and the largest one."""
    found = []
    for curve, largest in LARGEST.items():
        name, parameter = curve.split()
        what = f"{name} {NAMES[parameter]}"
        gradient = find(records, "gradient", curve=curve)
        ours = None if gradient is None else max(map(abs, gradient))
        far = find(records, "largest_difference", curve=curve)
        found.append(Row(f"{what}, largest distance of autodiff from the equation", 0.0, far, 1e-6))
        found.append(Row(f"{what}, largest", float(largest), ours, 0.01))
    return found


def draw(records: Sequence[Record]) -> Picture:
    """One panel per parametrization: autodiff as lines, the equations as dots."""
    from qresearch.report.figure import new_figure

    picture = new_figure(13.0, 4.0)
    panels = picture.subplots(1, 3)
    colours = {"scale": "#0072B2", "bits": "#D55E00", "bound": "#009E73"}
    for axes, name in zip(panels, ("U1", "U2", "U3")):
        for record in records:
            own, parameter = record["curve"].split()
            if own == name:
                colour = colours[parameter]
                axes.plot(record["x"], record["gradient"], color=colour, linewidth=1.2, label=NAMES[parameter])
                axes.plot(record["x"][::6], record["equation"][::6], ".", color=colour, markersize=4)
        axes.plot([], [], ".", color="#555555", markersize=4, label="the paper's equation")
        axes.set(title=f"{name}, {BITS} bits, d = {STEP:g}", xlabel="x", ylim=(-3.4, 3.4))
        axes.grid(alpha=0.25)
        axes.legend(fontsize=8, loc="upper left")
    panels[0].set_ylabel("gradient of Q(x), autodiff")
    return picture


FIGURE = Figure(
    title="Gradients of U1, U2 and U3",
    paper="DQ (Uhlich et al. 2020), figure of gradients",
    run=run,
    rows=rows,
    draw=draw,
)
