"""The commands that take a finished trial out of its run: ``export``, and ``verify``, which compares what leaves."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from qresearch.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from qresearch.export.formats import Deployed
    from qresearch.results import RunFolder

OK, DISAGREE = 0, 5


def export(options: argparse.Namespace) -> int:
    """The model of a trial, or its allocation, as a file of another tool."""
    from qresearch.export.formats import FORMATS, write

    if options.format not in FORMATS:
        raise ConfigError(f"--format: unknown format '{options.format}'{did_you_mean(options.format, FORMATS)}")
    run, made = _deployed(options, options.batch, options.reduce_range)
    name = f"{made.facts['trial'][:8]}-{made.facts['label']}{FORMATS[options.format].suffix}"
    path = run.path / "exports" / name if options.out is None else Path(options.out).expanduser()
    notes = write(made, options.format, path)
    print(f"file    {path}, {path.stat().st_size:,} bytes")
    for note in notes:
        print(f"note    {note}")
    return OK


def verify(options: argparse.Namespace) -> int:
    """Whether the simulation, the integers and the exports of a trial agree."""
    from qresearch.evaluation import make_batches
    from qresearch.export.formats import executions
    from qresearch.export.verify import HEADER, compare, comparison_json, table_rows
    from qresearch.report import plain_table
    from qresearch.results import environment
    from qresearch.results.sealed import write_sealed

    run, made = _deployed(options)
    config, setup = made.restored.config, made.restored.setup
    count = options.examples if options.examples is not None else config.evaluate.examples
    batches = make_batches(setup.data.test, config.evaluate.batch_size, count)
    with tempfile.TemporaryDirectory() as folder:
        ways, missing = executions(made, Path(folder))
        found = compare(ways, setup.task, setup.data.prepare, batches)
    print(f"{found.examples} test examples; the test score in the record is {made.facts['score']['test']:.4f}")
    print(plain_table(HEADER, table_rows(found)))
    problems = found.problems(options.bound)
    for text in (*found.bits(), *(f"not run  {line}" for line in missing), *(f"differs  {line}" for line in problems)):
        print(text)
    content = {**made.facts, **comparison_json(found, options.bound), "not_run": missing}
    write_sealed(run.path / "verify.json", {**content, "environment": environment()})
    print(run.path / "verify.json")
    return DISAGREE if problems else OK


def _deployed(
    options: argparse.Namespace, batch: int | None = None, reduce_range: bool = False
) -> tuple[RunFolder, Deployed]:
    """The run, and the trial that is meant, whose name is printed."""
    from qresearch.export.formats import deployed
    from qresearch.export.onnx import reduced_range
    from qresearch.results import find_run
    from qresearch.sweep.restore import find_trial, recalibrated, restore

    run = find_run(Path(options.output).expanduser(), options.run)
    record = find_trial(run, options.trial)
    print(f"trial   {record.key[:8]} {record.label}", flush=True)
    restored = restore(run, record)
    if reduce_range:
        restored = recalibrated(restored, reduced_range(restored.bits))
    return run, deployed(restored, batch, options.requantize)
