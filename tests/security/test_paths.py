"""No name that a user or a file gives is a path out of the output folder."""

from __future__ import annotations

import dataclasses
import json
import re

import numpy as np
import pytest
from hostile import NAMES, outside, tree
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from results_fixtures import ENVIRONMENT, make_examples, make_record
from small_sweep import ONE, settings, write_small

import qresearch.sweep.job
from qresearch import allocation, sensitivities
from qresearch.cli import main
from qresearch.config import file_label
from qresearch.results import content_hash, create_run, safe_name
from qresearch.results.atomic import render_json
from qresearch.sweep.batches import Batches
from qresearch.sweep.outcome import Outcome
from qresearch.trackers.mirror import mirrors

# Every key whose value is, or might become, part of a file's name; {} stands for the name.
KEYS = {
    "name": "{}",
    "task": "{}",
    "data.name": "{}",
    "model.name": "{}",
    "quantize.weight.quantizer": "{}",
    "quantize.weight.range": "{}",
    "quantize.weight.options": '{{"a": {}}}',
    "ptq": "[{}]",
    "sensitivity.method": "{}",
    "sensitivity.options": '{{"curvature": {}}}',
    "allocation.allocator": "{}",
    "allocation.options": '{{"method": {}}}',
    "allocation.cost": "{}",
    "costs": '[{{"name": {}, "device": "t4"}}]',
    "report.cost": "{}",
    "engine.name": "{}",
    "trackers": "[{}]",
    "sweep.suggest": '{{"name": {}, "trials": 1, "space": {{"seed": [1]}}}}',
}


@pytest.fixture
def around(tmp_path, tmp_path_factory, monkeypatch):
    """A folder with a place deep in it, from which commands are run."""
    place = tmp_path / "a" / "b" / "place"
    place.mkdir(parents=True)
    (tmp_path / "a" / "precious").write_text("mine")
    monkeypatch.chdir(place)
    monkeypatch.setenv("HOME", str(tmp_path / "a"))
    monkeypatch.setenv("MPLCONFIGDIR", str(tmp_path_factory.mktemp("matplotlib")))  # which is in HOME otherwise
    return tmp_path


def stop_before_computing(monkeypatch):
    """Trials fail at once: names become files all the same."""

    def run_bench(bench, configs, floats, until):
        yield from (Outcome(config, np.zeros((len(bench.sketch.layers), 2)), 0.0, failure="none") for config in configs)

    monkeypatch.setattr(Batches, "is_trained", lambda *arguments: True)
    monkeypatch.setattr(qresearch.sweep.job, "obtain_floats", lambda *arguments: {})
    monkeypatch.setattr(qresearch.sweep.job, "run_bench", run_bench)


@pytest.mark.parametrize("key", KEYS)
def test_names_in_a_config_write_nothing_outside_the_output_folder(around, monkeypatch, capsys, key):
    stop_before_computing(monkeypatch)
    config = write_small(around / "a" / "b" / "place")
    before = tree(around)
    statuses = set()
    for name in NAMES:
        value = KEYS[key].format(json.dumps(name))
        statuses.add(main(["sweep", str(config), *settings("output=out", *ONE, f"{key}={value}")]))
        error = capsys.readouterr().err
        assert error.isprintable() or all(line.isprintable() for line in error.splitlines()), name
        assert outside(tree(around), "a/b/place/out") == before, name
    assert statuses <= {2, 3}  # refused, or recorded as the failed trial that it is here
    assert 2 in statuses


@pytest.mark.parametrize("command", ["show", "report", "status", "resume"])
def test_names_of_runs_write_nothing(around, capsys, command):
    run = create_run(around / "a" / "b" / "place" / "out", "small", "", {"a": 1}, ENVIRONMENT)
    run.save(make_record(), make_examples())
    (around / "a" / "b" / "place" / "out" / "link").symlink_to(around / "a")
    before = tree(around)
    for name in [*NAMES, "link", str(around / "a"), "../../precious"]:
        if not name.startswith("-"):  # which is an option, and unknown
            assert main([command, name, "--output", "out"]) == 2, name
            assert len(capsys.readouterr().err.splitlines()) == 1, name
        assert tree(around) == before, name


def forged(record, **fields):
    """The file of a record that ``Record`` would refuse, with the checksum that belongs to it."""
    content = dataclasses.asdict(record) | fields
    return render_json({**content, "sha256": content_hash(content)}).encode()


