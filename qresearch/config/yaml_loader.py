"""YAML files as plain values with line numbers: the YAML 1.2 scalars, and none of YAML's ways to run or hide things.

Built on PyYAML's event stream instead of its constructors, so that no tag can construct anything. Differences from
``yaml.safe_load``: ``1e-3`` is a number and ``no``, ``on``, ``010`` mean what they look like; duplicate keys, anchors,
aliases, tags, merge keys, deep nesting, large files and very many values are refused.
"""

from __future__ import annotations

import re
from os import PathLike, fspath
from typing import Any, NamedTuple

import yaml

from qresearch.config.problems import KeyPath, Problem, config_error, shown
from qresearch.errors import ConfigError

MAX_BYTES = 1_000_000
MAX_DEPTH = 32
# Keys, values and lists together: what the schema makes of a megabyte of small ones would take 140 MB and ten seconds.
MAX_VALUES = 100_000

# https://yaml.org/spec/1.2.2/#103-core-schema
_WORDS: dict[str, bool | float | None] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), float("nan")),
    **{sign + word: float(f"{sign}inf") for sign in ("", "+", "-") for word in (".inf", ".Inf", ".INF")},
}
_INTEGER = re.compile(r"[-+]?[0-9]+")
_PREFIXED_INTEGER = re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
# Python refuses to print integers of thousands of digits; no setting needs more than a hash has.
_MAX_DIGITS = 80


class Document(NamedTuple):
    """The values of a configuration file and the line of each key.

    source: the file as the user named it. problems: of form, such as duplicate keys, that leave the rest readable.
    """

    source: str
    values: dict[str, Any]
    lines: dict[KeyPath, int]
    problems: tuple[Problem, ...] = ()


def read_document(path: str | PathLike[str]) -> Document:
    """Reads a configuration file. Raises `ConfigError` if it holds no mapping that could be checked further."""
    source = fspath(path)
    values, lines, problems = parse_yaml(_read_text(source))
    if isinstance(values, dict):
        return Document(source, values, lines, tuple(problems))
    message = "the file is empty" if values is None else f"the file holds {shown(values)}"
    raise config_error(source, problems or [Problem(1, (), f"{message}; expected keys such as 'name: my_run'")])


def parse_yaml(text: str) -> tuple[Any, dict[KeyPath, int], list[Problem]]:
    """The value of a YAML text, the line of every key in it, and all that is wrong with its form.

    Where there are problems the value is what could be read: None if reading had to stop.
    """
    try:
        reader = _Reader(text)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        return None, {}, [Problem(line, (), f"character U+{error.character:04X} may not stand in a YAML file")]
    try:
        value = reader.document()
    except _TooMuchError:
        value = None
    except yaml.MarkedYAMLError as error:
        value = None
        mark = error.problem_mark or error.context_mark
        reader.problem((), f"not valid YAML: {error.problem or error.context}", mark.line + 1 if mark else None)
    except (ValueError, OverflowError):
        # PyYAML's scanner lets these out for escapes such as "\UFFFFFFFF" and %YAML versions of 5000 digits.
        value = None
        reader.problem((), "not valid YAML: a number or character code is out of range")
    return value, reader.lines, reader.problems


def _read_text(source: str) -> str:
    try:
        with open(source, "rb") as file:
            content = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise _unreadable(source, "no such file") from None
    except IsADirectoryError:
        raise _unreadable(source, "this is a folder; expected a YAML file") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise _unreadable(source, f"cannot be read: {reason}") from None
    if len(content) > MAX_BYTES:
        raise _unreadable(source, f"larger than {MAX_BYTES} bytes; expected a configuration, not data")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        message = f"byte 0x{content[error.start]:02x} is not UTF-8 text; save the file as UTF-8"
        raise _unreadable(source, message, line) from None


def _unreadable(source: str, message: str, line: int | None = None) -> ConfigError:
    return config_error(source, [Problem(line, (), message)])


class _TooMuchError(Exception):
    pass


class _Reader:
    """Turns PyYAML's events into values, noting lines and problems as it goes."""

    def __init__(self, text: str) -> None:
        self.events = yaml.SafeLoader(text)
        self.lines: dict[KeyPath, int] = {}
        self.problems: list[Problem] = []
        self.values = 0

    def problem(self, path: KeyPath, message: str, line: int | None = None) -> None:
        self.problems.append(Problem(self.events.line + 1 if line is None else line, path, message))

    def document(self) -> Any:
        self.events.get_event()
        if self.events.check_event(yaml.StreamEndEvent):
            return None
        self.events.get_event()
        value = self.value(())
        self.events.get_event()
        if not self.events.check_event(yaml.StreamEndEvent):
            line = self.events.peek_event().start_mark.line + 1
            self.problem((), "a second document ('---'); expected one per file", line)
        return value

    def value(self, path: KeyPath) -> Any:
        event = self.events.get_event()
        line = event.start_mark.line + 1
        self.values += 1
        if self.values > MAX_VALUES:
            self.problem((), f"more than {MAX_VALUES} values; expected a configuration, not data", line)
            raise _TooMuchError
        self.lines.setdefault(path, line)
        if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
            self.problem(path, "anchors (&) and aliases (*) are not used here; write the value out", line)
        if isinstance(event, yaml.AliasEvent):
            return None
        if event.tag is not None:
            self.problem(path, "tags (!) are not used here; write the value plainly", line)
        if isinstance(event, yaml.ScalarEvent):
            return self.scalar(event, path, line)
        if len(path) >= MAX_DEPTH:
            self.problem(path, f"nested more than {MAX_DEPTH} deep", line)
            raise _TooMuchError
        return self.mapping(path) if isinstance(event, yaml.MappingStartEvent) else self.sequence(path)

    def mapping(self, path: KeyPath) -> dict[str, Any]:
        values: dict[str, Any] = {}
        while not self.events.check_event(yaml.MappingEndEvent):
            line = self.events.peek_event().start_mark.line + 1
            key = self.value((*path, "?"))
            if not isinstance(key, str):
                self.problem(path, f"expected a name as key, got {shown(key)}", line)
                key = shown(key)
            child = (*path, key)
            if key in values:
                self.problem(child, f"duplicate key; first given on line {self.lines[child]}", line)
            self.lines[child] = line
            values[key] = self.value(child)
        self.events.get_event()
        return values

    def sequence(self, path: KeyPath) -> list[Any]:
        values: list[Any] = []
        while not self.events.check_event(yaml.SequenceEndEvent):
            values.append(self.value((*path, str(len(values)))))
        self.events.get_event()
        return values

    def scalar(self, event: yaml.ScalarEvent, path: KeyPath, line: int) -> Any:
        text = event.value
        plain = event.style is None
        if plain and text in _WORDS:
            return _WORDS[text]
        if plain and (_INTEGER.fullmatch(text) or _PREFIXED_INTEGER.fullmatch(text)):
            if len(text) > _MAX_DIGITS:
                self.problem(path, f"a number of {len(text)} digits; at most {_MAX_DIGITS} are read", line)
                return 0
            # Base 0 would refuse the leading zeros that YAML 1.2 reads as decimal.
            return int(text, 0) if text[:2] in ("0o", "0x") else int(text)
        if plain and _FLOAT.fullmatch(text):
            return float(text)
        if not text.isprintable():
            # NUL, terminal escapes and lone surrogates would reach file names.
            self.problem(path, "text with control characters or line breaks; expected one printable line", line)
        return text
