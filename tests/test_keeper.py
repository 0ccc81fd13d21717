"""Checkpoints of trainings on disks that fail, and of processes that are killed."""

from __future__ import annotations

import errno
import itertools
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from killed_training import KILLED, digest
from number_model import SGD, number_trainer, number_trial
from resume_cases import equal

import qresearch.keeper
from qresearch.keeper import UNFINISHED, Keeper, Point, Writer
from qresearch.training_step import State, Trained


def point(step, size=40):
    """A point with other numbers at every step."""
    rng = np.random.default_rng(step)
    variables = {"params": {"w": jnp.asarray(rng.normal(size=size), jnp.float32)}}
    row = {"epoch": 1, "train_loss": rng.normal(), "validation_loss": 0.1, "validation_score": 1 / 3}
    own = (variables, {"scale": None})
    outcome = Trained(own, own, 1, [row])
    return Point(State(*own, (), jnp.int32(step)), outcome, rng.normal(size=7).astype(np.float32))


def same(one, other):
    assert equal(one.outcome, other.outcome)
    np.testing.assert_array_equal(one.state.variables["params"]["w"], other.state.variables["params"]["w"])
    np.testing.assert_array_equal(one.losses, other.losses)
    return one.step == other.step


def write(keeper, *steps):
    for step in steps:
        keeper.write(point(step))
        keeper.commit(step)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


class Lines(Keeper):
    """A keeper that keeps what it reports."""

    def __init__(self, folder, every, keep):
        self.lines = []
        super().__init__(folder, every, keep, self.lines.append)


@pytest.fixture
def keeper(tmp_path):
    return Lines(tmp_path / "trial", 1, 2)


def test_a_point_comes_back_to_the_last_bit(keeper):
    write(keeper, 3)
    assert same(keeper.newest(point(0)), point(3))


def test_nothing_there_is_no_point_and_no_line(keeper):
    assert keeper.newest(point(0)) is None
    assert keeper.lines == []


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_last_few_are_kept(tmp_path, keep):
    keeper = Keeper(tmp_path, 1, keep, print)
    for step in range(1, 5):
        write(keeper, step)
        assert names(tmp_path) == [f"step-{s:09d}" for s in range(max(step - keep, 0) + 1, step + 1)]


def test_the_new_one_is_whole_before_an_old_one_goes(tmp_path, monkeypatch):
    keeper, seen, real = Keeper(tmp_path, 1, 1, print), [], shutil.rmtree

    def rmtree(path, **options):
        if Path(path).is_dir():
            seen.append((Path(path).name, same(keeper.newest(point(0)), point(2))))
        real(path, **options)

    write(keeper, 1)
    monkeypatch.setattr(shutil, "rmtree", rmtree)
    write(keeper, 2)
    assert seen == [("step-000000001", True)]


def test_remove_leaves_nothing(keeper):
    write(keeper, 1)
    keeper.remove()
    assert not keeper.folder.exists()


# ---- Damage


def files_of(path):
    return sorted(file for file in path.rglob("*") if file.is_file())


def damages(path, how, rng, count):
    """(file, its spoilt content or None where it is deleted), at random places; each file once where it is deleted."""
    files = files_of(path)
    if how == "deleted":
        yield from ((file, None) for file in files)
        return
    filled = [file for file in files if file.stat().st_size]
    for _ in range(count):
        file = filled[rng.integers(len(filled))]
        data = file.read_bytes()
        at = int(rng.integers(len(data)))
        flipped = bytes([data[at] ^ (1 << int(rng.integers(8)))])
        yield file, data[:at] if how == "truncated" else data[:at] + flipped + data[at + 1 :]


@pytest.mark.parametrize("count", [10, pytest.param(200, marks=pytest.mark.slow)])
@pytest.mark.parametrize("how", ["truncated", "flipped", "deleted"])
def test_any_damage_is_found_and_named_and_the_one_before_is_used(keeper, how, count):
    write(keeper, 1, 2)
    newest, found = keeper.folder / "step-000000002", 0
    for file, content in damages(newest, how, np.random.default_rng(0), count):
        whole = file.read_bytes()
        file.unlink() if content is None else file.write_bytes(content)
        keeper.lines.clear()
        assert same(keeper.newest(point(0)), point(1))
        left_out, used = keeper.lines
        assert left_out.startswith(f"checkpoint left out: {newest}: not a complete checkpoint")
        assert file.name in left_out or file.name == "sha256.json"
        assert "\n" not in left_out
        assert used == f"training continues from {keeper.folder / 'step-000000001'}"
        file.write_bytes(whole)
        found += 1
    assert found >= min(count, 6)
    assert same(keeper.newest(point(0)), point(2))


def test_where_all_are_damaged_the_training_begins_again(keeper):
    write(keeper, 1, 2)
    for path in keeper.folder.iterdir():
        (path / "facts.json").unlink()
    assert keeper.newest(point(0)) is None
    assert [line.split(":")[0] for line in keeper.lines] == ["checkpoint left out"] * 2


