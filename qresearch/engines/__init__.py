"""Engines: where trials run. Adding one: a file with a class of the protocol ``Engine``, and its line here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from qresearch.engines.base import Deliver, Engine, Event, Job, MakeEngine, Setting
from qresearch.engines.dask import check_dask, dask
from qresearch.engines.inline import Inline
from qresearch.engines.local import Local, gpus
from qresearch.engines.slurm import check_slurm, slurm
from qresearch.errors import ConfigError, did_you_mean
from qresearch.options import check_options
from qresearch.registry import Registry

ENGINES: Registry[MakeEngine] = Registry(
    "engines",
    {
        "inline": Inline,
        "local": Local,
        "dask": dask,
        "slurm": slurm,
    },
)


# What else can be said of an engine's options before it starts.
CHECKS: Mapping[str, Callable[..., None]] = {"dask": check_dask, "slurm": check_slurm}


def check_engine(name: str, options: Mapping[str, Any]) -> None:
    """ConfigError for an engine that is not there, or an option that it does not have."""
    if name not in ENGINES:
        raise ConfigError(f"engine.name: unknown engine '{name}'{did_you_mean(name, ENGINES)}")
    check_options("engine", f"engine '{name}'", ENGINES[name], options)
    if name in CHECKS:
        CHECKS[name](**options)


def workers_of(name: str, workers: int | None) -> int:
    """How many workers an engine will have, as far as that is known before it starts."""
    return 1 if name == "inline" else workers or max(1, len(gpus()))


__all__ = ["ENGINES", "Deliver", "Engine", "Event", "Job", "Setting", "check_engine", "workers_of"]
