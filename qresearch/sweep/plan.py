"""The plan of a sweep: its trials, the groups that share a bench and its programs, and the pieces that workers get."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from qresearch.config import FREE, KnownNames, RunConfig, expand, from_mapping, resolved
from qresearch.errors import ConfigError
from qresearch.rules import Option
from qresearch.sweep.floats import float_group, float_key

# What trials must agree on to share a bench: everything but these, which are traced or belong to a flow.
_OWN = {*FREE, "seed", "flow", "sensitivity", "allocation", "ptq", "qat"}


class Group(NamedTuple):
    """Trials of the same data, model and quantization. widths: all that any trial of the sweep has here, so that what
    is calibrated, and the programs, do not depend on which trials are still to be run.
    """

    members: tuple[RunConfig, ...]
    widths: tuple[int, ...]


class Piece(NamedTuple):
    """What a worker gets at a time: float models to train, or trials whose float models are there.

    until: where trials stop for now, in epochs (None: at their end).
    """

    kind: str  # "float" or "trials"
    configs: tuple[RunConfig, ...]
    widths: tuple[int, ...]
    until: int | None = None

    @property
    def floats(self) -> frozenset[str]:
        """The keys of the float models that it trains, or needs."""
        return frozenset(map(float_key, self.configs))

    def text(self, run: Path) -> str:
        """For a worker: one line of JSON."""
        configs = [resolved(config) for config in self.configs]
        content = {"run": str(run.absolute()), "kind": self.kind, "configs": configs}
        return json.dumps({**content, "widths": self.widths, "until": self.until})

    def parts(self, size: int) -> tuple[Piece, ...]:
        """Pieces of at most so many configs in place of one."""
        return tuple(self._replace(configs=part) for part in _parts(self.configs, size))


def read_piece(text: str, known: KnownNames | None = None) -> tuple[Path, Piece]:
    """(run, piece) of the text that ``Piece.text`` made. ConfigError for names that are not ``known`` here."""
    content = json.loads(text)
    try:
        configs = tuple(expand(from_mapping(values, "worker"), known)[0] for values in content["configs"])
    except ConfigError as error:
        raise ConfigError(
            f"{error} (what a script registers is in its own process only: --engine inline, or a package's entry point)"
        ) from error
    return Path(content["run"]), Piece(content["kind"], configs, tuple(content["widths"]), content["until"])


def groups_of(configs: Sequence[RunConfig]) -> tuple[Group, ...]:
    """The groups of a sweep, in its order."""
    found: dict[str, list[RunConfig]] = {}
    for config in configs:
        found.setdefault(group_key(config), []).append(config)
    return tuple(Group(tuple(members), _widths(members)) for members in found.values())


def group_key(config: RunConfig) -> str:
    """What is static of a trial, as text: equal for trials that share a bench."""
    rest = {name: value for name, value in resolved(config).items() if name not in _OWN}
    rest["float"] = {name: value for name, value in rest["float"].items() if name != "learning_rate"}
    return json.dumps(rest, sort_keys=True)


def _widths(members: Iterable[RunConfig]) -> tuple[int, ...]:
    options: list[Option] = []
    for config in members:
        options += [config.allocation.bits] if config.allocation.bits else []
        options += [config.quantize.keep.option] if config.quantize.keep.most_sensitive else []
    return tuple(sorted({int(width) for option in options for width in option if 0 < width < 32}))


def float_pieces(groups: Iterable[Group], stored: Callable[[RunConfig], bool], workers: int) -> list[Piece]:
    """The float models that are to be trained first, those of one recipe together as far as workers allow."""
    wanted: dict[Any, dict[str, RunConfig]] = {}
    for group in groups:
        for config in group.members:
            if not (config.model.weights or stored(config)):
                wanted.setdefault(float_group(config), {}).setdefault(float_key(config), config)
    return [
        Piece("float", part, ())
        for members in wanted.values()
        for part in _parts(tuple(members.values()), -(-len(members) // workers))
    ]


def trial_pieces(
    groups: Iterable[Group], workers: int, each: int, together: int, until: int | None = None
) -> list[Piece]:
    """The trials, cut so that workers have enough to do; those that share a float model and a sensitivity table stay
    together as far as that goes. each: pieces for a worker, if there are several. together: how many run in one
    program, which no cut makes fewer if workers allow.
    """
    pieces = []
    for group in groups:
        members = sorted(group.members, key=_affinity)
        most = -(-len(members) // workers)
        size = most if workers == 1 else min(max(-(-most // each), together), most)
        pieces += [Piece("trials", part, group.widths, until) for part in _parts(tuple(members), max(size, 1))]
    return pieces


def _affinity(config: RunConfig) -> tuple[str, ...]:
    measured = config.sensitivity.model_dump_json() if config.allocation.budget is not None else ""
    return float_key(config), measured, config.flow, config.qat.model_dump_json()


def _parts(items: tuple[RunConfig, ...], size: int) -> Iterator[tuple[RunConfig, ...]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
