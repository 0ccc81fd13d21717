from __future__ import annotations

import dataclasses
import json
import shutil

import numpy as np
import pytest
from results_fixtures import ENVIRONMENT, make_examples, make_record

from qresearch.errors import DataError
from qresearch.results.run_folder import create_run, inside, open_run, safe_name

TEXT = "name: quick  # a comment\n"
UNSAFE = [
    "",
    ".",
    "..",
    "../up",
    "a/../../b",
    "/etc/passwd",
    "a/b",
    "a\\b",
    "C:\\x",
    "C:x",
    "~",
    "~root",
    "a\0b",
    "a\nb",
    "․․",  # Unicode dots
    "．．",
    "-rf",
    ".hidden",
    "name.",
    "a" * 101,
    "%2e%2e%2f",
    "a b",
]


@pytest.fixture
def run(tmp_path):
    return create_run(tmp_path / "results", "quick", TEXT, {"a": 1}, ENVIRONMENT)


def test_layout(run):
    assert run.path.name == f"quick-{run.digest[:4]}"
    record = make_record()
    run.save(record, make_examples())
    run.save_metrics(record.key, [{"step": 0}])
    trial = run.path / "trials" / f"{record.key[:8]}-{record.label}"
    names = ["env.json", "resolved.json", "settings.json", "sweep.yaml", "trials"]
    assert sorted(p.name for p in run.path.iterdir()) == names
    assert sorted(p.name for p in trial.iterdir()) == ["config.json", "examples.npz", "metrics.jsonl", "result.json"]
    assert (run.path / "sweep.yaml").read_text() == TEXT
    assert json.loads((run.path / "env.json").read_text()) == ENVIRONMENT
    assert json.loads((trial / "config.json").read_text())["config"] == record.config


def test_same_sweep_is_the_same_folder(run, tmp_path):
    run.save(make_record())
    again = create_run(tmp_path / "results", "quick", "other comments", {"a": 1}, {})
    assert again == run == open_run(run.path)
    assert (run.path / "sweep.yaml").read_text() == "other comments"
    assert len(again.records().records) == 1
    other = create_run(tmp_path / "results", "quick", TEXT, {"a": 2}, ENVIRONMENT)
    assert other.path != run.path


def test_folder_of_a_different_sweep_is_refused(run, tmp_path):
    other = create_run(tmp_path / "results", "quick", TEXT, {"a": 2}, ENVIRONMENT)
    shutil.copy(other.path / "resolved.json", run.path / "resolved.json")
    with pytest.raises(DataError, match="different sweep"):
        create_run(tmp_path / "results", "quick", TEXT, {"a": 1}, ENVIRONMENT)


def test_folder_left_half_made_is_finished_unless_it_holds_trials(run, tmp_path):
    (run.path / "resolved.json").unlink()
    assert create_run(tmp_path / "results", "quick", TEXT, {"a": 1}, ENVIRONMENT).digest == run.digest
    run.save(make_record())
    (run.path / "resolved.json").unlink()
    with pytest.raises(DataError, match="holds trials"):
        create_run(tmp_path / "results", "quick", TEXT, {"a": 1}, ENVIRONMENT)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"name": 1}', None])
def test_damaged_resolved_config_is_named(run, content):
    file = run.path / "resolved.json"
    content = file.read_text().replace('"a": 1', '"a": 2') if content is None else content
    file.write_text(content)
    with pytest.raises(DataError, match=r"resolved\.json"):
        open_run(run.path)


def test_records_and_examples_come_back(run):
    records = [make_record(seed=seed) for seed in range(3)]
    examples = [make_examples(seed=seed) for seed in range(2)] + [None]
    for record, arrays in zip(records, examples):
        run.save(record, arrays)
    stored = run.records()
    assert stored.invalid == ()
    assert sorted(r.seed for r in stored.records) == [0, 1, 2]
    for record in stored.records:
        loaded, saved = run.examples(record), examples[record.seed]
        if saved is None:
            assert loaded is None
        else:
            np.testing.assert_array_equal(loaded["score"], saved["score"])


def test_damage_is_reported_and_not_fatal(run):
    records = [make_record(seed=seed) for seed in range(5)]
    paths = [run.save(record, make_examples()) for record in records]
    paths[0].write_bytes(paths[0].read_bytes()[:-10])
    (paths[1].parent / "examples.npz").write_bytes(b"")
    (paths[2].parent / "examples.npz").unlink()
    paths[3].unlink()
    paths[3].symlink_to("nowhere")
    stored = run.records()
    assert [record.seed for record in stored.records] == [4]
    assert sorted(path for path, _ in stored.invalid) == sorted(paths[:4])
    assert all(str(path.parent) in reason for path, reason in stored.invalid)
    assert [run.has(record.key) for record in records] == [False] * 4 + [True]
    run.save(records[0], make_examples())
    assert run.has(records[0].key)


