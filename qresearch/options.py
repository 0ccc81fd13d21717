"""Options of registered functions, as a config gives them: checked against the function's own keywords."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

from qresearch.errors import ConfigError, did_you_mean

# Options that are shares of something; no option of any method is a negative number.
_AT_MOST = {"alpha": 1.0, "drop": 1.0, "warmup": 0.99, "sparsity": 0.99}
_KINDS = {bool: "true or false", int: "a whole number >= 1", float: "a number", str: "a text"}


def check_options(where: str, what: str, function: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """ConfigError for an option that ``function`` has no keyword for, or of another type than its default.

    where: the section of the config. what: the function in the words of the message, such as "method 'adaround'".
    Whole numbers are counts, from 1; numbers are finite and not negative.
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
        if wanted is float and not (math.isfinite(value) and 0 <= value <= _AT_MOST.get(option, math.inf)):
            most = f"from 0 to {_AT_MOST[option]:g}" if option in _AT_MOST else ">= 0"
            raise ConfigError(f"{where}: option '{option}' of {what} takes a number {most}, got {value:g}")
