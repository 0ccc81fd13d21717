"""Published numbers beside ours, as Markdown: the tables of README.md and docs/reproduction.md.

``python -m paper_figures.tables`` writes them again from the committed records, between marks such as
``<!-- figures:begin -->`` and ``<!-- figures:end -->``; a test fails where they are not current.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from paper_figures import FIGURES
from paper_figures.figure import ROOT, Figure, Record, Row, records_of

PAGES = (ROOT / "README.md", ROOT / "docs" / "reproduction.md")
HEADERS = {
    "figures": ("figure", "paper", "within tolerance", "farthest off", "published", "ours", "difference", "device"),
    "numbers": ("figure", "number", "published", "ours", "difference", "tolerance", "within"),
    "commands": ("figure", "command", "run", "commit"),
}


def markdown(kind: str, figures: Mapping[str, Figure] = FIGURES) -> str:
    """A table: kind "figures" has a row per figure, "numbers" one per number, "commands" says how each was made."""
    lines = {"figures": _figure_rows, "numbers": _number_rows, "commands": _command_rows}[kind]
    header = HEADERS[kind]
    return "\n".join([_row(header), "|---" * len(header) + "|", *map(_row, lines(figures))])


def current(page: Path) -> str:
    """The text of a page with its tables made again."""

    def table(match: re.Match[str]) -> str:
        kind = match[1]
        return f"<!-- {kind}:begin -->\n{markdown(kind)}\n<!-- {kind}:end -->"

    kinds = "|".join(HEADERS)
    text = page.read_text(encoding="utf-8")
    return re.sub(rf"<!-- ({kinds}):begin -->\n.*?<!-- \1:end -->", table, text, flags=re.DOTALL)


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _figure_rows(figures: Mapping[str, Figure]) -> Iterator[tuple[str, ...]]:
    for name, one in figures.items():
        records = records_of(name)
        judged = [row for row in one.rows(records) if row.within is not None]
        if judged:
            farthest = max(judged, key=_share)
            what, ours, published, difference, *_ = farthest.cells
            within = f"{sum(bool(row.within) for row in judged)} of {len(judged)}"
            cells = (within, what, published, ours, difference)
        else:
            cells = ("nothing published" if records else "not run", "", "", "", "")
        yield (f"`{name}`", one.paper, *cells, _devices(records) or one.device)


def _share(row: Row) -> float:
    """How much of its tolerance a judged number uses."""
    if isinstance(row.tolerance, float) and row.tolerance and row.difference is not None:
        return abs(row.difference) / row.tolerance
    return 0.0 if row.within else float("inf")


def _number_rows(figures: Mapping[str, Figure]) -> Iterator[tuple[str, ...]]:
    for name, one in figures.items():
        for row in one.rows(records_of(name)):
            what, ours, published, difference, tolerance, within = row.cells
            yield (f"`{name}`", what, published, ours or "not run", difference, tolerance, within)


def _command_rows(figures: Mapping[str, Figure]) -> Iterator[tuple[str, ...]]:
    for name, one in figures.items():
        commits = ", ".join(sorted({record["commit"][:7] for record in records_of(name)}))
        note = sys.modules[one.run.__module__].__doc__ or ""
        run = re.search(r"^Run: (.*?)^\w+: ", note, re.DOTALL | re.MULTILINE)
        yield (f"`{name}`", f"`{one.command(name)}`", " ".join(run[1].split()) if run else "", commits)


def _devices(records: Sequence[Record]) -> str:
    """The devices and JAX versions that the records name."""
    return "; ".join(sorted({f"{record['device']['kind']}, JAX {record['versions']['jax']}" for record in records}))


def write() -> list[Path]:
    """Brings the pages up to date; the paths of those that changed."""
    changed = [page for page in PAGES if current(page) != page.read_text(encoding="utf-8")]
    for page in changed:
        page.write_text(current(page), encoding="utf-8")
    return changed


if __name__ == "__main__":
    for path in write():
        print(path)
