"""How far a run is, from its ledger and its lock; a run that is being written is not disturbed."""

from __future__ import annotations

import collections

from qresearch.results.ledger import STATES, read_ledger
from qresearch.results.lock import holder_of
from qresearch.results.run_folder import RunFolder

_SHOWN = 20  # trials of one kind that are listed; more are counted


def status_lines(run: RunFolder) -> list[str]:
    """The run, who writes it, how many trials are in every state, those that run and those that failed and why."""
    rows, holder = read_ledger(run.path), holder_of(run.path)
    lines = [f"{run.path}: written by {holder}" if holder else f"{run.path}: nobody writes it now"]
    if not rows:
        return [*lines, "no ledger: the run was made by an earlier version; 'qresearch show' has its records"]
    counts = collections.Counter(row.state for row in rows)
    attempts = sum(row.attempts for row in rows)
    lines.append(", ".join(f"{counts[state]} {state}" for state in STATES) + f"; {attempts} attempts")
    for state in ("running", "stopped", "failed"):
        own = [row for row in rows if row.state == state]
        for row in own[:_SHOWN]:
            reason = f": {row.reason}" if row.state != "running" else ""
            lines.append(f"{state}  {row.key[:8]} {row.label} (attempt {row.attempts}, {row.updated}){reason}")
        if len(own) > _SHOWN:
            lines.append(f"{state}  and {len(own) - _SHOWN} more")
    return lines
