from __future__ import annotations

import errno
import json
import os
import subprocess
import sys

import pytest

from qresearch.errors import DataError
from qresearch.results import atomic


def fail(code):
    def raise_it(*args, **kwargs):
        raise OSError(code, os.strerror(code))

    return raise_it


def test_writes_and_replaces(tmp_path):
    path = tmp_path / "a.json"
    for value in ({"b": [1, None, "é"]}, {"b": 2.5}):
        atomic.write_json(path, value)
        assert json.loads(path.read_bytes()) == value
    atomic.write_text(path, "é")
    assert path.read_bytes() == "é".encode()
    assert list(tmp_path.iterdir()) == [path]


def test_new_file_has_the_users_permissions(tmp_path):
    (tmp_path / "plain").write_bytes(b"")
    atomic.write_bytes(tmp_path / "ours", b"")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


# ENOSPC in write and fsync: a full disk. EROFS and EACCES in open: a folder that may not be written.
@pytest.mark.parametrize(
    ("function", "code"),
    [("open", errno.EROFS), ("open", errno.EACCES), ("fsync", errno.ENOSPC), ("replace", errno.EIO)],
)
def test_failure_keeps_the_old_content_and_leaves_no_litter(tmp_path, monkeypatch, function, code):
    path = tmp_path / "result.json"
    atomic.write_text(path, "old")
    with monkeypatch.context() as patch:
        patch.setattr(atomic.os, function, fail(code))
        with pytest.raises(DataError) as caught:
            atomic.write_text(path, "new")
    assert str(path) in str(caught.value)
    assert os.strerror(code) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_interrupt_before_the_rename_keeps_the_old_content(tmp_path, monkeypatch):
    path = tmp_path / "result.json"
    atomic.write_text(path, "old")

    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(atomic.os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        atomic.write_text(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_kill_before_the_rename_keeps_the_old_content(tmp_path):
    path = tmp_path / "result.json"
    atomic.write_text(path, "old")
    program = (
        "import os, sys, pathlib; from qresearch.results import atomic\n"
        "atomic.os.replace = lambda *a: os.kill(os.getpid(), 9)\n"
        "atomic.write_text(pathlib.Path(sys.argv[1]), 'new')"
    )
    killed = subprocess.run([sys.executable, "-c", program, str(path)], cwd=os.getcwd())
    assert killed.returncode == -9
    assert path.read_text() == "old"


def test_a_file_in_place_of_the_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot write .*file"):
        atomic.write_text(tmp_path / "file" / "a", "x")
    with pytest.raises(DataError, match=r"cannot make the folder .*file"):
        atomic.make_folder(tmp_path / "file" / "b")


def test_nan_never_reaches_a_json_file(tmp_path):
    with pytest.raises(ValueError):
        atomic.write_json(tmp_path / "a.json", {"loss": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_folder_that_cannot_be_synced_is_no_failure(tmp_path, monkeypatch):
    real = os.fsync

    def no_folders(descriptor):
        return real(descriptor) if os.path.isfile(f"/dev/fd/{descriptor}") else fail(errno.EINVAL)()

    monkeypatch.setattr(atomic.os, "fsync", no_folders)
    atomic.write_text(tmp_path / "a", "x")
    assert (tmp_path / "a").read_text() == "x"


def test_what_killed_writers_left_is_removed_and_nothing_else(tmp_path):
    kept = [tmp_path / "a.json", tmp_path / "b" / "c.tmp", tmp_path / "b" / ".hidden", tmp_path / ".git" / "x"]
    left = [
        tmp_path / ".a.json.0f.tmp",
        tmp_path / "b" / ".c.1e.tmp",
        tmp_path / "b" / "0.orbax-checkpoint-tmp-1" / "d",
    ]
    for path in kept + left:
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text("x")
    atomic.remove_unfinished(tmp_path)
    assert all(path.exists() for path in kept)
    assert not any(path.exists() for path in left)
    assert not left[-1].parent.exists()


def test_json_lines_round_trip_with_nan_as_null(tmp_path):
    path = tmp_path / "metrics.jsonl"
    rows = [{"step": 0, "loss": 1.5}, {"step": 1, "loss": float("nan"), "nested": {"x": [float("inf")]}}]
    atomic.write_text(path, atomic.render_json_lines(rows))
    assert atomic.read_json_lines(path) == (
        [{"step": 0, "loss": 1.5}, {"step": 1, "loss": None, "nested": {"x": [None]}}],
        0,
    )


def test_json_lines_torn_anywhere_lose_one_row_and_say_so(tmp_path):
    path = tmp_path / "metrics.jsonl"
    whole = atomic.render_json_lines({"step": step, "text": "é"} for step in range(3)).encode()
    start = whole[:-1].rindex(b"\n") + 1
    for end in range(start + 1, len(whole) - 1):
        path.write_bytes(whole[:end])
        assert atomic.read_json_lines(path) == ([{"step": 0, "text": "é"}, {"step": 1, "text": "é"}], 1)
