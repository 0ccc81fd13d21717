"""Two runs against each other: what matches, by how much it differs, and what cannot be said."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from results_fixtures import ENVIRONMENT, make_examples, make_record

from qresearch.cli import main
from qresearch.errors import DataError
from qresearch.report import paired_difference
from qresearch.report.compare_runs import compare_runs, comparison_png, comparison_text, write_comparison
from qresearch.results.run_folder import create_run

GAIN = 0.2


def run_of(folder, name, shift=0.0, seeds=range(3), epochs=1):
    """Uniform W4A4 and W8A8, the latter better by ``shift`` than in a run without one."""
    run = create_run(folder, name, "", {"name": name}, ENVIRONMENT)
    for seed in seeds:
        for bits, score in ((4, 0.5), (8, 0.6 + shift)):
            config = {"qat": {"epochs": epochs}, "bits": bits, "seed": seed}
            run.save(make_record(seed=seed, bits=bits, score=score, config=config), examples_of(score, seed))
    return run


def examples_of(score, seed):
    """400 scores of 0 and 1 with this mean, in an order of the seed: as those of the same seed in another run."""
    ranks = np.random.default_rng(seed).permutation(400) / 400
    return {"score": (ranks < score).astype(np.float32), "loss": np.ones(400, np.float32)}


def rows_of(path):
    with path.open() as stream:
        return list(csv.DictReader(stream))


def test_matching_trials_differ_by_what_was_put_in(tmp_path):
    a, b = run_of(tmp_path, "a"), run_of(tmp_path, "b", GAIN, epochs=2)
    found = compare_runs(a, b)
    same, better = (match.paired for match in found.matches)
    assert (same.difference.mean, same.difference.low, same.difference.high) == (0, 0, 0)
    assert better.difference.mean == pytest.approx(GAIN)
    assert 0 < better.difference.low < GAIN < better.difference.high
    assert (better.b, better.a, better.seeds) == pytest.approx((0.6, 0.8, 3))
    rows = [np.stack([examples_of(score, seed)["score"] for seed in range(3)]) for score in (0.8, 0.6)]
    assert better.difference == paired_difference(*rows)
    text = comparison_text(found)
    assert "2 points in both" in text
    assert "their configs differ in qat.epochs: 1 → 2" in text
    assert "yes, B is better" in text
    swapped = compare_runs(b, a).matches[1].paired.difference
    assert swapped.mean == pytest.approx(-GAIN)
    assert "yes, B is worse" in comparison_text(compare_runs(b, a))


def test_only_common_seeds_are_paired_and_the_rest_is_named(tmp_path):
    a, b = run_of(tmp_path, "a"), run_of(tmp_path, "b", seeds=(1, 2, 5))
    b.save(make_record(bits=3, config={"bits": 3, "seed": 0}))
    found = compare_runs(a, b)
    assert [match.paired.seeds for match in found.matches] == [2, 2]
    assert (found.only_a, found.only_b) == ((), ("qat lsq uniform W3A3",))
    assert "1 only in B: qat lsq uniform W3A3" in comparison_text(found)
    apart = compare_runs(a, run_of(tmp_path, "c", seeds=(7,)))
    assert "unknown: no seed in both" in comparison_text(apart)
    assert rows_of(write_comparison(apart, tmp_path)[0])[0]["score_a"] == ""


def test_several_trials_of_one_name_match_by_what_tells_them_apart(tmp_path):
    runs = [create_run(tmp_path, name, "", {"name": name}, ENVIRONMENT) for name in ("a", "b")]
    for run in runs:
        for rate in (0.1, 0.2):
            run.save(make_record(score=rate, config={"rate": rate, "seed": 0}), make_examples())
    runs[1].save(make_record(score=0.3, config={"rate": 0.3, "seed": 0}), make_examples())
    found = compare_runs(*runs)
    assert sorted(match.paired[:2] for match in found.matches) == [(0.1, 0.1), (0.2, 0.2)]
    assert found.only_b == ("qat lsq uniform W4A4 rate=0.3",)


def test_what_cannot_be_known_is_said(tmp_path):
    a = run_of(tmp_path, "a")
    b = create_run(tmp_path, "b", "", {"name": "b"}, ENVIRONMENT)
    for seed in range(3):
        b.save(make_record(seed=seed, score=0.7, config={"bits": 4, "seed": seed}))
    (match,) = compare_runs(a, b).matches
    assert match.paired.difference is None
    assert "unknown: not every trial kept its per-example scores" in comparison_text(compare_runs(a, b))
    assert comparison_png(compare_runs(a, b)).startswith(b"\x89PNG")
    fewer = create_run(tmp_path, "fewer", "", {"name": "fewer"}, ENVIRONMENT)
    fewer.save(make_record(score=0.7, config={"bits": 4, "seed": 0}), make_examples(examples=10))
    assert "unknown: tested on other numbers of examples" in comparison_text(compare_runs(a, fewer))


def test_runs_without_a_common_trial_are_a_clear_error(tmp_path):
    a = run_of(tmp_path, "a")
    b = create_run(tmp_path, "b", "", {"name": "b"}, ENVIRONMENT)
    b.save(make_record(model="mlp"))
    with pytest.raises(DataError, match="nothing to compare, of 2 and 1 points none is in both"):
        compare_runs(a, b)


def test_the_command_prints_and_draws(tmp_path, capsys):
    a, b = run_of(tmp_path, "a"), run_of(tmp_path, "b", GAIN)
    assert main(["compare", a.path.name, str(b.path), "--output", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    paths = [b.path / f"compare-{a.path.name}.{ending}" for ending in ("csv", "png")]
    assert lines[-2:] == [str(path) for path in paths]
    rows = rows_of(paths[0])
    assert [float(row["difference"]) for row in rows] == pytest.approx([0, GAIN])
    assert float(rows[1]["low"]) > 0
    assert paths[1].read_bytes() == comparison_png(compare_runs(a, b))
    assert paths[1].read_bytes() != comparison_png(compare_runs(b, a))
