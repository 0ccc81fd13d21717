"""Validation errors of the schema in plain words."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from qresearch.config.problems import MAX_SHOWN, KeyPath, shown
from qresearch.config.quantize import SITE_TAGS
from qresearch.config.schema import RunConfig
from qresearch.errors import did_you_mean


class Explanation(NamedTuple):
    """``path``: the key to name. ``about``: whether that key, its value, or its agreement with other keys is wrong."""

    path: KeyPath
    message: str
    about: Literal["key", "value", "agreement"]


def explain(error: ValidationError, model: type[BaseModel]) -> Iterator[Explanation]:
    """What was given, what was expected and what to do, for each error of ``model.model_validate``."""
    for details in error.errors(include_url=False)[: MAX_SHOWN + 1]:
        path = tuple(str(part) for part in details["loc"] if part not in SITE_TAGS)
        key = details.get("ctx", {}).get("key")
        yield Explanation((*path, key) if key else path, _message(details, path, model), _about(details["type"]))


def _about(kind: str) -> Literal["key", "value", "agreement"]:
    if kind == "extra_forbidden":
        return "key"
    return "agreement" if kind in ("combination", "missing") else "value"


def _message(details: ErrorDetails, path: KeyPath, model: type[BaseModel]) -> str:
    kind, context = details["type"], details.get("ctx", {})
    if kind == "extra_forbidden":
        return "unknown key" + did_you_mean(path[-1], known_keys(model, path[:-1]))
    if kind == "missing":
        return "missing; it has no default"
    if kind == "combination":
        return str(context["message"])
    return f"expected {_expected(details)}, got {shown(details['input'])}"


def _expected(details: ErrorDetails) -> str:
    context = details.get("ctx", {})
    match details["type"]:
        case "expected":
            return str(context["words"])
        case "literal_error":
            return str(context["expected"])
        case "bool_type":
            return "true or false"
        case "list_type" | "tuple_type":
            return "a list"
        case "too_short" if context.get("field_type") == "Dictionary":
            return "a mapping of at least one key"
        case "too_short":
            return "a list of at least one value"
        case "dict_type" | "model_type" | "model_attributes_type":
            return "a mapping of keys"
        case kind:
            return kind.replace("_", " ")


def known_keys(model: type[BaseModel], path: KeyPath) -> set[str]:
    """The keys, as YAML spells them, that the section at ``path`` may hold; none if there is no such section."""
    for part in path:
        # A list and its items lead to the same section.
        if not part.isdecimal():
            sections = _sections(model)
            if part not in sections:
                return set()
            model = sections[part]
    names = {field.alias or name for name, field in model.model_fields.items()}
    return names | {"sweep"} if model is RunConfig else names


def _sections(model: type[BaseModel]) -> dict[str, type[BaseModel]]:
    found = {field.alias or name: _section_in(field.annotation) for name, field in model.model_fields.items()}
    return {key: section for key, section in found.items() if section is not None}


def _section_in(annotation: Any) -> type[BaseModel] | None:
    """The section that a field holds, be it in a list or beside other types."""
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return annotation
    inner = (_section_in(argument) for argument in get_args(annotation))
    return next((section for section in inner if section is not None), None)
