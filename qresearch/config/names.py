"""Names in a config against the registries, which the caller passes in: they import jax, and this package does not."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from qresearch.config.explain import Explanation, known_keys
from qresearch.config.identity import resolved
from qresearch.config.problems import KeyPath, Problem, config_error, shown
from qresearch.config.schema import RunConfig
from qresearch.config.sweep_grid import SweepSection
from qresearch.errors import ConfigError, did_you_mean

KnownNames = Mapping[str, Collection[str]]
"""For a dotted key such as ``quantize.weight.quantizer``, the names it may have, inside rules and lists too."""


def check_names(configs: Iterable[RunConfig], known: KnownNames) -> None:
    """Raises `ConfigError` with every name in the configs that is not known.

    Configs do not remember their lines: `expand(sweep, known)` says them too.
    """
    require_keys(known)
    lines: dict[str, None] = {}
    for config in configs:
        values = resolved(config)
        for path, message, _ in unknown_names(values, with_own_costs(values, known)):
            lines[str(config_error(config.name, [Problem(None, path, message)]))] = None
    if lines:
        raise ConfigError("\n".join(lines))


def require_keys(known: KnownNames) -> None:
    """Raises ValueError for a key of ``known`` that no config has: its names would never be compared with anything."""
    for key in known:
        *section, name = key.split(".")
        model, inner = (SweepSection, section[1:]) if section[:1] == ["sweep"] else (RunConfig, section)
        if name not in known_keys(model, tuple(inner)):
            raise ValueError(f"no config has a key {key!r}")


def with_own_costs(values: Any, known: KnownNames) -> KnownNames:
    """The known names, where a cost may also be one that the config itself defines under ``costs``."""
    own = values.get("costs") if isinstance(values, Mapping) else None
    names = [entry["name"] for entry in own or () if isinstance(entry, Mapping) and isinstance(entry.get("name"), str)]
    keys = ("allocation.cost", "report.cost")
    return {**known, **{key: [*known[key], *names] for key in keys if key in known}}


def unknown_names(values: Any, known: KnownNames, path: KeyPath = ()) -> Iterator[Explanation]:
    """Every text in nested values that ``known`` has names for and that is none of them."""
    if isinstance(values, Mapping | list):
        pairs = values.items() if isinstance(values, Mapping) else enumerate(values)
        for key, value in pairs:
            yield from unknown_names(value, known, (*path, str(key)))
    elif isinstance(values, str):
        names = known.get(".".join(_outside_lists(path)))
        if names is not None and values not in names:
            yield Explanation(path, f"unknown name {shown(values)}{did_you_mean(values, names)}", "value")


def _outside_lists(path: KeyPath) -> KeyPath:
    if path[:2] == ("quantize", "rules"):
        return ("quantize", *path[3:])
    if path[:1] == ("trackers",):
        return path[:1]
    if path[:1] == ("costs",):
        return ("costs", *path[2:])
    # A method may be its name alone.
    return ("ptq", *(path[2:] or ("name",))) if path[:1] == ("ptq",) and len(path) > 1 else path
