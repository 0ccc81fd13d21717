"""The runs of an output folder: the rows of ``qresearch runs``, and the run that a user means by a name."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from qresearch.errors import DataError, did_you_mean
from qresearch.results.record import Record
from qresearch.results.run_folder import RunFolder, inside, open_run


class RunRow(NamedTuple):
    """One run. ``best_score``: the test score of the quantized trial with the best validation score.

    ``problem`` says why a run cannot be read; its counts are then 0.
    """

    name: str
    path: Path
    done: int
    failed: int
    invalid: int
    created: str
    best_score: float | None
    score_name: str
    problem: str | None = None


def list_runs(output: Path) -> tuple[RunRow, ...]:
    """One row per run under ``output``, oldest first. No folder, no rows."""
    return tuple(sorted((_row(path) for path in _run_paths(output)), key=lambda row: (row.created, row.name)))


def find_run(output: Path, name: str) -> RunFolder:
    """The run at a path, or the run under ``output`` with that name or the only one whose name starts so."""
    paths = _run_paths(output)
    if _is_run(Path(name)):
        return open_run(Path(name))
    exact = [path for path in paths if path.name == name]
    matches = exact or [path for path in paths if name and path.name.startswith(name)]
    if not matches:
        known = did_you_mean(name, [path.name for path in paths]) if paths else "; it holds no runs"
        raise DataError(f"no run {name!r} in {output}{known}")
    if len(matches) > 1:
        raise DataError(f"{name!r} means {len(matches)} runs: {', '.join(path.name for path in matches)}; name one")
    return open_run(inside(output, matches[0].name))


def _run_paths(output: Path) -> list[Path]:
    if not output.exists():
        return []
    try:
        return sorted(path for path in output.iterdir() if _is_run(path))
    except OSError as error:
        raise DataError(f"cannot list the runs in {output}: {error.strerror}") from error


def _is_run(path: Path) -> bool:
    try:
        return (path / "resolved.json").is_file()
    except (OSError, ValueError):  # a name too long for the system, or with a NUL in it
        return False


def _row(path: Path) -> RunRow:
    try:
        run = open_run(inside(path.parent, path.name))
        records, invalid = run.records()
    except DataError as error:
        return RunRow(path.name, path, 0, 0, 0, "", None, "", problem=str(error))
    done = [record for record in records if record.status == "done"]
    best = _best(done)
    return RunRow(
        name=path.name,
        path=path,
        done=len(done),
        failed=len(records) - len(done),
        invalid=len(invalid),
        created=run.created,
        best_score=None if best is None else float(best.metrics["test"]["score"]),
        score_name="" if best is None else best.score_name,
    )


def _best(done: list[Record]) -> Record | None:
    quantized = [record for record in done if record.flow != "float"] or done
    return max(quantized, key=_validation, default=None)


def _validation(record: Record) -> float:
    """The validation score, larger for the better one."""
    score = float(record.metrics["validation"]["score"])
    return score if record.higher_is_better else -score
