"""What a config can name, as a table: every registry with the first line of each entry's documentation."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from typing import Any

from qresearch.allocation import ALLOCATORS
from qresearch.cost import COSTS
from qresearch.data import DATASETS
from qresearch.engines import ENGINES
from qresearch.errors import ConfigError, did_you_mean
from qresearch.latency import DEVICES
from qresearch.models import MODELS
from qresearch.numerics.ranges import RANGES
from qresearch.ptq import PTQ
from qresearch.quantizers import QUANTIZERS
from qresearch.quantizers.describe import describe
from qresearch.search import SEARCHES
from qresearch.sensitivities import SENSITIVITIES
from qresearch.suggesters import SUGGESTERS
from qresearch.tasks import TASKS
from qresearch.trackers import TRACKERS

REGISTRIES: dict[str, Mapping[str, Any]] = {
    "quantizers": QUANTIZERS,
    "ranges": RANGES,
    "ptq": PTQ,
    "sensitivities": SENSITIVITIES,
    "allocators": ALLOCATORS,
    "searches": SEARCHES,
    "costs": COSTS,
    "devices": DEVICES,
    "models": MODELS,
    "data": DATASETS,
    "tasks": TASKS,
    "engines": ENGINES,
    "suggesters": SUGGESTERS,
    "trackers": TRACKERS,
}
# What a config may say where it names an entry of a registry.
_WORDS = {
    "ranges": {
        "auto": "the default: mse for a method that keeps a calibrated range, own for all others",
        "own": "no range of this list: the method's own start, such as 2 mean|x| / sqrt(qmax) of lsq",
    }
}
OPTIONED = (
    "ptq",
    "sensitivities",
    "allocators",
    "searches",
    "engines",
    "suggesters",
)  # functions whose keywords are options in a config


def catalogue(kind: str | None = None) -> str:
    """One line per entry of a registry, or of all; what has options says more when its registry is asked for.

    ConfigError for an unknown registry.
    """
    if kind is not None and kind not in REGISTRIES:
        raise ConfigError(f"'{kind}' cannot be listed{did_you_mean(kind, REGISTRIES)}")
    chosen = {kind: REGISTRIES[kind]} if kind else REGISTRIES
    width = max(len(name) for registry in chosen.values() for name in registry)
    blocks = [
        "\n".join([title, *(f"  {name:<{width}}  {_summary(entry)}" for name, entry in sorted(registry.items()))])
        for title, registry in ((title, {**registry, **_WORDS.get(title, {})}) for title, registry in chosen.items())
    ]
    if kind == "quantizers":
        blocks = ["\n".join([kind, *(_quantizer(name, width) for name in sorted(QUANTIZERS))])]
    elif kind in OPTIONED:
        blocks = ["\n".join([kind, *(_method(name, entry, width) for name, entry in sorted(REGISTRIES[kind].items()))])]
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


def _method(name: str, entry: Any, width: int) -> str:
    """A function with its paper and its options."""
    text = inspect.getdoc(entry) or ""
    papers = re.findall(r"https?://\S*[^\s.,;:)]", text)
    given = inspect.signature(entry).parameters.values()
    options = ", ".join(f"{p.name} = {p.default!r}" for p in given if p.default is not p.empty)
    lines = {"paper": papers[0] if papers else "", "options": options}
    details = [f"      {key:<12} {value}" for key, value in lines.items() if value]
    return "\n".join([f"  {name:<{width}}  {_summary(entry)}", *details])


def _summary(entry: Any) -> str:
    described = entry if isinstance(entry, str) else getattr(entry, "describe", None)
    if isinstance(described, str):
        return described
    if not callable(entry):
        return f"score: {entry.score_name}"
    paragraph = " ".join((inspect.getdoc(entry) or "").split("\n\n")[0].split("\n"))
    return paragraph.partition(". ")[0]
