"""How far the sensitivities of a run add up, from the files that it keeps them in."""

from __future__ import annotations

from qresearch.errors import DataError
from qresearch.results.run_folder import RunFolder
from qresearch.results.sealed import read_sealed

HEADER = ("sensitivity", "joint allocations", "rank correlation", "measured / predicted")
ABOUT = (
    "Allocators add up what layers lose one at a time. Here random allocations of all layers are measured and compared"
    " with those sums: a low rank correlation means that answers should be refined on measured losses. The ratio means"
    " something for sensitivities in the loss's own unit alone (loss_increase, fisher, hawq_v2)."
)


def additivity_rows(run: RunFolder) -> list[tuple[str, ...]]:
    """The cells under ``HEADER``, one row per sensitivity table of the run that was compared with joint allocations."""
    rows = []
    for path in sorted((run.path / "sensitivity").glob("*.json")):
        try:
            content = read_sealed(path)
            joint = content.get("joint")
            if joint is not None:
                cells = (len(joint["predicted"]), joint["rank_correlation"], joint["ratio"])
                rows.append((content["name"], str(cells[0]), *("-" if v is None else f"{v:.3f}" for v in cells[1:])))
        except DataError as error:
            raise DataError(f"{error}; delete it, and the report leaves it out") from None
    return rows
