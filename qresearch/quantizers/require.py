"""What a method may ask of a specification."""

from __future__ import annotations

from typing import Any

from qresearch.quantizers.base import QuantSpec, UnsupportedSpecError


def require(name: str, spec: QuantSpec, why: str, **fields: Any) -> None:
    """Refuses a specification in which one of ``fields`` differs from the only value that the method defines.

    Nothing that a user writes is ignored: a rounding mode that a method has no use for is an error.
    """
    for field, value in fields.items():
        given = getattr(spec, field)
        if given != value:
            raise UnsupportedSpecError(f"{name} {why}: got {field} {given!r}, expected {value!r}")
