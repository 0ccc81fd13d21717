"""What a method may ask of a specification."""

from __future__ import annotations

from typing import Any

from qresearch.quantizers.base import QuantSpec, UnsupportedSpecError

# None in the words of a config.
_LEFT_OUT = {"range": "own (or leave range out)", "mask": "no mask (leave it out)"}


def require(name: str, spec: QuantSpec, why: str, **fields: Any) -> None:
    """Refuses a specification in which one of ``fields`` differs from the only value that the method defines.

    Nothing that a user writes is ignored: a rounding mode that a method has no use for is an error.
    """
    for field, value in fields.items():
        given = getattr(spec, field)
        if given != value:
            expected = _LEFT_OUT.get(field, repr(value)) if value is None else repr(value)
            raise UnsupportedSpecError(f"{name} {why}: got {field} {given!r}, expected {expected}")
