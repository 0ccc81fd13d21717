"""Registries: the names of a config and what they stand for, ours and those of installed packages."""

from __future__ import annotations

import functools
import importlib.metadata
from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any, Generic, TypeVar

from qresearch.errors import ConfigError

PREFIX = "qresearch."  # of the entry point groups: qresearch.quantizers, qresearch.models, ...
T = TypeVar("T")


class Registry(MutableMapping[str, T], Generic[T]):
    """``own``, and what installed packages add by entry points of the group ``qresearch.<kind>``.

    Names are known without importing anything; a package is imported when one of its entries is asked for, so that it
    may import all of qresearch. ConfigError, one line, for an entry that cannot be imported, or whose name is taken.
    """

    def __init__(self, kind: str, own: Mapping[str, T]) -> None:
        self.kind, self._own = kind, dict(own)

    def __getitem__(self, name: str) -> T:
        point = self._points.get(name)
        if name in self._own:
            if point is not None and name not in self._loaded:
                raise ConfigError(
                    f"{self.kind}: '{name}' of {_package(point)} is a name that is taken; it must choose another"
                )
            return self._own[name]
        if point is None:
            raise KeyError(name)
        self._own[name] = _loaded(self.kind, point)
        self._loaded.add(name)
        return self._own[name]

    def __setitem__(self, name: str, value: T) -> None:
        self._own[name] = value
        self._loaded.add(name)

    def __delitem__(self, name: str) -> None:
        del self._own[name]

    def __contains__(self, name: object) -> bool:
        return name in self._own or name in self._points

    def __iter__(self) -> Iterator[str]:
        yield from self._own
        yield from (name for name in self._points if name not in self._own)

    def __len__(self) -> int:
        return len(self._own.keys() | self._points.keys())

    def __repr__(self) -> str:
        return f"Registry({self.kind!r}, {sorted(self)})"

    @functools.cached_property
    def _loaded(self) -> set[str]:
        """The names that stand for what was loaded or set, not for what the registry began with."""
        return set()

    @functools.cached_property
    def _points(self) -> dict[str, importlib.metadata.EntryPoint]:
        return {point.name: point for point in importlib.metadata.entry_points(group=PREFIX + self.kind)}


@functools.cache
def extensions() -> dict[str, str]:
    """The installed packages that add something to a registry, with their versions."""
    return {
        package.name: package.version
        for package in importlib.metadata.distributions()
        if any(point.group.startswith(PREFIX) for point in package.entry_points)
    }


def _loaded(kind: str, point: importlib.metadata.EntryPoint) -> Any:
    try:
        return point.load()
    except Exception as error:  # whatever a package of somebody else's raises
        reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        raise ConfigError(f"{kind}: '{point.name}' of {_package(point)} cannot be loaded ({reason})") from error


def _package(point: importlib.metadata.EntryPoint) -> str:
    return f"the package {point.dist.name} {point.dist.version}" if point.dist is not None else f"'{point.value}'"
