"""Which source files made a trial: a record's key is its config, which does not know that a method was edited since."""

from __future__ import annotations

import functools
import hashlib
import inspect
import shlex
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

from qresearch.allocation import ALLOCATORS
from qresearch.config import RunConfig, config_hash, trial_label
from qresearch.errors import ConfigError
from qresearch.results import Record, RunFolder
from qresearch.sweep.assemble import sites_of
from qresearch.sweep.catalogue import REGISTRIES

_LISTED = 3  # folders that a line names
_OF_FLOATS = ("data", "models", "tasks")  # which decide the float model too, that the run keeps


class Source(NamedTuple):
    """The files that define an entry, as people name them, and the first 12 digits of the sha256 of their content."""

    name: str
    digest: str


def sources_of(config: RunConfig) -> dict[str, str]:
    """{"quantizers/lsq": digest} of every registry entry that the config names and that decides the trial's numbers.

    Of the file that defines the entry, not of what that imports; an entry without a file (a prompt's) is left out.
    """
    found = {f"{kind}/{name}": source_of(kind, name) for kind, name in dict.fromkeys(_entries(config))}
    return {key: source.digest for key, source in found.items() if source is not None}


def source_of(kind: str, name: str) -> Source | None:
    """The source of an entry of a registry, as this process found it first; None where there is none."""
    registry = REGISTRIES.get(kind, {})
    try:
        return _source(tuple(_definitions(registry[name]))) if name in registry else None
    except ConfigError:  # a package that can no longer be imported: whatever needs it says so
        return None


@functools.cache  # by the functions, so that what a notebook loads again is looked at again
def _source(definitions: tuple[Callable[..., Any], ...]) -> Source | None:
    files = dict(filter(None, map(_file, definitions)))
    digest = hashlib.sha256(b"".join(files.values())).hexdigest()[:12]
    return Source(", ".join(files), digest) if files else None


def _entries(config: RunConfig) -> Iterator[tuple[str, str]]:
    yield from zip(_OF_FLOATS, (config.data.name, config.model.name, config.task))
    if config.flow == "float":
        return
    for site in sites_of(config.quantize).values():
        yield "quantizers", site.quantizer
        yield "ranges", site.range  # "auto" and "own" are no entries
    yield from (("ptq", method.name) for method in config.ptq)
    chooses = config.allocation.budget is not None
    allocates = chooses and config.allocation.allocator in ALLOCATORS
    if chooses:
        yield "allocators" if allocates else "searches", config.allocation.allocator
    if allocates or config.quantize.keep.most_sensitive:
        yield "sensitivities", config.sensitivity.method


def _definitions(entry: Any) -> Iterator[Callable[..., Any]]:
    """The functions and classes that an entry is made of: itself, what it wraps, or those that it holds."""
    entry = inspect.unwrap(entry)
    if isinstance(entry, functools.partial):
        yield from _definitions(entry.func)
    elif isinstance(entry, tuple):  # a task: what it does not leave at the default
        defaults = getattr(entry, "_field_defaults", {}).values()
        yield from (part for part in entry if inspect.isfunction(part) and part not in defaults)
    else:
        yield entry if inspect.isroutine(entry) or inspect.isclass(entry) else type(entry)


def _file(defined: Callable[..., Any]) -> tuple[str, bytes] | None:
    """(name, content) of the file of a function or a class."""
    try:
        path = Path(inspect.getsourcefile(defined) or "")
        content = path.read_bytes()
    except (OSError, TypeError):
        return None
    depth = (defined.__module__ or "").count(".") + 1 + (path.name == "__init__.py")
    return "/".join(path.parts[-depth:]), content


def changed_line(run: RunFolder, found: Sequence[Record], configs: Iterable[RunConfig]) -> str | None:
    """A line about the records of a run that other sources made than the present ones, and how to run these trials
    again; None if there are none. A record that does not say what made it counts as made by the present ones.

    configs: the trials of the sweep, of which those that are not ``found`` will get a record.
    """
    stored = {record.key: record.environment.get("sources", {}) for record in found}
    named = dict.fromkeys(entry for own in stored.values() for entry in own)
    present = {entry: source for entry in named if (source := source_of(*entry.split("/", 1))) is not None}
    changed = {
        key: [entry for entry, digest in own.items() if entry in present and present[entry].digest != digest]
        for key, own in stored.items()
    }
    stale = [key for key, entries in changed.items() if entries]
    if not stale:
        return None
    entries = list(dict.fromkeys(entry for key in stale for entry in changed[key]))
    files = dict.fromkeys(present[entry].name for entry in entries)
    coming = [f"{config_hash(config)[:8]}-{trial_label(config)}" for config in configs]
    folders, more = _folders(run, stale, entries, coming)
    return (
        f"{len(stale)} of the {len(found)} found done were made with another {' or '.join(files)} than the present one;"
        f" to run them again, delete them: rm -r {folders}{_kept(run, entries)}{more}"
    )


def _folders(run: RunFolder, stale: Collection[str], entries: Sequence[str], coming: Iterable[str]) -> tuple[str, str]:
    """The folders of these trials for a shell: by a pattern that takes no others, now and after the sweep, or else one
    by one, of which a few are named; and how many are not.
    """
    own = {folder.name for key in stale if (folder := run.trial_folder(key)) is not None}
    every = {folder.name for folder in (run.path / "trials").iterdir()} | set(coming)
    trials = shlex.quote(str(run.path / "trials"))
    names = (entry.split("/", 1)[1] for entry in entries)
    for pattern in (form.format(name) for name in names for form in ("*{}*", "*-{}-*")):
        if len(own) > 1 and {name for name in every if fnmatchcase(name, pattern)} == own:
            return f"{trials}/{pattern}", ""
    more = f" and {len(own) - _LISTED} more trials" if len(own) > _LISTED else ""
    return " ".join(f"{trials}/{name}" for name in sorted(own)[:_LISTED]), more


def _kept(run: RunFolder, entries: Iterable[str]) -> str:
    """What the run keeps for several trials and would use again, for a shell."""
    kinds = {entry.split("/", 1)[0] for entry in entries}
    names = ["float"] if kinds & {*_OF_FLOATS} else []
    names += ["sensitivity", "searches"] if kinds != {"ptq"} else []
    return "".join(f" {shlex.quote(str(run.path / name))}" for name in names if (run.path / name).is_dir())
