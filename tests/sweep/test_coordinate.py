"""What the coordinator makes of workers that are lost, with an engine that does as it is told."""

from __future__ import annotations

import json

import pytest
from desk import BEGUN, LOST, SEEDS, TRIALS, Desk, done, finished, pieces, states

from qresearch.config import config_hash
from qresearch.errors import EngineError
from qresearch.sweep.coordinate import Coordinator
from qresearch.sweep.floats import float_key
from qresearch.sweep.plan import Piece, read_piece


def test_all_is_done_with_as_many_at_once_as_there_are_slots(tmp_path):
    desk = Desk(tmp_path, done)
    desk.work([], pieces(TRIALS))
    assert states(desk) == ["done"] * 6
    assert sorted(desk.stored) == sorted(map(config_hash, TRIALS))
    assert desk.engine.most == 2
    assert desk.engine.closed


def test_a_lost_worker_costs_what_it_was_doing(tmp_path):
    attempts = []

    def play(piece):
        attempts.append(len(piece.configs))
        if len(attempts) == 1:
            yield finished(piece.configs[0])
            yield LOST
        else:
            yield from done(piece)

    desk = Desk(tmp_path, play)
    desk.work([], pieces(TRIALS, 6))
    assert attempts == [6, 5]
    assert states(desk) == ["done"] * 6
    assert desk.display.lines == ["warning: the worker was ended by SIGKILL; 5 trials again"]
    assert [desk.rows[config_hash(config)].attempts for config in TRIALS] == [1, 2, 2, 2, 2, 2]


@pytest.mark.parametrize("poison", range(6))
@pytest.mark.parametrize("attempts", [1, 2, 3])
def test_a_trial_that_ends_every_worker_is_found_and_fails_alone(tmp_path, poison, attempts):
    def play(piece):
        yield BEGUN
        if TRIALS[poison] in piece.configs:
            yield LOST
        else:
            yield from done(piece)

    desk = Desk(tmp_path, play, attempts)
    coordinator = desk.work([], pieces(TRIALS, 6))
    assert states(desk) == ["failed" if i == poison else "done" for i in range(6)]
    key = config_hash(TRIALS[poison])
    assert coordinator.failures == desk.failed == {key: f"the worker was ended by SIGKILL ({attempts} times)"}


def test_a_population_that_does_not_fit_is_halved_at_once_and_so_are_the_others(tmp_path):
    sizes = []

    def play(piece):
        sizes.append(len(piece.configs))
        yield BEGUN
        if len(piece.configs) > 1:
            yield "lost", {"reason": "the worker ended with status 1: RESOURCE_EXHAUSTED: Out of memory"}
        else:
            yield from done(piece)

    desk = Desk(tmp_path, play)
    desk.work([], pieces(TRIALS, 3))
    assert states(desk) == ["done"] * 6
    assert sorted(sizes, reverse=True)[:3] == [3, 3, 2]  # two were running when the first was lost
    assert sizes.count(1) == 6
    assert any(line.endswith("from now on 2 trials at a time") for line in desk.display.lines)


def test_workers_that_never_begin_end_the_sweep_with_their_reason(tmp_path):
    def play(piece):
        yield "lost", {"reason": "the worker ended with status 1: ImportError: no jax"}

    desk = Desk(tmp_path, play)
    with pytest.raises(EngineError, match=r"4 workers in a row ended before they could begin: .*ImportError"):
        desk.work([], pieces(TRIALS))
    assert set(states(desk)) == {"todo"}
    assert desk.engine.closed


def test_what_a_user_can_mend_ends_the_sweep(tmp_path):
    def play(piece):
        yield finished(piece.configs[0])
        yield "refused", {"reason": "cannot write x: No space left on device"}

    desk = Desk(tmp_path, play)
    with pytest.raises(EngineError, match=r"^cannot write x: No space left on device$"):
        desk.work([], pieces(TRIALS))
    assert sorted(states(desk)) == ["done"] + ["todo"] * 5


