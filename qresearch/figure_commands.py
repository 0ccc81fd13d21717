"""What ``qresearch figure`` does: figures of papers from records. They live in ``paper_figures/`` of the repository."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from qresearch.errors import ConfigError, DataError, QResearchError, did_you_mean

if TYPE_CHECKING:
    from paper_figures.figure import Figure, Row

OK, FAILED = 0, 3


def figure(options: argparse.Namespace) -> int:
    """Draws figures from their records, after making these where that is asked for."""
    known = _known()
    if unknown := [name for name in options.names if name not in known]:
        raise ConfigError(f"no figure '{unknown[0]}'{did_you_mean(unknown[0], known)}")
    if options.all and options.names:
        raise ConfigError("figure: names and --all exclude each other")
    chosen = {name: known[name] for name in options.names} or known
    if options.table:
        from paper_figures.tables import markdown

        print(markdown(options.table, chosen))
        return OK
    if options.list:
        return _print_list(chosen)
    if not options.names and not options.all:
        raise ConfigError(f"figure: expected names, --all, --list or --table; names: {', '.join(known)}")
    return _draw(chosen, options)


def _known() -> dict[str, Figure]:
    """The figures of the repository. ``DataError`` where this is an installed package without it."""
    root = Path(__file__).resolve().parent.parent
    if not (root / "paper_figures" / "__init__.py").is_file():
        raise DataError(
            f"the figures are no part of the installed package, and there is no {root / 'paper_figures'}:"
            " run this in a clone of the repository, installed with 'pip install -e .'"
        )
    from paper_figures import FIGURES

    return FIGURES


def _draw(chosen: dict[str, Figure], options: argparse.Namespace) -> int:
    from paper_figures.figure import make_records, records_of, write_figure

    output, undrawn, failed = Path(options.output).expanduser(), [], False
    for name, one in chosen.items():
        # With --all a machine without a GPU leaves out what needs one, and what fails stops nothing else.
        if options.run and (options.names or one.device == "cpu" or _has_gpu()):
            try:
                print(make_records(name, one), flush=True)
            except QResearchError as error:
                if options.names:
                    raise
                print(f"error: {name}: {error}", file=sys.stderr)
                failed = True
        records = records_of(name)
        for path in write_figure(name, one, records, output):
            print(path, flush=True)
        print(f"{name}: {_verdict(one.rows(records)) if records else f'not run; {one.command(name)}'}", flush=True)
        undrawn += [] if records else [name]
    if undrawn and options.names:
        raise DataError(f"not drawn, for want of records: {', '.join(undrawn)}; the CSV has the published numbers")
    return FAILED if failed else OK


def _has_gpu() -> bool:
    import jax

    return jax.default_backend() != "cpu"


def _verdict(rows: Sequence[Row]) -> str:
    judged = [row.within for row in rows if row.within is not None]
    if not judged:
        return f"{len(rows)} numbers, none published"
    return f"{sum(judged)} of {len(judged)} numbers within tolerance"


def _print_list(chosen: dict[str, Figure]) -> int:
    from paper_figures.figure import records_of
    from qresearch.report import plain_table

    rows = []
    for name, one in chosen.items():
        records = records_of(name)
        state = _verdict(one.rows(records)) if records else "not run"
        rows.append((name, one.title, one.paper, one.device, state, one.command(name)))
    print(plain_table(("figure", "title", "paper", "device", "records", "command"), rows))
    return OK
