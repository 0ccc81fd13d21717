from __future__ import annotations

import pytest
from results_fixtures import ENVIRONMENT, make_record

from qresearch.errors import DataError
from qresearch.results.listing import find_run, list_runs
from qresearch.results.run_folder import create_run


def make_run(output, name, **resolved):
    return create_run(output, name, "", resolved, ENVIRONMENT)


def test_rows_count_and_choose_on_validation(tmp_path):
    run = make_run(tmp_path, "quick")
    run.save(make_record(seed=0, score=0.8, validation=0.9))
    run.save(make_record(seed=1, score=0.99, validation=0.7))
    run.save(make_record(flow="float", score=0.95))
    run.save(make_record(seed=2, status="failed", reason="loss became NaN"))
    run.save(make_record(seed=3)).write_text("{")
    (row,) = list_runs(tmp_path)
    assert (row.name, row.done, row.failed, row.invalid) == (run.path.name, 3, 1, 1)
    assert (row.best_score, row.score_name, row.problem) == (0.8, "accuracy", None)
    assert row.created == run.created


def test_other_folders_and_damaged_runs(tmp_path):
    assert list_runs(tmp_path / "absent") == ()
    (tmp_path / "notes").mkdir()
    (tmp_path / "file").write_text("")
    run = make_run(tmp_path, "quick")
    (run.path / "resolved.json").write_text("{")
    (row,) = list_runs(tmp_path)
    assert "resolved.json" in row.problem
    assert (row.done, row.best_score) == (0, None)
    with pytest.raises(DataError, match="cannot list"):
        list_runs(tmp_path / "file")


def test_find_by_name_prefix_and_path(tmp_path):
    quick, other = make_run(tmp_path, "quick"), make_run(tmp_path, "other")
    for name in (quick.path.name, "quick", "q", str(quick.path)):
        assert find_run(tmp_path, name) == quick
    assert find_run(tmp_path / "elsewhere", str(other.path)) == other


def test_exact_name_wins_over_longer_ones(tmp_path):
    quick = make_run(tmp_path, "quick")
    make_run(tmp_path, quick.path.name)
    assert find_run(tmp_path, quick.path.name) == quick


@pytest.mark.parametrize("name", ["quikc", "..", "../x", "/", "", "a\0b", "x" * 5000])
def test_unknown_names_get_suggestions(tmp_path, name):
    run = make_run(tmp_path, "quick")
    with pytest.raises(DataError, match="no run .*" + run.path.name):
        find_run(tmp_path, name)
    with pytest.raises(DataError, match="holds no runs"):
        find_run(tmp_path / "absent", name)


def test_ambiguous_prefix_lists_the_runs(tmp_path):
    names = {make_run(tmp_path, "quick", a=a).path.name for a in range(2)}
    with pytest.raises(DataError, match="2 runs") as caught:
        find_run(tmp_path, "quick")
    assert all(name in str(caught.value) for name in names)


def test_links_out_of_the_output_folder_are_not_runs_of_it(tmp_path):
    run = make_run(tmp_path / "elsewhere", "quick")
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "link").symlink_to(run.path)
    with pytest.raises(DataError, match="leads out"):
        find_run(tmp_path / "results", "link")
    assert "leads out" in list_runs(tmp_path / "results")[0].problem