def test_record_in_the_wrong_folder_or_copied_is_invalid(run):
    a, b = make_record(seed=0), make_record(seed=1)
    path_a, path_b = run.save(a), run.save(b)
    shutil.copy(path_a, path_b)
    assert [reason for path, reason in run.records().invalid if path == path_b] != []
    shutil.copytree(path_a.parent, path_a.parent.with_name(f"{a.key[:8]}-copy"))
    stored = run.records()
    assert stored.records == ()
    assert any("two folders" in reason for _, reason in stored.invalid)


def test_unfinished_and_failed_trials_are_not_done(run):
    unfinished, failed = make_record(seed=0), make_record(seed=1, status="failed", reason="loss became NaN")
    run.start(unfinished.key, unfinished.label, unfinished.config)
    run.save(failed)
    assert run.records() == ((failed,), ())
    assert not run.has(unfinished.key)
    assert not run.has(failed.key)
    assert not run.has("0" * 64)
    done = make_record(seed=1)
    run.save(done)
    assert run.records().records == (done,)


def test_a_second_label_does_not_make_a_second_trial(run):
    record = make_record()
    first = run.start(record.key, "old-label", record.config)
    assert run.save(record).parent == first


def test_trials_whose_keys_begin_alike_have_folders_of_their_own(run):
    first, second = make_record(seed=1), make_record(seed=2)
    collides = dataclasses.replace(second, key=first.key[:8] + second.key[8:])
    paths = {run.save(record).parent for record in (first, collides, first, collides)}
    assert len(paths) == 2
    assert run.find_record(first.key) == first
    assert run.find_record(collides.key) == collides
    assert not run.has(first.key[:8] + "0" * 56)
    assert sorted(record.key for record in run.records().records) == sorted([first.key, collides.key])


def test_a_folder_without_its_config_gets_one(run):
    record = make_record()
    folder = run.start(record.key, record.label, record.config)
    (folder / "config.json").unlink()  # by a kill between the two
    assert run.start(record.key, record.label, record.config) == folder
    assert (folder / "config.json").is_file()


def test_metrics(run):
    record = make_record()
    with pytest.raises(DataError, match="start it first"):
        run.save_metrics(record.key, [{"step": 0}])
    folder = run.start(record.key, record.label, record.config)
    assert run.metrics(record.key) == ([], 0)
    run.save_metrics(record.key, [{"step": 7}])
    run.save_metrics(record.key, [{"step": 0, "loss": float("nan")}])  # of a second attempt
    with (folder / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 1, "lo')
    assert run.metrics(record.key) == ([{"step": 0, "loss": None}], 1)


@pytest.mark.parametrize("name", UNSAFE)
def test_unsafe_names_are_refused_everywhere(run, tmp_path, name):
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(DataError):
        safe_name(name)
    with pytest.raises(DataError):
        create_run(tmp_path / "results", name, TEXT, {"a": 1}, ENVIRONMENT)
    with pytest.raises(DataError):
        run.start("0" * 64, name, {})
    with pytest.raises(DataError):
        run.has(name)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", ["a", "quick-start_2.1", "_x", "lsq-W4A4,lr=1e-3+ema"])
def test_safe_names_pass(name):
    assert safe_name(name) == name


def test_links_that_lead_out_are_refused(run, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    record = make_record()
    link = run.path / "trials" / f"{record.key[:8]}-{record.label}"
    link.symlink_to(outside)
    (outside / "result.json").write_text("{}")
    with pytest.raises(DataError, match="leads out"):
        run.save(record)
    assert [path for path, _ in run.records().invalid] == [link / "result.json"]
    digest = run.digest
    shutil.rmtree(run.path)
    run.path.symlink_to(outside)
    with pytest.raises(DataError, match="leads out"):
        create_run(tmp_path / "results", "quick", TEXT, {"a": 1}, ENVIRONMENT)
    assert [p.name for p in outside.iterdir()] == ["result.json"]
    assert digest[:4] in run.path.name
    with pytest.raises(DataError, match="leads out"):
        inside(tmp_path / "results", run.path.name)


def test_output_may_itself_be_a_link(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "results").symlink_to(tmp_path / "disk")
    run = create_run(tmp_path / "results", "quick", TEXT, {}, ENVIRONMENT)
    run.save(make_record())
    assert len(run.records().records) == 1


def test_output_that_is_a_file(tmp_path):
    (tmp_path / "results").write_text("")
    with pytest.raises(DataError, match="cannot make the folder"):
        create_run(tmp_path / "results", "quick", TEXT, {}, ENVIRONMENT)
