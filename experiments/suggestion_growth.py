"""How many allocations must be measured: by the posterior's suggestions, at random, greedily, or by evolution?

Question: the hypervolume of all allocations measured so far (average weight bits against validation loss), and the mean
  regret over eight budgets against the best that any method found, after 1, 2, ... measurements. Does the Bayesian loop
  reach with a third of the measurements what random search has in the end?
Command: python experiments/suggestion_growth.py CONFIG [--measurements 144] [--seeds 3] [--examples 250] [--out FOLDER]
Writes one JSON line per method and seed (every allocation, its loss and cost, in the order of measuring) to
  FOLDER/growth.jsonl, and FOLDER/growth.png. random: uniform among the allocations within a budget, the budgets in
  turn. greedy: the path of the greedy allocator on the table, each step measured. bayesian measures a third as many.
"""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
from bayes_subject import subject_of

import qresearch as qr
from qresearch.allocation.bayes.forward_backward import backward_sample, forward_filter
from qresearch.allocation.budgets import check_budgets
from qresearch.report.posterior_figure import growth_png
from qresearch.results import environment
from qresearch.sensitivities.loss_increase import loss_increase

SHARES = (0.05, 0.15, 0.25, 0.35, 0.5, 0.65, 0.8, 0.95)  # budgets, between the cheapest and the dearest allocation
Run = Callable[[int, qr.Problem, np.ndarray, int], None]


def at_random(seed: int, problem: qr.Problem, budgets: np.ndarray, count: int) -> None:
    """At an infinite temperature the Gibbs posterior is uniform within the budget."""
    random, limits = np.random.default_rng(seed), check_budgets(problem, budgets)
    flat = replace(problem, loss=np.where(problem.allowed, 0.0, np.inf), measure=None)
    drawn = [backward_sample(random, forward_filter(flat, limit, 1.0), flat, limit, count) for limit in limits]
    problem.measure(np.stack(drawn, axis=1).reshape(-1, len(problem.loss))[:count])


def greedy(seed: int, problem: qr.Problem, budgets: np.ndarray, count: int) -> None:
    cheapest, dearest = (problem.costs[0].min(axis=1).sum(), problem.costs[0].max(axis=1).sum())
    path, _ = qr.ALLOCATORS["greedy"](seed, problem, np.linspace(dearest, cheapest, count).astype(int))
    _, first = np.unique(path, axis=0, return_index=True)
    problem.measure(path[np.sort(first)])


def evolution(seed: int, problem: qr.Problem, budgets: np.ndarray, count: int) -> None:
    qr.ALLOCATORS["nsga2"](seed, problem, budgets, population=24, generations=count)


def bayesian(seed: int, problem: qr.Problem, budgets: np.ndarray, count: int) -> None:
    qr.ALLOCATORS["bayesian"](seed, problem, budgets, measurements=count // 3, rounds=4)


METHODS: dict[str, Run] = {"random": at_random, "greedy": greedy, "nsga2": evolution, "bayesian": bayesian}


class _EnoughError(Exception):
    """As many allocations were measured as were to be."""


def trace(method: str, seed: int, problem: qr.Problem, budgets: np.ndarray, count: int) -> dict:
    """What the method measured, in its order."""
    allocations: list[np.ndarray] = []
    losses: list[float] = []

    def measure(asked: np.ndarray) -> np.ndarray:
        asked = asked[: count - len(losses)]
        found = problem.measure(asked) if len(asked) else np.zeros(0)
        allocations.extend(asked)
        losses.extend(found.tolist())
        if len(losses) >= count:
            raise _EnoughError
        return found

    with contextlib.suppress(_EnoughError):
        METHODS[method](seed, replace(problem, measure=measure), budgets, count)
    rows = np.array(allocations)
    return {
        "method": method,
        "seed": seed,
        "allocations": rows.tolist(),
        "losses": losses,
        "costs": problem.total_cost(rows)[:, 0].tolist(),
    }


def volumes(row: dict, reference: tuple[float, float]) -> list[float]:
    """The hypervolume after every measurement; the score is minus the loss."""
    costs, scores = np.array(row["costs"], float), -np.array(row["losses"])
    return [qr.hypervolume(costs[:n], scores[:n], reference) for n in range(1, len(costs) + 1)]


def regrets(row: dict, budgets: np.ndarray, best: np.ndarray) -> list[float]:
    """After every measurement, the mean over budgets of the least loss within it minus the best known."""
    costs, losses = np.array(row["costs"]), np.array(row["losses"])
    within = np.where(costs <= budgets[:, None], losses, np.inf)
    return (np.minimum.accumulate(within, axis=1) - best[:, None]).mean(axis=0).tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--measurements", type=int, default=144)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--examples", type=int, default=250)
    parser.add_argument("--out", type=Path, default=Path("runs/suggestion_growth"))
    given = parser.parse_args()
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}")
    measured = subject_of(given.config, given.examples)
    subject = measured.subject
    table = loss_increase(subject)
    problem = qr.make_problem(subject.model, table, measure=measured.measure(table))
    low, high = problem.costs[0].min(axis=1).sum(), problem.costs[0].max(axis=1).sum()
    budgets = np.floor(low + (high - low) * np.array(SHARES)).astype(int)
    rows = []
    for method in METHODS:
        for seed in range(1 if method == "greedy" else given.seeds):
            rows.append(trace(method, seed, problem, budgets, given.measurements))
            print(f"{method} seed {seed}: {len(rows[-1]['losses'])} measured", flush=True)
    _report(rows, budgets, (float(high), -float(max(rows[0]["losses"]))), given)


def _report(rows: list[dict], budgets: np.ndarray, reference: tuple[float, float], given: argparse.Namespace) -> None:
    found = [(np.array(row["costs"]), np.array(row["losses"])) for row in rows]
    best = np.min([np.where(c <= budgets[:, None], loss, np.inf).min(axis=1) for c, loss in found], axis=0)
    for row in rows:
        row |= {
            "hypervolume": volumes(row, reference),
            "regret": regrets(row, budgets, best),
            "environment": environment(),
        }
        row |= {"config": given.config.name, "examples": given.examples, "budgets": budgets.tolist()}
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "growth.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    curves = {}
    for method in METHODS:
        own = np.array([row["regret"] for row in rows if row["method"] == method])
        known = [n for n in range(own.shape[1]) if np.isfinite(own[:, n]).all()]
        curves[method] = [(n + 1.0, own[:, n].mean(), own[:, n].min(), own[:, n].max()) for n in known]
    (given.out / "growth.png").write_bytes(growth_png(curves, "mean regret in validation loss"))
    for seed in range(given.seeds):
        end = {row["method"]: row["hypervolume"] for row in rows if row["seed"] == seed}
        needed = next((n + 1 for n, v in enumerate(end["bayesian"]) if v >= end["random"][-1]), None)
        print(f"seed {seed}: hypervolume " + ", ".join(f"{m} {v[-1]:.6g} ({len(v)})" for m, v in end.items()))
        print(
            f"  bayesian has random's after {needed} measurements; regret "
            + ", ".join(f"{row['method']} {row['regret'][-1]:.4f}" for row in rows if row["seed"] == seed)
        )


if __name__ == "__main__":
    main()
