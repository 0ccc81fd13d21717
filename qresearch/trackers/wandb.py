"""Weights & Biases, offline: nothing leaves the machine before ``wandb sync <run>/wandb/offline-run-*``."""

from __future__ import annotations

import itertools
import os
import shutil
from pathlib import Path

from qresearch.results import Record
from qresearch.results.atomic import make_folder
from qresearch.trackers.tracker import Rows, Tracker, fingerprint, scalars, settings


def wandb(folder: Path, run: str, /) -> Tracker:
    """One offline run per trial, in a group named like the sweep: metrics by epoch, test scores, costs, config."""
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # offline is offline
    import wandb  # noqa: F401 (a package that is missing is said at the start)

    return _Wandb(folder, run)


class _Wandb:
    def __init__(self, folder: Path, run: str) -> None:
        self.folder, self.run = folder, run

    def log(self, record: Record, rows: Rows) -> None:
        import wandb

        own = f"{record.key[:8]}-{fingerprint(record)[:16]}"
        if list(self.folder.glob(f"offline-run-*-{own}")):
            return
        partial = self.folder / ".partial"  # a run that was cut short is left in here, and removed
        shutil.rmtree(partial, ignore_errors=True)
        make_folder(partial)
        quiet = wandb.Settings(silent=True, console="off", x_disable_meta=True, x_disable_stats=True)
        place = {"mode": "offline", "dir": str(partial), "project": "qresearch", "group": self.run, "id": own}
        run = wandb.init(**place, name=record.label, config=settings(record), settings=quiet, reinit="create_new")
        by_step = sorted(scalars(record, rows), key=lambda scalar: scalar.step)
        for step, found in itertools.groupby(by_step, key=lambda scalar: scalar.step):
            values = {name: value for name, _, value in found}
            if step:
                run.log(values, step=step)
            else:
                run.summary.update(values)
        run.finish()
        (made,) = (partial / "wandb").glob("offline-run-*")
        for earlier in self.folder.glob(f"offline-run-*-{record.key[:8]}-*"):
            shutil.rmtree(earlier)
        made.rename(self.folder / made.name)

    def close(self) -> None:
        shutil.rmtree(self.folder / ".partial", ignore_errors=True)
