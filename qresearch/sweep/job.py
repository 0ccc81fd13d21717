"""What a worker does with a piece of a sweep: it trains float models, or runs trials and stores their records."""

from __future__ import annotations

from pathlib import Path

from qresearch.config import RunConfig, config_hash
from qresearch.devices import is_first, meet
from qresearch.engines.base import Tell
from qresearch.results import RunFolder, open_run
from qresearch.sweep.assemble import known_names
from qresearch.sweep.bench import Bench
from qresearch.sweep.execute import run_bench
from qresearch.sweep.floats import obtain_floats
from qresearch.sweep.halving import save_score
from qresearch.sweep.outcome import Outcome, checked, make_record, per_example
from qresearch.sweep.plan import Piece, group_key, read_piece
from qresearch.sweep.progress import Relay
from qresearch.sweep.sources import sources_of


class Jobs:
    """Does one job after the other. The bench of the last one is kept, and with it the programs that it compiled."""

    def __init__(self) -> None:
        self._relay = Relay()
        self._bench: tuple[object, Bench] | None = None

    def run(self, text: str, tell: Tell) -> None:
        """Does one job, see ``Piece.text``. ``tell`` is called with a message for every trial that is stored, for
        float models that could not be trained, and with the progress.
        """
        path, piece = read_piece(text, known_names())
        self._relay.tell = tell
        if piece.kind == "float":
            self._train_floats(path, piece, tell)
        else:
            self._run_trials(path, piece, tell)
        meet("the end of a job")

    def _train_floats(self, path: Path, piece: Piece, tell: Tell) -> None:
        floats = obtain_floats(piece.configs, path / "float", self._relay)
        failed = {key: model.failure for key, model in floats.items() if model.failure is not None}
        if failed:
            tell({"floats_failed": failed})

    def _run_trials(self, path: Path, piece: Piece, tell: Tell) -> None:
        # A job that is given again, because its worker was lost or seemed to be, has left records.
        run = open_run(path)
        pending = [config for config in piece.configs if not run.has(config_hash(config))]
        for config in set(piece.configs) - set(pending):
            tell({"trial": config_hash(config), "failure": None})
        for config in pending:
            sources_of(config)  # remembered from here on: a file that is edited while trials run did not make them
        if pending:
            bench = self._bench_of(piece, path)
            floats = obtain_floats(pending, path / "float", self._relay)
            for outcome in map(checked, run_bench(bench, pending, floats, piece.until)):
                key = config_hash(outcome.config)
                if outcome.stopped is None:
                    store(run, bench, outcome)
                    tell({"trial": key, "failure": outcome.failure})
                else:
                    save_score(path, outcome.config, *outcome.stopped)
                    tell({"stopped": key})

    def _bench_of(self, piece: Piece, path: Path) -> Bench:
        key = (path, group_key(piece.configs[0]), piece.widths)
        if self._bench is None or self._bench[0] != key:
            self._bench = (key, Bench(piece.configs[0], path, self._relay, piece.widths))
        return self._bench[1]


def store(run: RunFolder, bench: Bench, outcome: Outcome) -> None:
    """Writes the record of an outcome, and what belongs to it; the record comes last, because it says that the trial
    is finished. Of several processes the first one writes.
    """
    if not is_first():
        return
    record = make_record(outcome, bench.sketch, bench.setup.task)
    examples = None if outcome.test is None else per_example(outcome.test, bench.setup.task)
    run.start(record.key, record.label, record.config)
    epochs = outcome.extra.get("epochs", {})
    run.save_metrics(record.key, [{"epoch": int(epoch), **row} for epoch, row in epochs.items()])
    run.save(record, examples)


def store_failure(run: RunFolder, bench: Bench, config: RunConfig, reason: str) -> None:
    """The record of a trial that could not be run."""
    store(run, bench, Outcome.lost(config, len(bench.sketch.layers), reason))
