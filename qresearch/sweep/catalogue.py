"""What a config can name, as a table: every registry with the first line of each entry's documentation."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from qresearch.allocation import ALLOCATORS
from qresearch.cost import COSTS
from qresearch.data import DATASETS
from qresearch.errors import ConfigError, did_you_mean
from qresearch.models import MODELS
from qresearch.numerics.ranges import RANGES
from qresearch.ptq import PTQ
from qresearch.quantizers import QUANTIZERS
from qresearch.quantizers.describe import describe
from qresearch.sensitivities import SENSITIVITIES
from qresearch.tasks import TASKS

REGISTRIES: dict[str, Mapping[str, Any]] = {
    "quantizers": QUANTIZERS,
    "ranges": RANGES,
    "ptq": PTQ,
    "sensitivities": SENSITIVITIES,
    "allocators": ALLOCATORS,
    "costs": COSTS,
    "models": MODELS,
    "data": DATASETS,
    "tasks": TASKS,
}


def catalogue(kind: str | None = None) -> str:
    """One line per entry of a registry, or of all; quantizers, asked for by name, have more to say.

    ConfigError for an unknown registry.
    """
    if kind is not None and kind not in REGISTRIES:
        raise ConfigError(f"'{kind}' cannot be listed{did_you_mean(kind, REGISTRIES)}")
    chosen = {kind: REGISTRIES[kind]} if kind else REGISTRIES
    width = max(len(name) for registry in chosen.values() for name in registry)
    blocks = [
        "\n".join([title, *(f"  {name:<{width}}  {_summary(entry)}" for name, entry in sorted(registry.items()))])
        for title, registry in chosen.items()
    ]
    if kind == "quantizers":
        blocks = ["\n".join([kind, *(_quantizer(name, width) for name in sorted(QUANTIZERS))])]
    return "\n\n".join(blocks)


def _quantizer(name: str, width: int) -> str:
    found = describe(name)
    options = ", ".join(f"{option} = {default!r}" for option, default in found.options.items())
    lines = {
        "paper": found.paper,
        "learns": ", ".join(found.learnable) or "nothing",
        "stores": found.stores,
        "grids": ", ".join(found.grids),
        "granularity": ", ".join(found.granularities),
        "options": options,
    }
    details = [f"      {key:<12} {value}" for key, value in lines.items() if value]
    return "\n".join([f"  {name:<{width}}  {found.summary}", *details])


def _summary(entry: Any) -> str:
    described = getattr(entry, "describe", None)
    if isinstance(described, str):
        return described
    if not callable(entry):
        return f"score: {entry.score_name}"
    return (inspect.getdoc(entry) or "").split("\n")[0]
