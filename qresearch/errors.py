"""Errors a user can act on: one line each, with the exit status the command line gives them.

Every message says what was given, what was expected and what to do. Anything else that is raised is a defect of
qresearch and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class QResearchError(Exception):
    """Base of all errors a user can act on. ``exit_status``: what the command line ends with."""

    exit_status = 2


class ConfigError(QResearchError):
    """A configuration that cannot be run. Carries every problem found, one per line."""


class DataError(QResearchError):
    """A data set, weight file or record that is missing, truncated or of the wrong format."""


class GraphError(QResearchError):
    """A model, or a rule over its layers, that cannot be quantized as asked."""


class BudgetError(QResearchError):
    """A budget that no allocation meets."""


class TrainingError(QResearchError):
    """A training that something else needs the outcome of, and that diverged."""


class EngineError(QResearchError):
    """An engine that cannot run anything, or no longer: no scheduler, no Slurm, none of its workers starts."""


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """Returns ``"; did you mean 'x'?"`` for the closest known name, or a list of the known names if none is close."""
    names = sorted(known)
    close = difflib.get_close_matches(given, names, n=3, cutoff=0.5)
    if close:
        return "; did you mean " + " or ".join(f"'{name}'" for name in close) + "?"
    return "; known: " + ", ".join(names[:30])
