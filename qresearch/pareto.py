"""Pareto fronts of (cost, score) points: lower cost and higher score are better.

A point whose cost or score is NaN (a trial that failed) is on no front and adds nothing anywhere.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import ArrayLike

from qresearch.errors import ConfigError


def pareto_front(cost: ArrayLike, score: ArrayLike) -> Int[np.ndarray, "front"]:
    """Indices of the points that no other point beats, by increasing cost (hence by increasing score).

    cost, score: [point]. Of points that are equal in both, the first is kept.
    """
    c, s = _points(cost, score)
    valid = np.flatnonzero(~(np.isnan(c) | np.isnan(s)))
    order = valid[np.lexsort((-s[valid], c[valid]))]  # stable: equal points stay in the order given
    best_before = np.concatenate([[-np.inf], np.maximum.accumulate(s[order])[:-1]])[: len(order)]
    # A score of -inf is on the front only where nothing is cheaper: the cheapest point always is.
    return order[(s[order] > best_before) | (np.arange(len(order)) == 0)]


def hypervolume(cost: ArrayLike, score: ArrayLike, reference: tuple[float, float]) -> float:
    """The area between a front and ``reference = (cost, score)``, the worst cost and score that count.

        Σ_i (cost_ref − cost_i)·(score_i − score_{i−1}) over the front by increasing cost, score_0 = score_ref

    cost, score: [point]. Points at or beyond the reference contribute nothing, so one reference must serve all sweeps
    that are compared (for instance uniform W8A8 and chance accuracy). Costs enter as given; pass log2(cost) if every
    halving should count the same. Zitzler and Thiele, https://doi.org/10.1109/4235.797969, 1999.
    """
    c, s = _points(cost, score)
    inside = (c < reference[0]) & (s > reference[1])
    front = pareto_front(c[inside], s[inside])
    steps = np.diff(s[inside][front], prepend=reference[1])
    return float(np.sum((reference[0] - c[inside][front]) * steps))


def interpolate_front(cost: ArrayLike, score: ArrayLike, at: ArrayLike) -> Float[np.ndarray, "..."]:
    """The best score reached at a cost of at most ``at``: a staircase, NaN below the cheapest point.

    cost, score: [point]. at: any shape, which is the result's. Between two points of a front nothing was measured, so
    nothing is interpolated linearly.
    """
    c, s = _points(cost, score)
    front = pareto_front(c, s)
    position = np.searchsorted(c[front], np.asarray(at, np.float64), side="right")
    return np.concatenate([[np.nan], s[front]])[position]


def attainment(
    costs_by_run: Sequence[ArrayLike], scores_by_run: Sequence[ArrayLike], at: ArrayLike
) -> Float[np.ndarray, "run at"]:
    """The best score of every run (seed) at every cost in ``at``: quantiles over axis 0 are a front's bands.

    costs_by_run, scores_by_run: one [point] array per run, of any lengths. at: [at]. Where a run has nothing so cheap
    it is NaN. Grunert da Fonseca, Fonseca and Hall, https://doi.org/10.1007/3-540-44719-9_15, 2001.
    """
    if len(costs_by_run) != len(scores_by_run):
        raise ConfigError(f"got costs of {len(costs_by_run)} runs and scores of {len(scores_by_run)}")
    grid = np.asarray(at, np.float64)
    fronts = [interpolate_front(c, s, grid) for c, s in zip(costs_by_run, scores_by_run)]
    return np.reshape(fronts, (len(fronts), *grid.shape))


def _points(cost: ArrayLike, score: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    c, s = np.asarray(cost, np.float64), np.asarray(score, np.float64)
    if c.ndim != 1 or c.shape != s.shape:
        raise ConfigError(f"cost and score must be [point] arrays of one length, got {c.shape} and {s.shape}")
    return c, s