def test_labels_in_files_are_not_paths(around, capsys):
    """Records with whole checksums, from a run that someone else made."""
    run = create_run(around / "a" / "b" / "place" / "out", "small", "", {"a": 1}, ENVIRONMENT)
    run.save(make_record(seed=1))
    path = run.save(make_record())
    before, lines = outside(tree(around), "a/b/place/out"), []
    for number, name in enumerate(NAMES):
        path.write_bytes(forged(make_record(), label=name))
        for command in ("show", "status", "report") if number % 10 == 0 else ("show", "status"):
            assert main([command, "small", "--output", "out"]) == 0
            assert all(line.isprintable() for line in capsys.readouterr().out.splitlines())
        with mirrors(["tensorboard"], run, lines.append):
            pass
        assert outside(tree(around), "a/b/place/out") == before, name
    assert any("warning: tracker 'tensorboard' is off: DataError: name" in line for line in lines)
    written = [name for name in tree(run.path / "tensorboard") if "/" not in name]
    assert all(re.fullmatch(r"[0-9a-f]{8}-[A-Za-z0-9_][A-Za-z0-9_.+=,-]*", name) for name in written)


def test_texts_of_files_do_nothing_to_a_terminal(around, capsys):
    """A reason may have any characters, and a record that has others in its names is refused."""
    run = create_run(around / "a" / "b" / "place" / "out", "small", "", {"a": 1}, ENVIRONMENT)
    run.save(make_record(seed=1))
    failed = make_record(seed=2, status="failed", reason="\x1b]0;title\x07\nand\r more", metrics={})
    run.save(failed)
    for fields in ({"label": "\x1b[2J"}, {"score_name": "\ud800"}, {"task": "a\nb"}, {"model": "\x00"}):
        record = make_record(seed=3)
        run.save(record).write_bytes(forged(record, **fields))
        for command in ("show", "report"):
            assert main([command, "small", "--output", "out"]) == 0
            out = capsys.readouterr().out
            assert all(line.isprintable() for line in out.splitlines())
        assert (
            f"{next(iter(fields))}: expected a text of printable characters" in (run.path / "report.html").read_text()
        )


@pytest.mark.parametrize("name", ["../../../../up", "/tmp/up", "a/b", "..\\up", "․․/up", "a" * 150, "a b"])
def test_options_that_are_texts_stay_in_the_run(around, monkeypatch, name):
    """No registered method takes any text; one that a user registers may."""

    def anywhere(subject, where="here"):
        return sensitivities.SENSITIVITIES["sqnr"](subject)

    def exact(key, problem, budgets, where="here"):
        return allocation.ALLOCATORS["exact"](key, problem, budgets)

    monkeypatch.setitem(sensitivities.SENSITIVITIES, "anywhere", anywhere)
    monkeypatch.setitem(allocation.ALLOCATORS, "anywhere", exact)
    config = write_small(around / "a" / "b" / "place")
    before = tree(around)
    options = json.dumps({"where": name})
    chosen = f"allocation={{allocator: anywhere, budget: 4, options: {options}}}"
    measured = f"sensitivity={{method: anywhere, examples: 100, joint: 0, options: {options}}}"
    assert main(["sweep", str(config), *settings("output=out", *ONE, chosen, measured)]) == 0
    found = tree(around)
    assert outside(found, "a/b/place/out") == before
    tables = [path for path in found if "/sensitivity/" in path]
    assert len(tables) == 1
    assert tables[0].count("/") == "a/b/place/out/small-0000/sensitivity/x".count("/")
    assert len([path for path in found if path.endswith("/result.json")]) == 1


TEXTS = st.sampled_from(NAMES) | st.text(max_size=200) | st.text("ab/.\\", max_size=150)


@hypothesis_settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(TEXTS, TEXTS)
def test_labels_of_files_are_safe_and_tell_texts_apart(first, second):
    labels = [file_label(text) for text in (first, second)]
    for text, label in zip((first, second), labels):
        assert safe_name(label) == file_label(label) == label
        if re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.+=,-]{0,98}[A-Za-z0-9_+=,-]|[A-Za-z0-9_]", text):
            assert label == text
    assert len({first, second}) == len(set(labels)) or {first, second} & set(labels), "two texts have two labels"
