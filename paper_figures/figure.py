"""What a figure is: a way to make its records, rows of ours beside what was published, and a picture of the records."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from qresearch.errors import DataError
from qresearch.results.atomic import make_folder, read_json_lines, render_json_lines, write_bytes, write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Picture

Record = Mapping[str, Any]
ROOT = Path(__file__).resolve().parent.parent
DATA = Path(__file__).resolve().parent / "data"
ORIGIN = ("commit", "command", "device", "versions", "seconds")  # what every record says of where it comes from
HEADER = ("row", "ours", "published", "difference", "tolerance", "within tolerance")
FORMATS = ("png", "svg", "pdf")


class Row(NamedTuple):
    """One number of ours beside a published one. ours: None where it was not run; published: None where there is none.

    tolerance: the largest difference allowed, or "sign": both are on the same side of zero; None: shown, not judged.
    """

    what: str
    published: float | None
    ours: float | None
    tolerance: float | Literal["sign"] | None = None

    @property
    def difference(self) -> float | None:
        """ours - published."""
        return None if self.ours is None or self.published is None else self.ours - self.published

    @property
    def within(self) -> bool | None:
        """Whether ours is within the tolerance; None where there is nothing to judge."""
        if self.difference is None or self.tolerance is None or self.ours is None or self.published is None:
            return None
        if self.tolerance == "sign":
            return self.ours * self.published > 0
        return abs(self.difference) <= self.tolerance * (1 + 1e-9)  # published and ours are decimal fractions

    @property
    def cells(self) -> tuple[str, ...]:
        """The texts under ``HEADER``."""
        judged = {None: "", True: "yes", False: "no"}[self.within]
        tolerance = self.tolerance if isinstance(self.tolerance, str) else text(self.tolerance)
        return (self.what, text(self.ours), text(self.published), text(self.difference, "+"), tolerance, judged)


class Figure(NamedTuple):
    """One figure or table. paper: authors, what of it, year, link; the module's docstring has the rest.

    run: makes the records, plain mappings (those of a sweep have the origin of their trial, see ``sweeps.py``).
    rows: of the records, of which any may be absent. draw: the picture; it reads records and runs nothing. needs:
    what must be set before the command, such as the folder of the data. device: "gpu" where two CPU cores would take
    more than ten minutes. run and draw are None where this repository cannot do it yet.
    """

    title: str
    paper: str
    run: Callable[[], Sequence[Record]]
    rows: Callable[[Sequence[Record]], list[Row]]
    draw: Callable[[Sequence[Record]], Picture]
    needs: str = ""
    device: Literal["cpu", "gpu"] = "cpu"

    def command(self, name: str) -> str:
        """What makes its records."""
        return f"{self.needs} qresearch figure {name} --run".lstrip()


def text(value: float | None, sign: str = "") -> str:
    """A number in six digits; nothing for None."""
    return "" if value is None else f"{value:{sign}.6g}"


def records_of(name: str) -> list[dict[str, Any]]:
    """The committed records of a figure; none where it was not run. ``DataError`` names a damaged file."""
    path = DATA / f"{name}.jsonl"
    if not path.is_file():
        return []
    rows, torn = read_json_lines(path)
    lacking = sorted({field for row in rows for field in ORIGIN if field not in row})
    if torn or lacking or not rows:
        problem = f"{torn} torn lines" if torn else f"records without {', '.join(lacking)}" if lacking else "no records"
        raise DataError(f"{path}: {problem}; make it again with 'qresearch figure {name} --run'")
    return rows


def make_records(name: str, figure: Figure) -> Path:
    """Runs what the figure needs and writes its records, each with commit, command, device, versions and seconds."""
    import time

    from qresearch.results import environment

    # Asked before: the working tree may be another by the time a long run ends.
    where, started = environment(), time.perf_counter()
    found = list(figure.run())
    here = origin(where, time.perf_counter() - started)
    rows = [here | dict(record) | {"command": figure.command(name)} for record in found]
    path = DATA / f"{name}.jsonl"
    make_folder(DATA)
    write_text(path, render_json_lines(rows))
    return path


def origin(environment: Record, seconds: float) -> dict[str, Any]:
    """What a record says of where it comes from, but for its command."""
    kept = {name: environment[name] for name in ("commit", "dirty", "device", "versions")}
    return kept | {"seconds": round(seconds, 1)}


def csv_of(rows: Sequence[Row]) -> str:
    """The rows under ``HEADER``."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(HEADER)
    writer.writerows(row.cells for row in rows)
    return buffer.getvalue()


def write_figure(name: str, figure: Figure, records: Sequence[Record], output: Path) -> list[Path]:
    """The CSV and, of a figure that was run, the picture as PNG, SVG and PDF: equal records give equal bytes."""
    make_folder(output)
    paths = [output / f"{name}.csv"]
    try:
        write_text(paths[0], csv_of(figure.rows(records)))
        pictures = picture_bytes(name, figure.draw(records)) if records else {}
    except (KeyError, IndexError, TypeError, ValueError) as error:
        again = f"make them again with 'qresearch figure {name} --run'"
        raise DataError(f"{name}: its records are not what the figure needs ({error!r}); {again}") from error
    for suffix, data in pictures.items():
        paths.append(output / f"{name}.{suffix}")
        write_bytes(paths[-1], data)
    return paths


def picture_bytes(name: str, picture: Picture) -> dict[str, bytes]:
    """The picture in every format, without dates, versions or random names."""
    from matplotlib import rc_context

    silent = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}}
    silent["pdf"] = {"CreationDate": None, "Creator": None, "Producer": None}
    found = {}
    with rc_context({"svg.hashsalt": name}):
        for suffix in FORMATS:
            buffer = io.BytesIO()
            picture.savefig(buffer, format=suffix, metadata=silent[suffix])
            found[suffix] = buffer.getvalue()
    return found


def find(records: Sequence[Record], field: str, **wanted: Any) -> Any:
    """``field`` of the first record whose fields have the wanted values; None if there is none."""
    return next((record[field] for record in records if all(record.get(k) == v for k, v in wanted.items())), None)


def published_bars(rows: Sequence[Row], label: str, limits: tuple[float, float]) -> Picture:
    """Bars of ours beside the published numbers, with the tolerance around these."""
    from qresearch.report.figure import new_figure

    picture = new_figure(2.6 + 1.3 * len(rows), 4.2)
    axes, known = picture.subplots(), [(i, row.ours) for i, row in enumerate(rows) if row.ours is not None]
    bars = axes.bar([i - 0.2 for i, _ in known], [ours for _, ours in known], 0.38, color="#0072B2", label="ours")
    axes.bar_label(bars, fmt="%.2f", fontsize=8)
    values = [row.published or 0.0 for row in rows]
    errors = [row.tolerance if isinstance(row.tolerance, float) else 0.0 for row in rows]
    places = [i + 0.2 for i in range(len(rows))]
    axes.bar(places, values, 0.38, yerr=errors, capsize=3, color="#E69F00", label="published ± tolerance")
    axes.set_xticks(range(len(rows)), [row.what.split(",")[0] for row in rows], fontsize=8)
    axes.set(ylabel=label, ylim=limits)
    axes.grid(alpha=0.25, axis="y")
    axes.legend(fontsize=8)
    return picture
