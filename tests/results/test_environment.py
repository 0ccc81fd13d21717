from __future__ import annotations

import os
import subprocess
import sys

import jax
import pytest
from results_fixtures import make_record

from qresearch.results.environment import _commit, _git, environment


def test_environment_is_what_a_record_wants():
    found = environment()
    make_record(environment=found)
    assert found["versions"]["jax"] == jax.__version__
    assert found["device"]["count"] == len(jax.devices())


def test_nothing_imports_jax_before_it_is_asked_for():
    program = (
        "import sys, qresearch.results, qresearch.report; "
        "assert not {'jax', 'flax', 'matplotlib'} & set(sys.modules), sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=os.getcwd())


def test_without_git_or_a_checkout_the_commit_is_null(tmp_path, monkeypatch):
    assert _commit(tmp_path) == (None, None)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert _git(tmp_path, "status") is None
    assert environment()["commit"] is None


@pytest.mark.parametrize("tracked", [True, False])
def test_commit_counts_only_where_the_code_is_tracked(tmp_path, monkeypatch, tracked):
    # GIT_DIR as a hook sets it: it must not send us to the hook's repository.
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    (tmp_path / "environment.py").write_text("")
    for command in (["init", "-q"], ["add", "."], [*identity, "commit", "-q", "-m", "x", "--allow-empty"]):
        if tracked or command[0] != "add":
            subprocess.run(["git", *command], cwd=tmp_path, check=True)
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "nowhere"))
    commit, dirty = _commit(tmp_path)
    if not tracked:
        assert (commit, dirty) == (None, None)
        return
    assert len(commit) == 40
    assert dirty is False
    (tmp_path / "environment.py").write_text("changed")
    assert _commit(tmp_path) == (commit, True)
