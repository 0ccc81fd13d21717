"""The kinds of value that settings have. Each carries the words that an error uses for what it expects."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)
from pydantic_core import PydanticCustomError


def expect(words: str) -> WrapValidator:
    """Whatever is wrong with the value, the error says that ``words`` were expected."""

    def check(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        try:
            return handler(value)
        except ValidationError:
            raise PydanticCustomError("expected", "{words}", {"words": words}) from None

    return WrapValidator(check)


def combination(key: str, message: str) -> PydanticCustomError:
    """The error that values do not go together. ``key``: the one to name, or "" for their section."""
    return PydanticCustomError("combination", "{message}", {"key": key, "message": message})


def _no_dots(name: str) -> str:
    if ".." in name:
        raise ValueError("'..' leaves the folder")
    return name


def _pairs(options: Any) -> Any:
    listed = list(options.items()) if isinstance(options, Mapping) else options
    pairs = isinstance(listed, list | tuple) and all(isinstance(pair, list | tuple) for pair in listed)
    return tuple(sorted(tuple(pair) for pair in listed)) if pairs else options


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _menu(menu: tuple[Any, ...]) -> tuple[Any, ...]:
    if menu and len(set(menu)) == len(menu):
        return menu
    raise PydanticCustomError("expected", "{words}", {"words": "a list of one or more different pairs"})


def _pairs_of(menu: Any) -> Any:
    """``weight`` and ``input`` widths as all their pairs, ``both`` as pairs of equal ones; a list of pairs as it is."""
    if not isinstance(menu, Mapping):
        return menu
    if set(menu) == {"both"} and isinstance(menu["both"], list | tuple):
        return [[width, width] for width in menu["both"]]
    sides = [menu.get("weight"), menu.get("input")]
    if set(menu) == {"weight", "input"} and all(isinstance(side, list | tuple) for side in sides):
        return [[weight, input] for weight in menu["weight"] for input in menu["input"]]
    words = "a list of pairs [weight_bits, input_bits], or lists of bits under 'weight' and 'input', or under 'both'"
    raise PydanticCustomError("expected", "{words}", {"words": words})


# YAML has lists; a frozen config has tuples.
AS_TUPLE = BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value)

Text = Annotated[str, Field(min_length=1), expect("text")]
RunName = Annotated[
    str,
    Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$"),
    AfterValidator(_no_dots),
    expect("up to 64 of a-z, 0-9, '.', '_', '-', beginning with a letter or digit and without '..'"),
]
# Registry names become parts of folder names.
Name = Annotated[
    str,
    Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,39}$"),
    AfterValidator(_no_dots),
    expect("a name of letters, digits, '.', '_', '-'"),
]
Whole = Annotated[int, Field(ge=0), expect("a whole number >= 0")]
Count = Annotated[int, Field(gt=0), expect("a whole number > 0")]
# jax keeps the low 32 bits of a seed: larger seeds would repeat smaller ones.
Seed = Annotated[int, Field(ge=0, lt=2**32), expect("a whole number from 0 to 4294967295")]
# abs: -0.0 and 0.0 are one setting, and must have one hash.
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False), AfterValidator(abs), expect("a number >= 0")]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False), expect("a number > 0")]
Fraction = Annotated[float, Field(ge=0, lt=1), AfterValidator(abs), expect("a number >= 0 and < 1")]
Bits = Annotated[int, Field(ge=0, le=32)]
Option = Annotated[
    tuple[Bits, Bits], AS_TUPLE, expect("a pair [weight_bits, input_bits] of whole numbers from 0 to 32")
]
Menu = Annotated[tuple[Option, ...], AfterValidator(_menu), AS_TUPLE, BeforeValidator(_pairs_of)]
# Patterns of the layers that share an option; a single one may stand for itself.
Tied = Annotated[
    tuple[Annotated[tuple[Text, ...], AS_TUPLE, BeforeValidator(_as_list)], ...],
    AS_TUPLE,
    expect("a list of patterns, or of lists of patterns"),
]
# Budgets by cost, a mapping in YAML; sorted pairs, because a config is hashed.
Limits = Annotated[
    tuple[tuple[Name, Positive], ...],
    BeforeValidator(lambda value: _pairs(value)),
    expect("a mapping from costs to numbers > 0"),
]
# The method's own options, a mapping in YAML; sorted pairs, because a config is hashed.
Options = Annotated[
    tuple[tuple[str, bool | int | float | str], ...],
    BeforeValidator(lambda value: _pairs(value)),
    expect("a mapping from option names to numbers, texts, true or false"),
]
Flow = Literal["float", "ptq", "qat"]
Granularity = Literal["per_tensor", "per_channel", "per_group", "per_token"]


class Section(BaseModel):
    """Part of a config: unknown keys are errors, nothing is converted, nothing changes later."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
