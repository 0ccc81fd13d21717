"""The sensitivity tables of a run, and which of them tells of which trial."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from qresearch.results.run_folder import RunFolder
from qresearch.results.sealed import read_sealed

_IDENTITY = ("task", "data", "model", "float")  # what float variables depend on, besides the seed


def float_identity(config: Mapping[str, Any]) -> str:
    """What identifies the float variables of a trial, from its resolved config: the data, the model, the recipe and
    the seed.
    """
    identity = {name: config[name] for name in _IDENTITY} | {"batch": config["evaluate"]["batch_size"]}
    seed = None if config["model"]["weights"] else config["seed"]
    return hashlib.sha256(json.dumps([identity, seed], sort_keys=True).encode()).hexdigest()[:16]


def sensitivity_tables(run: RunFolder) -> list[dict[str, Any]]:
    """Every table that the run keeps, as ``sweep/sensitivity_json.py`` wrote it. ``DataError`` for a damaged one."""
    return [read_sealed(path) for path in sorted((run.path / "sensitivity").glob("*.json"))]


def tells_of(table: Mapping[str, Any], config: Mapping[str, Any]) -> bool:
    """Whether a table was measured on the float model of this trial, quantized as the trial quantizes it."""
    identity = table["identity"]
    if not {"evaluate", *_IDENTITY} <= config.keys() or identity["float"] != float_identity(config):
        return False
    bench = json.loads(identity["bench"])
    # A bench serves float trainings of several learning rates; which one it is, the line above has compared.
    bench["float"]["learning_rate"] = config["float"]["learning_rate"]
    return all(config.get(name) == value for name, value in bench.items())
