"""What is wrong with a configuration, in words: one line per problem, each with its place and its key."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, NamedTuple

from qresearch.errors import ConfigError

KeyPath = tuple[str, ...]
"""The keys from the top of a file to a value. The index of a list item is its decimal text."""

COMMAND_LINE = 0
"""The line number of a key that was set by ``--set``."""

# A file of a million unknown keys must not answer with a million lines.
MAX_SHOWN = 100


class Problem(NamedTuple):
    """``line``: where the key was written, `COMMAND_LINE`, or None where there is no such place."""

    line: int | None
    path: KeyPath
    message: str


def shown(value: Any) -> str:
    """A value as a message quotes it: JSON, shortened."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:59] + "…"


def dotted(path: KeyPath) -> str:
    """``quantize.rules.0.weight`` for its parts, shortened."""
    text = ".".join(path)
    return text if len(text) <= 120 else text[:119] + "…"


def config_error(source: str, problems: Iterable[Problem]) -> ConfigError:
    """The error that lists every problem in the order of the file, those of the command line last."""
    ordered = sorted(problems, key=_order)
    lines = [_line(source, problem) for problem in ordered[:MAX_SHOWN]]
    if len(ordered) > MAX_SHOWN:
        lines.append(f"{_printable(source)}  and {len(ordered) - MAX_SHOWN} more problems")
    return ConfigError("\n".join(lines))


def _order(problem: Problem) -> tuple[bool, int]:
    return problem.line == COMMAND_LINE, problem.line or 0


def _line(source: str, problem: Problem) -> str:
    place = source
    if problem.line is not None:
        place = f"{source}:{problem.line}" if problem.line != COMMAND_LINE else "--set"
    key = f"{dotted(problem.path)}: " if problem.path else ""
    return _printable(f"{place}  {key}{problem.message}")


def _printable(text: str) -> str:
    # File names and given values may hold line breaks, terminal escapes and bytes that are not text.
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)
