"""Sensitivity tables and posteriors as JSON that people and reports read: what is not finite is null."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from qresearch.report.posterior import LEVELS
from qresearch.rules import Option
from qresearch.sensitivities import Additivity, Sensitivity


def table_json(table: Sensitivity, layers: list[str]) -> dict[str, Any]:
    """The table [layer][option], with the names of its rows and the options of its columns."""
    return {
        "layers": layers,
        "options": [list(option) for option in table.options],
        "loss": [_finite(row) for row in table.loss],
        "standard_error": [_finite(row) for row in table.standard_error],
        "float_loss": table.float_loss,
    }


def read_table(content: dict[str, Any], allowed: np.ndarray) -> Sensitivity | None:
    """The table that ``table_json`` wrote; None if it is not whole: a loss that is not finite must be of an option that
    is not ``allowed`` [layer, option].
    """
    loss = np.asarray([[np.inf if value is None else value for value in row] for row in content["loss"]])
    error = np.asarray([[np.nan if value is None else value for value in row] for row in content["standard_error"]])
    options = tuple((option[0], option[1]) for option in content["options"])
    if not (loss.shape == error.shape == allowed.shape and np.array_equal(np.isfinite(loss), allowed)):
        return None
    return Sensitivity(loss, error, options, content["float_loss"])


def joint_json(found: Additivity) -> dict[str, Any]:
    """What random joint allocations were predicted to lose and lost."""
    rank, ratio = _finite(np.array([found.rank_correlation, found.ratio]))
    lists = {name: _finite(values) for name, values in found._asdict().items()}
    return lists | {"rank_correlation": rank, "ratio": ratio}


def posterior_json(info: dict[str, Any], layers: list[str], options: Sequence[Option]) -> dict[str, Any]:
    """What an allocator's ``info`` says of how sure it is, of its first budget; empty where it says nothing.

    probabilities: {layer: {option: P}}, of what its posterior's draws choose.
    """
    probabilities = info.get("probabilities") or info.get("marginals")
    if not probabilities:
        return {}
    names = [f"W{weight:g}A{input_:g}" for weight, input_ in options]
    shares = {layer: dict(zip(names, row)) for layer, row in zip(layers, probabilities[0])}
    own = {name: info[name][0] for name in ("optimal", "regret", "measured") if name in info}
    bands = {name: dict(zip(LEVELS, info[name][0])) for name in ("loss", "front") if name in info}
    rest = {name: info[name] for name in ("diagnostics", "temperature") if name in info}
    return {"posterior": {"probabilities": shares, **own, **bands, **rest}}


def _finite(values: np.ndarray) -> list[float | None]:
    return [float(value) if np.isfinite(value) else None for value in values]
