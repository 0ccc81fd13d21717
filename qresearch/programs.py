"""Compiled programs, kept by their text: layers and blocks of equal shape, wherever they stand, share one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

PROGRAMS: dict[Any, Any] = {}
LIMIT = 256  # the programs of some networks; then all are dropped


def compiled(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Callable[..., Any]:
    """``function`` compiled for arguments of these shapes. What it closes over must not be an array: as part of its
    text, it would make every program one of its own.
    """
    # keep_unused: or equal texts could leave out different arguments.
    lowered = jax.jit(function, keep_unused=True).lower(*arguments)
    key = (lowered.as_text(), lowered.in_tree, lowered.out_tree)
    if key not in PROGRAMS:
        if len(PROGRAMS) >= LIMIT:
            PROGRAMS.clear()
        PROGRAMS[key] = lowered.compile()
    return PROGRAMS[key]


def run(function: Callable[..., Any], *arguments: Any) -> Any:
    """``function(*arguments)``, compiled."""
    return compiled(function, arguments)(*arguments)
