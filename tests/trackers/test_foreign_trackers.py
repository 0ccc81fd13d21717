"""MLflow and Weights & Biases, against fakes of the few calls that their adapters make. Not installed for tests."""

from __future__ import annotations

import dataclasses
import itertools
import json
import sys
import types
from pathlib import Path

import pytest
from results_fixtures import make_record
from tracked import make_run, numbers, store

from qresearch.trackers.mirror import mirrors


class FakeMlflow:
    """A store in memory, which refuses batches that a real one would."""

    def __init__(self):
        self.experiments, self.runs, self.uri, self.ids = {}, {}, None, itertools.count()

    def client(self, tracking_uri):
        self.uri = tracking_uri
        return self

    def get_experiment_by_name(self, name):
        known = self.experiments.get(name)
        return known and types.SimpleNamespace(experiment_id=known)

    def create_experiment(self, name):
        return self.experiments.setdefault(name, f"e{len(self.experiments)}")

    def search_runs(self, experiments, filter_string):
        name, value = filter_string.removeprefix("tags.`").split("` = ")
        return [
            run
            for run in self.runs.values()
            if run.experiment in experiments and run.data.tags.get(name) == value[1:-1]
        ]

    def create_run(self, experiment, *, start_time, tags, run_name):
        assert 1.6e12 < start_time < 2e12, "milliseconds"
        data = types.SimpleNamespace(tags=dict(tags), params={}, metrics={})
        info = types.SimpleNamespace(run_id=f"r{next(self.ids)}", run_name=run_name, status="RUNNING")
        self.runs[info.run_id] = types.SimpleNamespace(experiment=experiment, info=info, data=data)
        return self.runs[info.run_id]

    def log_batch(self, run, params=(), metrics=()):
        assert len(params) <= 100
        assert len(metrics) <= 1000
        data = self.runs[run].data
        data.params |= {param.key: param.value for param in params}
        data.metrics |= {(metric.key, metric.step): metric.value for metric in metrics}

    def set_terminated(self, run, status):
        self.runs[run].info.status = status

    def set_tag(self, run, name, value):
        self.runs[run].data.tags[name] = value

    def delete_run(self, run):
        del self.runs[run]


@pytest.fixture
def mlflow(monkeypatch):
    fake = FakeMlflow()
    metric = dataclasses.make_dataclass("Metric", ("key", "value", "timestamp", "step"))
    entities = types.SimpleNamespace(Metric=metric, Param=dataclasses.make_dataclass("Param", ("key", "value")))
    monkeypatch.setitem(sys.modules, "mlflow", types.SimpleNamespace(MlflowClient=fake.client))
    monkeypatch.setitem(sys.modules, "mlflow.entities", entities)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return fake


class FakeWandb:
    """Offline runs that are JSON files; ``cut`` ends the process in the middle of one."""

    def __init__(self):
        self.cut = False

    Settings = staticmethod(dict)

    def init(self, *, mode, dir, project, group, id, name, config, settings, reinit):
        assert (mode, project, reinit) == ("offline", "qresearch", "create_new")
        self.folder = Path(dir) / "wandb" / f"offline-run-20260131_120000-{id}"
        self.folder.mkdir(parents=True)
        self.logged, self.summary = {}, {}
        self.facts = {"name": name, "group": group, "config": config}
        return self

    def log(self, values, step):
        assert not self.cut, "cut short"
        self.logged[step] = values

    def finish(self):
        content = {**self.facts, "logged": self.logged, "summary": self.summary}
        (self.folder / "run.json").write_text(json.dumps(content))


@pytest.fixture
def wandb(monkeypatch):
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


def mirrored(name, run, keys=()):
    lines = []
    with mirrors([name], run, lines.append) as mirror:
        for key in keys:
            mirror.log(key)
    return lines


def test_mlflow_holds_what_the_records_say_once(tmp_path, mlflow):
    run, records = make_run(tmp_path)
    for _ in range(2):
        assert mirrored("mlflow", run, [record.key for record in records]) == []
    assert mlflow.uri == f"sqlite:///{run.path}/mlflow/mlflow.db"
    assert list(mlflow.experiments) == [run.path.name]
    held = {own.info.run_name: own for own in mlflow.runs.values()}
    assert len(held) == len(mlflow.runs) == len(records)
    for record in records:
        own = held[record.label]
        assert own.data.metrics == numbers(record)
        assert own.data.params["seed"] == str(record.seed)
        assert own.info.status == {"done": "FINISHED", "failed": "FAILED"}[record.status]


def test_mlflow_goes_to_the_server_that_is_named(tmp_path, mlflow, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://example.org")
    run, _ = make_run(tmp_path)
    assert mirrored("mlflow", run) == []
    assert mlflow.uri == "https://example.org"
    assert not (run.path / "mlflow").exists()


def test_mlflow_parameters_go_in_batches(tmp_path, mlflow):
    run, _ = make_run(tmp_path)
    many = {f"k{i}": "x" * 9000 for i in range(250)}
    store(run, dataclasses.replace(make_record(seed=5), config=many))
    assert mirrored("mlflow", run) == []
    (own,) = (own for own in mlflow.runs.values() if "k249" in own.data.params)
    assert {len(own.data.params[name]) for name in many} == {6000}


def test_a_mlflow_run_that_was_cut_short_is_replaced(tmp_path, mlflow, monkeypatch):
    run, records = make_run(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(FakeMlflow, "set_terminated", lambda *arguments: 1 / 0)
        (line,) = mirrored("mlflow", run)
    assert line == "warning: tracker 'mlflow' is off: ZeroDivisionError: division by zero"
    (cut,) = mlflow.runs
    assert mirrored("mlflow", run) == []
    assert cut not in mlflow.runs
    assert len(mlflow.runs) == len(records)


def held_by_wandb(run):
    return [json.loads(path.read_text()) for path in (run.path / "wandb").glob("offline-run-*/run.json")]


def test_wandb_holds_what_the_records_say_once(tmp_path, wandb):
    run, records = make_run(tmp_path)
    for _ in range(2):
        assert mirrored("wandb", run, [record.key for record in records]) == []
    held = {own["name"]: own for own in held_by_wandb(run)}
    assert len(held) == len(held_by_wandb(run)) == len(records)
    for record in records:
        own = held[record.label]
        found = {(name, int(step)): value for step, row in own["logged"].items() for name, value in row.items()}
        assert found | {(name, 0): value for name, value in own["summary"].items()} == numbers(record)
        assert own["config"]["seed"] == record.seed
        assert own["group"] == run.path.name


def test_a_wandb_run_that_was_cut_short_or_is_old_is_replaced(tmp_path, wandb):
    run, records = make_run(tmp_path)
    wandb.cut = True
    (line,) = mirrored("wandb", run)
    assert line == "warning: tracker 'wandb' is off: AssertionError: cut short"
    assert held_by_wandb(run) == []
    wandb.cut = False
    assert mirrored("wandb", run) == []
    assert [path.name for path in (run.path / "wandb").glob(".*")] == []
    failed = next(record for record in records if record.status == "failed")
    store(run, dataclasses.replace(make_record(seed=2, score=0.5), label=failed.label))
    assert mirrored("wandb", run, [failed.key]) == []
    assert len(held_by_wandb(run)) == len(records)
    (redone,) = (own for own in held_by_wandb(run) if own["name"] == failed.label)
    assert redone["summary"]["test/score"] == 0.5
