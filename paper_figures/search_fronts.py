"""Fronts of all search methods on one network, with the credible bands of the one that has them.

Paper: our own; each search's paper is in its file, see ``qresearch list allocators``.
Published: nothing.
Recipe: configs/digits_bayes.yaml (CNN on scikit-learn's digits, options W2A4, W4A4 and W8A8, PTQ, one seed) with every
  allocator and every search that trains (5 epochs, whose weights are then not used) at six budgets of average bits; 40
  allocations for nsga2. Bands: what ``bayesian`` believes of the least validation loss within each budget.
Run: CPU (x86-64, JAX 0.10.2), 5.1 CPU minutes.
Tolerance: none.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from paper_figures.figure import Figure, Record, Row
from paper_figures.sweeps import run_config

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Picture

CONFIG = "digits_bayes.yaml"
BUDGETS = (2.5, 3, 3.5, 4, 5, 6)
ALLOCATORS = ("exact", "milp", "lagrangian", "greedy", "annealing", "nsga2", "random", "uniform", "gibbs", "bayesian")
TRAINED = ("dq", "fracbits", "edmips", "bayesian_bits")
SEARCHES = (*ALLOCATORS, *TRAINED)
BANDS = (("90 %", "5 %", "95 %", 0.15), ("50 %", "25 %", "75 %", 0.35))


def run() -> list[Record]:
    """A record per search and budget, and the float model's."""
    listed: list[Record] = [{"flow": "float"}]
    for name in SEARCHES:
        options = {"allocation.options": {"population": 10, "generations": 4}} if name == "nsga2" else {}
        listed += [{"allocation.allocator": name, "allocation.budget": budget, **options} for budget in BUDGETS]
    found = run_config(CONFIG, [f"sweep={json.dumps({'list': listed})}", "search.epochs=5"])
    return [{**record, "search": _short(record["search"])} for record in found]


def _short(search: Record) -> Record:
    """Seconds and, of a posterior, its bands and what was measured."""
    kept = {name: search[name] for name in ("seconds", "table_seconds", "measured", "epochs") if name in search}
    posterior = search.get("posterior", {})
    return kept | {name: posterior[name] for name in ("front", "measured", "optimal") if name in posterior}


def _of(records: Sequence[Record], name: str) -> list[Record]:
    own = [record for record in records if record["flow"] != "float" and record["allocator"].split()[0] == name]
    return sorted(own, key=lambda record: float(record["budget"]["average_bits"]))


def _budgets(records: Sequence[Record]) -> list[float]:
    return [float(record["budget"]["average_bits"]) for record in records]


def rows(records: Sequence[Record]) -> list[Row]:
    """Of every search the mean test accuracy and the mean validation loss over the budgets."""
    found = []
    for name in SEARCHES:
        own = _of(records, name)
        score = 100 * math.fsum(record["test"]["score"] for record in own) / len(own) if own else None
        loss = math.fsum(record["validation"]["loss"] for record in own) / len(own) if own else None
        found.append(Row(f"{name}, mean top-1 of {len(BUDGETS)} budgets", None, score))
        found.append(Row(f"{name}, mean validation loss", None, loss))
    return found


def draw(records: Sequence[Record]) -> Picture:
    """Test accuracy and validation loss against average bits; bands around the latter."""
    from qresearch.report.figure import new_figure

    picture = new_figure(13.0, 5.0)
    scores, losses = picture.subplots(1, 2)
    colours = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
    for i, name in enumerate(SEARCHES):
        own = _of(records, name)
        if not own:
            continue
        x = [record["costs"]["average_bits"] for record in own]
        style: dict[str, Any] = {
            "markersize": 4,
            "linewidth": 1,
            "color": colours[i % 7],
            "linestyle": ("-", "--")[i // 7],
            "marker": "osD^vPX"[i % 7],
        }
        if name in TRAINED:  # what they train is not used here: PTQ of the float model, as for all others
            style |= {"alpha": 0.5, "linewidth": 0.6}
        scores.plot(x, [100 * record["test"]["score"] for record in own], label=name, **style)
        losses.plot(_budgets(own), [record["validation"]["loss"] for record in own], label=name, **style)
    believed = [record for record in _of(records, "bayesian") if "front" in record["search"]]
    for label, low, high, alpha in BANDS:
        ends = [[record["search"]["front"][quantile] for record in believed] for quantile in (low, high)]
        losses.fill_between(
            _budgets(believed), *ends, color="#888888", alpha=alpha, linewidth=0, label=f"bayesian {label} band"
        )
    for record in records:
        if record["flow"] == "float":
            label = "float"
            scores.axhline(100 * record["test"]["score"], color="#555555", linestyle=":", linewidth=1, label=label)
            losses.axhline(record["validation"]["loss"], color="#555555", linestyle=":", linewidth=1, label=label)
    scores.set(xlabel="average bits", ylabel="test top-1 (%)", title="CNN on digits, W2A4, W4A4 or W8A8 per layer")
    losses.set(
        xlabel="budget (average bits)", ylabel="validation loss", yscale="log", title="least loss found within it"
    )
    for axes in (scores, losses):
        axes.grid(alpha=0.25)
    losses.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return picture


FIGURE = Figure(
    title="Fronts of all searches, with credible bands",
    paper="our own",
    run=run,
    rows=rows,
    draw=draw,
)
