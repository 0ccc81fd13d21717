"""Does P(bits) happen as often as it says? A reliability diagram of the posterior over sensitivities.

Paper: our own; the method is simulation-based calibration, Talts et al. 2018, https://arxiv.org/abs/1804.06788.
Published: nothing. What a calibrated posterior would have stands in that column: 50 % and 90 % bands that cover 0.5 and
  0.9. The control believes half the noise and must fail.
Recipe: truths from the prior, measurements of them, posteriors by NUTS (``simulate_posteriors``: 8 layers of 3 options,
  5 budgets each); P(bits) of options on which draws disagree, in ten bins. experiments/posterior_calibration.py
  does the same for 200 truths.
Run: CPU (x86-64, JAX 0.10.2), 4 min 18 s on two cores; 60 truths for each of both.
Tolerance: 0.06 for coverages, two standard errors of 60 x 5 bands that go together by budget; the control has none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from paper_figures.figure import Figure, Record, Row, find

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Picture

SIMULATIONS = 60
POSTERIOR, CONTROL = "posterior", "control, half the noise"


def run() -> list[Record]:
    """A record for the posterior and one for the control."""
    from qresearch.allocation.bayes.simulation import reliability, simulate_posteriors

    found: list[Record] = []
    for name, overconfidence in ((POSTERIOR, 1.0), (CONTROL, 2.0)):
        one = simulate_posteriors(SIMULATIONS, overconfidence=overconfidence)
        undecided = (one.predicted > 0) & (one.predicted < 1)
        found.append(
            {
                "posterior": name,
                "simulations": SIMULATIONS,
                "coverage": {str(level): share for level, share in one.coverage().items()},
                "calibration_error": one.calibration_error(),
                "p_values": one.p_values(),
                "divergent": one.divergent,
                "bins": reliability(one.predicted[undecided], one.observed[undecided]).tolist(),
            }
        )
    return found


def rows(records: Sequence[Record]) -> list[Row]:
    """Coverage of bands, calibration error, and the least p-value of uniform ranks."""
    found = []
    for name, tolerance in ((POSTERIOR, 0.06), (CONTROL, None)):
        coverage = find(records, "coverage", posterior=name)
        for level in ("0.5", "0.9"):
            ours = None if coverage is None else coverage[level]
            found.append(Row(f"{name}, coverage of {float(level):.0%} bands", float(level), ours, tolerance))
        found.append(Row(f"{name}, calibration error", None, find(records, "calibration_error", posterior=name)))
        p_values = find(records, "p_values", posterior=name)
        found.append(Row(f"{name}, least p of ranks", None, None if p_values is None else min(p_values.values())))
    return found


def draw(records: Sequence[Record]) -> Picture:
    """Observed frequencies against predictions, with two binomial standard errors."""
    from qresearch.report.figure import new_figure

    picture = new_figure(5.4, 5.0)
    axes = picture.subplots()
    axes.plot([0, 1], [0, 1], color="#888888", linestyle="--", linewidth=1, label="calibrated")
    for record, colour in zip(records, ("#0072B2", "#D55E00")):
        bins = [(mean, share, count) for mean, share, count in record["bins"] if count]
        errors = [2 * (max(share * (1 - share), 1e-9) / count) ** 0.5 for _, share, count in bins]
        x, y = [row[0] for row in bins], [row[1] for row in bins]
        label = f"{record['posterior']} (error {record['calibration_error']:.3f})"
        axes.errorbar(x, y, yerr=errors, color=colour, marker="o", markersize=4, capsize=2, label=label)
    axes.set(xlabel="P(bits), predicted", ylabel="share in which the optimum has them")
    axes.set_title(f"{records[0]['simulations']} simulated truths each", fontsize=10)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8)
    return picture


FIGURE = Figure(
    title="Reliability of P(bits)",
    paper="our own, after Talts et al. 2018",
    run=run,
    rows=rows,
    draw=draw,
)