def test_damaged_ones_do_not_take_the_place_of_whole_ones(keeper):
    write(keeper, 8, 9)
    (keeper.folder / "step-000000009" / "facts.json").unlink()
    assert same(keeper.newest(point(0)), point(8))
    write(keeper, 9)
    assert same(keeper.newest(point(0)), point(9))
    (keeper.folder / "step-000000009" / "facts.json").unlink()
    (keeper.folder / "step-000000008" / "facts.json").unlink()
    write(keeper, 1, 2)
    assert names(keeper.folder) == ["step-000000001", "step-000000002"]


def test_checkpoints_of_another_model_are_left_out(keeper):
    write(keeper, 1)
    assert keeper.newest(point(0, size=41)) is None
    assert "['w'] is float32[40], expected float32[41]" in keeper.lines[0]


# ---- Disks that cannot be written


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of arrays that orbax does not wait for
def test_a_disk_that_refuses_large_files_does_not_end_a_training(tmp_path):
    trainer, lines = number_trainer(SGD), []
    trial = number_trial(v=jnp.asarray(np.random.default_rng(0).normal(size=20_000), jnp.float32))
    (whole,) = trainer.train([trial], 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        (trained,) = trainer.train([trial], 1, keepers=[Keeper(tmp_path, 1, 2, lines.append)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert equal(trained, whole)
    (line,) = lines
    assert re.fullmatch(rf"training goes on without a checkpoint at step \d: .*{tmp_path}.*: File too large", line)
    assert names(tmp_path) == []


def test_a_full_disk_is_said_once_and_again_after_it_was_not(tmp_path, monkeypatch):
    real, lines = qresearch.keeper.save_checkpoint, []
    keeper = Keeper(tmp_path, 1, 2, lines.append)

    def full(path, tree, facts):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with Writer() as writer:
        for step, save in enumerate((real, full, full, real, full), 1):
            monkeypatch.setattr(qresearch.keeper, "save_checkpoint", save)
            writer.submit([(keeper, point(step))])
            writer.wait()
    assert [re.search(r"at step (\d)", line)[1] for line in lines] == ["2", "5"]
    assert all(line.endswith("No space left on device") for line in lines)
    assert names(tmp_path) == ["step-000000001", "step-000000004"]


def test_of_the_points_that_wait_only_the_newest_is_written(tmp_path, monkeypatch):
    real, written = qresearch.keeper.save_checkpoint, []

    def slow(path, tree, facts):
        time.sleep(0.2)
        written.append(int(tree["state"].step))
        real(path, tree, facts)

    monkeypatch.setattr(qresearch.keeper, "save_checkpoint", slow)
    with Writer() as writer:
        writer.submit([(Keeper(tmp_path, 1, 9, print), point(1))])
        time.sleep(0.05)
        for step in range(2, 30):
            writer.submit([(Keeper(tmp_path, 1, 9, print), point(step))])
    assert written == [1, 29]


def test_a_defect_of_the_writing_is_not_hidden(tmp_path, monkeypatch):
    monkeypatch.setattr(qresearch.keeper, "save_checkpoint", lambda *args: 1 / 0)
    trainer = number_trainer(SGD)
    with pytest.raises(ZeroDivisionError):
        list(trainer.train([number_trial()], 1, keepers=[Keeper(tmp_path, 1, 2, print)]))


def test_a_kill_while_writing_leaves_what_was_there(keeper):
    write(keeper, 1, 2)
    keeper.write(point(3))  # and killed before the commit
    assert UNFINISHED in names(keeper.folder)
    assert same(keeper.newest(point(0)), point(2))
    assert len(keeper.lines) == 1
    write(keeper, 3)
    assert names(keeper.folder) == ["step-000000002", "step-000000003"]


# ---- Kills


def start(case, folder):
    command = [sys.executable, str(Path(__file__).with_name("killed_training.py")), case, str(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process):
    """(last line, exit status)."""
    out, error = process.communicate(timeout=300)
    assert process.returncode in (0, -signal.SIGKILL), error
    return "".join(out.splitlines()[-1:]), process.returncode


@pytest.mark.parametrize(("case", "kills"), [("number", 2), pytest.param("qat", 50, marks=pytest.mark.slow)])
def test_random_kills_change_no_bit(case, kills, tmp_path):
    """Each process is killed up to a second after it took its first step; where one ends, another training begins."""
    trainer, trials = KILLED[case]()
    (unbroken,) = trainer.train(trials[:1], 1)
    rng, killed, continued, ends = np.random.default_rng(0), 0, 0, []
    while killed < kills or not ends:
        folder = tmp_path / str(len(ends))
        process = start(case, folder)
        said = list(itertools.takewhile(lambda line: line != "begun\n", process.stdout))
        continued += any(line.startswith("training continues from") for line in said)
        if killed < kills:
            time.sleep(rng.uniform(0.1, 1.0))
            process.send_signal(signal.SIGKILL)
        last, status = finish(process)
        killed += status != 0
        if status == 0:
            ends.append(last)
            shutil.rmtree(folder)
    assert set(ends) == {digest(unbroken)}
    assert continued > kills / 2
