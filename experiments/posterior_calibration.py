"""Is the sensitivity posterior calibrated where its model is true?

Question: over simulated truths, are ranks uniform, do 50 % and 90 % bands of the chosen allocation's loss cover what
  they promise, and is a layer's P(bits) the frequency with which the truth's optimum has them? And does a posterior
  that believes half the noise (the negative control) fail?
Command: python experiments/posterior_calibration.py [--simulations 200] [--out FOLDER]
Writes one JSON line per posterior, honest and overconfident, to FOLDER/calibration.jsonl, and FOLDER/reliability.png.
Time: twelve minutes on one x86-64 core for 200 simulations of each.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import jax

from qresearch.allocation.bayes.simulation import Calibration, reliability, simulate_posteriors
from qresearch.report.posterior_figure import reliability_png
from qresearch.results import environment


def row_of(name: str, simulations: int, found: Calibration) -> dict:
    undecided = (found.predicted > 0) & (found.predicted < 1)
    return {
        "posterior": name,
        "simulations": simulations,
        "p_values": found.p_values(),
        "coverage": found.coverage(),
        "calibration_error": found.calibration_error(),
        "divergent": found.divergent,
        "reliability": reliability(found.predicted[undecided], found.observed[undecided]).tolist(),
        "environment": environment(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulations", type=int, default=200)
    parser.add_argument("--out", type=Path, default=Path("runs/posterior_calibration"))
    given = parser.parse_args()
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}")
    rows = []
    for name, overconfidence in (("posterior", 1.0), ("control, half the noise", 2.0)):
        found = simulate_posteriors(given.simulations, overconfidence=overconfidence)
        rows.append(row_of(name, given.simulations, found))
        least = min(rows[-1]["p_values"].values())
        print(
            f"{name}: least p {least:.3g}, coverage {found.coverage()}, ECE {found.calibration_error():.4f}", flush=True
        )
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "calibration.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    series = {row["posterior"]: [(p, o, int(n)) for p, o, n in row["reliability"]] for row in rows}
    (given.out / "reliability.png").write_bytes(reliability_png(series))


if __name__ == "__main__":
    main()
