"""Sensitivity tables as JSON that people and reports read: what is not finite is null."""

from __future__ import annotations

from typing import Any

import numpy as np

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


def joint_json(found: Additivity) -> dict[str, Any]:
    """What random joint allocations were predicted to lose and lost."""
    rank, ratio = _finite(np.array([found.rank_correlation, found.ratio]))
    lists = {name: _finite(values) for name, values in found._asdict().items()}
    return lists | {"rank_correlation": rank, "ratio": ratio}


def _finite(values: np.ndarray) -> list[float | None]:
    return [float(value) if np.isfinite(value) else None for value in values]
