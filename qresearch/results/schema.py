"""What the fields of a record must be: small checks that compose, each naming the dotted field that is wrong.

A check takes ``(field, value)`` and yields one line per problem: the field, what was expected, what was found.
"""

from __future__ import annotations

import datetime
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from qresearch.errors import did_you_mean


class Check(Protocol):
    """Yields the problems of ``value``, each with its dotted ``field``."""

    def __call__(self, field: str, value: Any) -> Iterator[str]: ...


def number(field: str, value: Any) -> Iterator[str]:
    """A finite int or float, not bool, not an array element."""
    if type(value) not in (int, float) or not math.isfinite(value):
        yield f"{field}: expected a finite number, got {_shown(value)}"


def not_negative(field: str, value: Any) -> Iterator[str]:
    """A finite number of at least 0."""
    problems = list(number(field, value))
    yield from problems
    if not problems and value < 0:
        yield f"{field}: expected a number of at least 0, got {_shown(value)}"


def integer(field: str, value: Any) -> Iterator[str]:
    """An int, not bool."""
    if type(value) is not int:
        yield f"{field}: expected an integer, got {_shown(value)}"


def text(field: str, value: Any) -> Iterator[str]:
    """A string of one or more printable characters: it goes to terminals and into figures."""
    if not isinstance(value, str) or not value or not value.isprintable():
        yield f"{field}: expected a text of printable characters, got {_shown(value)}"


def lines(field: str, value: Any) -> Iterator[str]:
    """A string that is not empty, which may have any characters that files can hold."""
    if not isinstance(value, str) or not value or any("\ud800" <= character <= "\udfff" for character in value):
        yield f"{field}: expected a text that is not empty, got {_shown(value)}"


def sha256(field: str, value: Any) -> Iterator[str]:
    """64 lower-case hexadecimal digits."""
    if not isinstance(value, str) or not re.fullmatch("[0-9a-f]{64}", value):
        yield f"{field}: expected 64 hexadecimal digits, got {_shown(value)}"


def utc_time(field: str, value: Any) -> Iterator[str]:
    """An ISO 8601 time in UTC."""
    try:
        offset = datetime.datetime.fromisoformat(value).utcoffset()
    except (TypeError, ValueError):
        offset = None
    if offset != datetime.timedelta(0):
        yield f"{field}: expected a time in UTC such as 2026-01-31T12:00:00+00:00, got {_shown(value)}"


def null(field: str, value: Any) -> Iterator[str]:
    """Nothing."""
    if value is not None:
        yield f"{field}: expected null, got {_shown(value)}"


def json_value(field: str, value: Any) -> Iterator[str]:
    """Anything that JSON holds: no NaN, text keys only."""
    if isinstance(value, Mapping):
        yield from mapping_of(json_value)(field, value)
    elif isinstance(value, list):
        yield from list_of(json_value)(field, value)
    elif type(value) in (int, float):
        yield from number(field, value)
    elif not (value is None or type(value) in (bool, str)):
        yield f"{field}: expected a JSON value, got {_shown(value)}"


def number_tree(field: str, value: Any) -> Iterator[str]:
    """Numbers in nested mappings."""
    yield from (mapping_of(number_tree) if isinstance(value, Mapping) else number)(field, value)


def one_of(*allowed: Any) -> Check:
    """One of the given values."""

    def check(field: str, value: Any) -> Iterator[str]:
        if not any(type(value) is type(item) and value == item for item in allowed):
            yield f"{field}: expected {' or '.join(repr(item) for item in allowed)}, got {_shown(value)}"

    return check


def optional(inner: Check) -> Check:
    """Null, or what ``inner`` wants."""

    def check(field: str, value: Any) -> Iterator[str]:
        if value is not None:
            yield from inner(field, value)

    return check


def list_of(inner: Check) -> Check:
    """A list whose items ``inner`` accepts."""

    def check(field: str, value: Any) -> Iterator[str]:
        if not isinstance(value, list):
            yield f"{field}: expected a list, got {_shown(value)}"
            return
        for index, item in enumerate(value):
            yield from inner(f"{field}[{index}]", item)

    return check


def mapping_of(inner: Check) -> Check:
    """A mapping from texts to what ``inner`` accepts."""

    def check(field: str, value: Any) -> Iterator[str]:
        if not isinstance(value, Mapping):
            yield f"{field}: expected a mapping, got {_shown(value)}"
            return
        for key, item in value.items():
            if not isinstance(key, str):
                yield f"{field}: expected text keys, got {_shown(key)}"
            else:
                yield from inner(f"{field}.{key}", item)

    return check


def fields(known: Mapping[str, Check], *, others: Check | None = None) -> Check:
    """A mapping with exactly these fields, or with more of them that ``others`` accepts."""

    def check(field: str, value: Any) -> Iterator[str]:
        prefix = f"{field}." if field else ""
        if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
            yield f"{field}: expected a mapping with text keys, got {_shown(value)}"
            return
        yield from (f"{prefix}{name}: missing" for name in known if name not in value)
        for name, item in value.items():
            inner = known.get(name, others)
            if inner is None:
                yield f"{prefix}{name}: unknown field{did_you_mean(name, known)}"
            else:
                yield from inner(f"{prefix}{name}", item)

    return check


def _shown(value: Any) -> str:
    shown = repr(value)
    shown = shown if len(shown) <= 60 else shown[:57] + "..."
    return shown if type(value) in (int, float, str, bool, type(None)) else f"{type(value).__name__} {shown}"
