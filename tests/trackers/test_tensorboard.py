"""TensorBoard's own reader finds in the event files what the records say."""

from __future__ import annotations

import dataclasses
import json

import pytest
from results_fixtures import make_record
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.metadata import SESSION_START_INFO_TAG, parse_session_start_info_plugin_data
from tracked import make_run, numbers, store

from qresearch.trackers.mirror import mirrors


def mirrored(run, keys=()):
    lines = []
    with mirrors(["tensorboard"], run, lines.append) as mirror:
        for key in keys:
            mirror.log(key)
    assert lines == []
    return {path.name: path for path in (run.path / "tensorboard").iterdir()}


def read(folder):
    """{(tag, step): value} of a folder, its text and its hyperparameters."""
    events = EventAccumulator(str(folder)).Reload()
    found = {(tag, e.step): e.value for tag in events.Tags()["scalars"] for e in events.Scalars(tag)}
    assert len(found) == sum(len(events.Scalars(tag)) for tag in events.Tags()["scalars"]), "nothing is there twice"
    (text,) = events.Tensors("config")[0].tensor_proto.string_val
    plugin = events.SummaryMetadata(SESSION_START_INFO_TAG).plugin_data.content
    given = parse_session_start_info_plugin_data(plugin).hparams
    return found, json.loads(text), {name: getattr(value, value.WhichOneof("kind")) for name, value in given.items()}


def test_event_files_say_what_the_records_say(tmp_path):
    run, records = make_run(tmp_path)
    folders = mirrored(run)
    assert set(folders) == {f"{record.key[:8]}-{record.label}" for record in records}
    for record in records:
        found, config, settings = read(folders[f"{record.key[:8]}-{record.label}"])
        assert found == pytest.approx(numbers(record), rel=1e-6)  # TensorBoard's scalars are float32
        assert config == record.config
        assert settings["seed"] == record.seed
        assert settings["status"] == record.status
        assert settings.get("reason") == record.reason


def test_what_is_mirrored_is_not_written_again(tmp_path):
    run, records = make_run(tmp_path)
    files = {file: file.stat().st_mtime_ns for folder in mirrored(run).values() for file in folder.iterdir()}
    assert len(files) == len(records)
    again = mirrored(run, [record.key for record in records])
    assert {file: file.stat().st_mtime_ns for folder in again.values() for file in folder.iterdir()} == files


def test_a_trial_that_was_run_again_replaces_what_was_mirrored(tmp_path):
    run, records = make_run(tmp_path)
    mirrored(run)
    failed = next(record for record in records if record.status == "failed")
    redone = dataclasses.replace(make_record(seed=2, score=0.5), label=failed.label)
    store(run, redone)
    folder = mirrored(run, [redone.key])[f"{failed.key[:8]}-{failed.label}"]
    assert len(list(folder.iterdir())) == 1
    assert read(folder)[0]["test/score", 0] == 0.5


def test_the_files_depend_on_the_records_alone(tmp_path):
    contents = []
    for name in ("a", "b"):
        run, _ = make_run(tmp_path / name)
        contents.append(
            {file.name: file.read_bytes() for folder in mirrored(run).values() for file in folder.iterdir()}
        )
    assert contents[0] == contents[1]
