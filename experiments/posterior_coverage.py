"""Does the sensitivity posterior predict losses of whole allocations that it has not seen, on real networks?

Question: what share of held-out measured joint losses is inside the central intervals of the posterior predictive, at
  every level, when it was fitted to single-layer losses of 8 parts of the examples and to 96 random joint allocations?
Command: python experiments/posterior_coverage.py CONFIG... [--examples 500] [--held-out 204] [--splits 5]
  [--out FOLDER], with configs/digits_bayes.yaml and, with QRESEARCH_DATA, configs/cifar_resnet20_bayes.yaml.
Writes one JSON line per split to FOLDER/coverage.jsonl and FOLDER/coverage.png. All splits share the measurements: each
  draws anew which of the joint allocations are fitted to, so that one lucky choice does not decide.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import jax
import numpy as np
from bayes_subject import subject_of

from qresearch.allocation.bayes.measurements import Measurements
from qresearch.allocation.bayes.posterior import Posterior, fit_posterior
from qresearch.report.posterior_figure import reliability_png
from qresearch.results import environment
from qresearch.sensitivities.measured_losses import measure_losses

LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)


def coverage(
    random: np.random.Generator, posterior: Posterior, allocations: np.ndarray, losses: np.ndarray
) -> dict[float, float]:
    """The share of losses inside the central predictive interval of every level."""
    mean, sd = posterior.predict(allocations)
    drawn = mean + sd * random.normal(size=mean.shape)
    ends = {level: np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2], axis=0) for level in LEVELS}
    return {level: float(((low <= losses) & (losses <= high)).mean()) for level, (low, high) in ends.items()}


def rows_of(config: Path, examples: int, fitted: int, held_out: int, splits: int) -> list[dict]:
    started = time.perf_counter()
    everything = measure_losses(*subject_of(config, examples).subject[:6], joint=fitted + held_out)
    measuring, random, rows = time.perf_counter() - started, np.random.default_rng(0), []
    for split in range(splits):
        order = random.permutation(fitted + held_out)
        own, rest = order[:fitted], order[fitted:]
        given: Measurements = everything._replace(allocations=everything.allocations[own], joint=everything.joint[own])
        started = time.perf_counter()
        posterior = fit_posterior(jax.random.key(split), given)
        found = coverage(random, posterior, everything.allocations[rest], everything.joint[rest])
        rows.append(
            {
                "config": config.name,
                "split": split,
                "fitted": fitted,
                "held_out": held_out,
                "examples": examples,
                "coverage": found,
                "seconds": time.perf_counter() - started,
                "measuring_seconds": measuring,
                "diagnostics": posterior.diagnostics._asdict(),
                "environment": environment(),
            }
        )
        print(
            f"{config.stem} split {split}: 50 % {found[0.5]:.3f}  90 % {found[0.9]:.3f}  ({rows[-1]['seconds']:.0f} s)"
        )
    mean = {level: np.mean([row["coverage"][level] for row in rows]) for level in LEVELS}
    print(f"{config.stem} mean of {splits}: 50 % {mean[0.5]:.3f}  90 % {mean[0.9]:.3f}, measured in {measuring:.0f} s")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="+", type=Path)
    parser.add_argument("--examples", type=int, default=500)
    parser.add_argument("--fitted", type=int, default=96)
    parser.add_argument("--held-out", type=int, default=204)
    parser.add_argument("--splits", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("runs/posterior_coverage"))
    given = parser.parse_args()
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}")
    rows = [
        row for c in given.configs for row in rows_of(c, given.examples, given.fitted, given.held_out, given.splits)
    ]
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "coverage.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    series = {}
    for config in given.configs:
        own = [row for row in rows if row["config"] == config.name]
        count = given.held_out * len(own)
        series[config.stem] = [
            (level, float(np.mean([row["coverage"][level] for row in own])), count) for level in LEVELS
        ]
    (given.out / "coverage.png").write_bytes(reliability_png(series))


if __name__ == "__main__":
    main()
