"""One process at a time writes a run."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from qresearch.errors import DataError
from qresearch.results.lock import holder_of, locked

HOLD = """
import sys
from pathlib import Path
from qresearch.results.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def other(tmp_path):
    """Another process that holds the lock until it is told to stop."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdin.close()
    process.stdout.close()


def test_a_second_process_is_refused_by_name(other, tmp_path):
    assert f"process {other.pid} on " in holder_of(tmp_path)
    words = rf"process {other.pid} on .* \(since .*\) is writing this run; wait for it"
    with pytest.raises(DataError, match=words), locked(tmp_path):
        raise AssertionError
    told = json.loads((tmp_path / "lock").read_text())  # what is refused leaves the holder's words
    assert told["pid"] == other.pid


@pytest.mark.parametrize("end", ["kill", "close"])
def test_a_process_that_ends_leaves_no_lock(other, tmp_path, end):
    if end == "kill":
        other.kill()
    else:
        other.stdin.close()
    other.wait()
    assert holder_of(tmp_path) is None
    with locked(tmp_path):
        assert f"process {os.getpid()} " in holder_of(tmp_path)
    assert holder_of(tmp_path) is None


def test_a_failure_inside_releases_it(tmp_path):
    with pytest.raises(ValueError, match="broken"), locked(tmp_path):
        raise ValueError("broken")
    with locked(tmp_path):
        pass


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'{"pid": 1}', b"\xff"])
def test_a_spoilt_file_is_no_obstacle(tmp_path, content, other):
    (tmp_path / "lock").write_bytes(content)  # the same file: the lock is the system's
    assert holder_of(tmp_path) == "another process"
    with pytest.raises(DataError, match="another process is writing this run"), locked(tmp_path):
        raise AssertionError


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(DataError, match=r"cannot write .*missing/lock: No such file"), locked(tmp_path / "missing"):
        raise AssertionError
