"""The key ``sweep.halving``: which trials are stopped before their end, so that the others get the time."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from qresearch.config.fields import AS_TUPLE, Count, Section, Text, expect


class HalvingConfig(Section):
    """Successive halving of QAT trials: after ``epochs``, ``factor`` times as many, and so on, the best one in
    ``factor`` by validation score goes on. ``within``: trials compete where these keys (and all that is static) agree.
    """

    epochs: Count = 1
    factor: Annotated[int, Field(ge=2), expect("a whole number >= 2")] = 3
    within: Annotated[tuple[Text, ...], AS_TUPLE] = ("allocation",)