def test_trials_wait_for_their_float_model(tmp_path):
    order = []

    def play(piece):
        order.append((piece.kind, {config.seed for config in piece.configs}))
        if piece.kind == "float":
            desk.trained |= piece.floats
            yield "done", {}
        else:
            yield from done(piece)

    desk = Desk(tmp_path, play)
    desk.work(pieces(SEEDS, 1, "float"), pieces(SEEDS, 1))
    for seed in range(3):
        assert order.index(("float", {seed})) < order.index(("trials", {seed}))
    assert {row.state for row in desk.rows.values()} == {"done"}


@pytest.mark.parametrize("how", ["told", "lost"])
def test_trials_fail_with_their_float_model(tmp_path, how):
    bad = float_key(SEEDS[1])

    def play(piece):
        yield BEGUN
        if piece.kind == "trials":
            yield from done(piece)
        elif how == "lost" and bad in piece.floats:
            yield LOST
        else:
            desk.trained |= piece.floats - {bad}
            yield {"floats_failed": {bad: "the loss became nan"} if bad in piece.floats else {}}
            yield "done", {}

    desk = Desk(tmp_path, play)
    coordinator = desk.work(pieces(SEEDS, 3, "float"), pieces(SEEDS, 3))
    assert [desk.rows[config_hash(c)].state for c in SEEDS] == ["done", "failed", "done"]
    (reason,) = coordinator.failures.values()
    assert "the loss became nan" in reason or "float training: the worker was ended by SIGKILL" in reason


def test_a_worker_that_leaves_trials_out_is_asked_again(tmp_path):
    def play(piece):
        yield finished(piece.configs[-1])
        yield "done", {}

    desk = Desk(tmp_path, play)
    desk.work([], pieces(TRIALS, 6))
    assert states(desk) == ["done"] * 6
    assert len(desk.stored) == 6


def test_what_a_lost_worker_says_late_counts_once(tmp_path):
    def play(piece):
        yield LOST
        yield from map(finished, piece.configs)
        yield "done", {}

    desk = Desk(tmp_path, play)
    desk.work([], pieces(TRIALS, 6))
    assert states(desk) == ["done"] * 6
    assert len(desk.stored) == 6


def test_a_piece_as_text_and_back(tmp_path):
    piece = Piece("trials", TRIALS, (2, 3), 4)
    text = piece.text(tmp_path)
    assert "\n" not in text
    json.loads(text)
    assert read_piece(text) == (tmp_path, piece)


@pytest.mark.parametrize("silent", [False, True])
def test_workers_that_had_begun_may_all_be_lost_at_once(tmp_path, silent):
    """A node is taken away: every worker is lost, and none of them at its start."""
    losses = []

    def play(piece):
        if len(losses) < 5 and not silent:
            yield BEGUN
        if len(losses) < 5:
            losses.append(piece)
            yield LOST
        else:
            yield from done(piece)

    desk = Desk(tmp_path, play, attempts=4)
    if silent:
        with pytest.raises(EngineError, match="5 workers in a row ended before they could begin"):
            desk.work([], pieces(TRIALS, 1))
    else:
        desk.work([], pieces(TRIALS, 1))
        assert states(desk) == ["done"] * 6


def test_losses_with_successes_between_them_are_no_reason_to_end(tmp_path):
    seen = set()

    def play(piece):
        if piece not in seen:
            seen.add(piece)
            yield LOST
        else:
            yield finished(piece.configs[0])
            yield "done", {}

    desk = Desk(tmp_path, play, attempts=2)
    desk.work([], pieces(TRIALS, 1))
    assert states(desk) == ["done"] * 6


def test_a_trial_that_is_run_again_and_well_has_not_failed(tmp_path):
    def play(piece):
        for config in piece.configs:
            yield {"trial": config_hash(config), "failure": None if attempts else "the loss became nan"}
        yield "done", {}

    attempts = []
    desk = Desk(tmp_path, play)

    class Twice(Coordinator):
        def work(self, floats, trials):
            super().work(floats, trials)
            attempts.append(1)
            super().work(floats, trials)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("desk.Coordinator", Twice)
        coordinator = desk.work([], pieces(TRIALS, 6))
    assert coordinator.failures == {}
    assert states(desk) == ["done"] * 6
