"""Options of registered functions, as a config gives them: checked against the function's own keywords."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from qresearch.errors import ConfigError, did_you_mean

_KINDS = {bool: "true or false", int: "a whole number >= 1", float: "a number", str: "a text"}


def check_options(where: str, what: str, function: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """ConfigError for an option that ``function`` has no keyword for, or of another type than its default.

    where: the section of the config. what: the function in the words of the message, such as "method 'adaround'".
    Whole numbers are counts, from 1.
    """
    parameters = inspect.signature(function).parameters.values()
    known = {parameter.name: parameter for parameter in parameters if parameter.default is not parameter.empty}
    for option, value in options.items():
        if option not in known:
            hint = did_you_mean(option, known) if known else "; it has none"
            raise ConfigError(f"{where}: {what} has no option '{option}'{hint}")
        wanted = type(known[option].default)
        fits = isinstance(value, (int, float) if wanted is float else wanted)
        fits = fits and isinstance(value, bool) == (wanted is bool) and (wanted is not int or value >= 1)
        if not fits:
            raise ConfigError(f"{where}: option '{option}' of {what} takes {_KINDS[wanted]}, got {value!r}")
