"""MLflow: ``mlflow ui --backend-store-uri sqlite:///<run>/mlflow/mlflow.db``, or the server of MLFLOW_TRACKING_URI."""

from __future__ import annotations

import datetime
import logging
import os
from pathlib import Path
from typing import Any

from qresearch.results import Record
from qresearch.results.atomic import make_folder
from qresearch.trackers.tracker import Rows, Tracker, fingerprint, scalars, settings

_KEY, _RECORD = "qresearch.key", "qresearch.record"
_AT_ONCE = {"params": 100, "metrics": 1000}  # what a store takes in one call
_LONGEST = 6000  # characters of a parameter's value


def mlflow(folder: Path, run: str, /) -> Tracker:
    """One MLflow run per trial, in an experiment named like the sweep: metrics by epoch, test scores, costs, config."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # a mirror calls nobody that it was not told to call
    from mlflow import MlflowClient

    logging.getLogger("mlflow").setLevel(logging.WARNING)
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        make_folder(folder)
        uri = f"sqlite:///{folder.resolve() / 'mlflow.db'}"
    return _MLflow(MlflowClient(tracking_uri=uri), run)


class _MLflow:
    def __init__(self, client: Any, run: str) -> None:
        self.client = client
        found = client.get_experiment_by_name(run)
        self.experiment = found.experiment_id if found else client.create_experiment(run)

    def log(self, record: Record, rows: Rows) -> None:
        from mlflow.entities import Metric, Param

        client, mark = self.client, fingerprint(record)
        earlier = client.search_runs([self.experiment], filter_string=f"tags.`{_KEY}` = '{record.key}'")
        if any(run.data.tags.get(_RECORD) == mark for run in earlier):
            return
        when = int(1000 * datetime.datetime.fromisoformat(record.created).timestamp())
        own = client.create_run(self.experiment, start_time=when, tags={_KEY: record.key}, run_name=record.label)
        params = [Param(name, str(value)[:_LONGEST]) for name, value in settings(record).items()]
        metrics = [Metric(name, value, when, step) for name, step, value in scalars(record, rows)]
        for kind, items in {"params": params, "metrics": metrics}.items():
            for start in range(0, len(items), _AT_ONCE[kind]):
                client.log_batch(own.info.run_id, **{kind: items[start : start + _AT_ONCE[kind]]})
        client.set_terminated(own.info.run_id, "FINISHED" if record.status == "done" else "FAILED")
        client.set_tag(own.info.run_id, _RECORD, mark)  # the last word: with it, the run is complete
        for run in earlier:
            client.delete_run(run.info.run_id)

    def close(self) -> None:
        pass  # every run was ended when it was written
