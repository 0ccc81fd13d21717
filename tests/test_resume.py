"""A training that was stopped anywhere goes on to the same bits."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest
from number_model import SGD, number_trainer, number_trial
from resume_cases import CASES, EPOCHS, STEPS, TOTAL, equal

import qresearch.training
from qresearch.keeper import Keeper


class Stopped(BaseException):
    """What stops a training in these tests, as an interrupt does."""


@pytest.fixture
def stopped(monkeypatch):
    """stopped(after, trainer, ...) -> (outcomes, steps taken) of ``trainer.train(...)``, which is stopped in the step
    that follows ``after`` (None: in none, or it has no outcomes).
    """
    real = qresearch.training.wait

    def run(after, trainer, *arguments, **keywords):
        taken = []

        def wait(losses):
            if len(taken) == after:
                raise Stopped
            taken.append(1)
            real(losses)

        monkeypatch.setattr(qresearch.training, "wait", wait)
        try:
            return list(trainer.train(*arguments, **keywords)), len(taken)
        except Stopped:
            return None, len(taken)
        finally:
            monkeypatch.undo()

    return run


@functools.cache
def unbroken(case, count=1):
    trainer, trials = CASES[case]()
    return list(trainer.train(trials[:count], count))


def keepers(folder, count=1, every=1, keep=2, lines=None):
    report = [].append if lines is None else lines.append
    return [Keeper(folder / str(i), every, keep, report) for i in range(count)]


PLACES = [1, STEPS, *np.random.default_rng(0).choice(np.arange(2, TOTAL), 3, replace=False).tolist(), TOTAL - 1]


@pytest.mark.parametrize("case", CASES)
def test_a_stop_after_any_step_changes_no_bit(case, tmp_path, stopped):
    trainer, trials = CASES[case]()
    for after in PLACES:
        kept = keepers(tmp_path / str(after))
        assert stopped(after, trainer, trials[:1], 1, keepers=kept) == (None, after)
        assert kept[0].folder.joinpath(f"step-{after:09d}").is_dir()
        ended, steps = stopped(None, trainer, trials[:1], 1, keepers=kept)
        assert steps == TOTAL - after
        assert equal(ended[0], unbroken(case)[0])


@pytest.mark.parametrize("case", CASES)
def test_checkpoints_themselves_change_no_bit(case, tmp_path):
    trainer, trials = CASES[case]()
    for every in (1, 4):
        (trained,) = trainer.train(trials[:1], 1, keepers=keepers(tmp_path / str(every), every=every))
        assert equal(trained, unbroken(case)[0])


def test_several_stops_in_one_training(tmp_path, stopped):
    trainer, trials = CASES["qat"]()
    kept, left = keepers(tmp_path, every=2), TOTAL
    for after in (5, 3, 4):  # 5 steps, of which 4 are kept, then 3 ...
        assert stopped(after, trainer, trials[:1], 1, keepers=kept) == (None, after)
        left -= after // 2 * 2
    ended, steps = stopped(None, trainer, trials[:1], 1, keepers=kept)
    assert steps == left
    assert equal(ended[0], unbroken("qat")[0])


@pytest.mark.parametrize("case", CASES)
def test_members_of_one_program_each_have_their_own(case, tmp_path, stopped):
    trainer, trials = CASES[case]()
    kept = keepers(tmp_path, 3)
    assert stopped(8, trainer, trials, 3, keepers=kept) == (None, 8)
    ended, steps = stopped(None, trainer, trials, 3, keepers=kept)
    assert steps == TOTAL - 8
    assert all(equal(*pair) for pair in zip(ended, unbroken(case, 3), strict=True))


def test_members_at_different_steps_do_not_share_a_program(tmp_path, stopped):
    trainer, trials = CASES["float"]()
    kept = keepers(tmp_path, 3)
    stopped(8, trainer, trials, 3, keepers=kept)
    kept[1].remove()
    ended, steps = stopped(None, trainer, trials, 3, keepers=kept)
    assert steps == TOTAL - 8 + TOTAL
    assert equal(ended[1], next(trainer.train(trials[1:2], 1)))
    for member in (0, 2):  # two in one program, no longer three: equal up to rounding
        losses = [row["train_loss"] for row in ended[member].history]
        expected = [row["train_loss"] for row in unbroken("float", 3)[member].history]
        np.testing.assert_allclose(losses, expected, rtol=1e-3)


def test_a_member_that_failed_stays_failed(tmp_path, stopped):
    trainer = number_trainer(SGD)
    trials = [number_trial(learning_rate=rate) for rate in (1.0, 3e38)]
    whole = list(trainer.train(trials, 2))
    assert whole[1].failure is not None
    kept = keepers(tmp_path, 2)
    assert stopped(4, trainer, trials, 2, keepers=kept)[1] == 4
    ended, steps = stopped(None, trainer, trials, 2, keepers=kept)
    assert steps == 2
    assert [outcome.failure for outcome in ended] == [outcome.failure for outcome in whole]
    assert all(equal(*pair) for pair in zip(ended, whole, strict=True))


# ---- Stops that were asked for


@pytest.mark.parametrize("chunk", [1, 3])
@pytest.mark.parametrize("case", CASES)
def test_until_leaves_off_after_an_epoch_and_goes_on_to_the_same_bits(case, chunk, tmp_path, stopped):
    trainer, trials = CASES[case]()
    kept = keepers(tmp_path, chunk, every=None)
    for epoch in (1, 1, 2):
        part = list(trainer.train(trials[:chunk], chunk, keepers=kept, until=epoch))
        assert [outcome.finished for outcome in part] == [False] * chunk
        for outcome, whole in zip(part, unbroken(case, chunk), strict=True):
            assert outcome.history == whole.history[:epoch]
    for until in (None, EPOCHS, EPOCHS + 1):  # the schedule was that of the whole training all along
        ended, steps = stopped(None, trainer, trials[:chunk], chunk, keepers=kept, until=until)
        assert steps == STEPS
        assert all(equal(*pair) for pair in zip(ended, unbroken(case, chunk), strict=True))


def test_past_the_epoch_that_is_asked_for_nothing_is_trained(tmp_path, stopped):
    trainer, trials = CASES["float"]()
    kept = keepers(tmp_path)
    stopped(2 * STEPS + 1, trainer, trials[:1], 1, keepers=kept)
    ended, steps = stopped(None, trainer, trials[:1], 1, keepers=kept, until=1)
    assert steps == 0
    assert not ended[0].finished
    assert ended[0].history == unbroken("float")[0].history[:2]


def test_rows_are_told_once(tmp_path, stopped):
    trainer, trials = CASES["float"]()
    kept, told = keepers(tmp_path), []
    for after in (STEPS + 2, None):
        stopped(after, trainer, trials[:1], 1, lambda i, row: told.append(row["epoch"]), kept)
    assert told == [1, 2, 3]


def test_no_program_is_compiled_for_a_restart(tmp_path, stopped):
    from small_sweep import compilations

    trainer, trials = CASES["qat"]()
    kept = keepers(tmp_path)
    unbroken("qat")
    stopped(8, trainer, trials[:1], 1, keepers=kept)
    with compilations() as compiled:
        stopped(None, trainer, trials[:1], 1, keepers=kept)
    assert compiled.count("jit(step)") == 0


def test_a_line_says_where_a_training_goes_on(tmp_path, stopped):
    trainer, trials = CASES["float"]()
    lines = []
    kept = keepers(tmp_path, lines=lines)
    stopped(4, trainer, trials[:1], 1, keepers=kept)
    assert lines == []
    list(trainer.train(trials[:1], 1, keepers=kept))
    assert lines == [f"training continues from {tmp_path / '0' / 'step-000000004'}"]
    assert jax.tree.leaves(trials[0].variables)  # the trial itself is as it was
