"""What holds for every suggester: its space, its seed, and that doing a search again proposes the same again."""

from __future__ import annotations

import json
import math
import statistics
import sys

import pytest

from qresearch.config import Domain
from qresearch.errors import ConfigError
from qresearch.suggesters import SUGGESTERS, propose

SPACE = {
    "qat.learning_rate": Domain("log", (1e-4, 1e-1)),
    "allocation.bits": Domain("choice", ([2, 2], [4, 4], None)),
    "qat.weight_decay": Domain("uniform", (0.0, 0.1)),
    "qat.epochs": Domain("int", (1, 5)),
}
# Every registered suggester, and the choices that it has.
CASES = {
    **{name: (make, {}) for name, make in SUGGESTERS.items()},
    "optuna nsga2": (SUGGESTERS["optuna"], {"sampler": "nsga2", "population": 4}),
}
# Their proposals do not depend on scores.
WITHOUT_MEMORY = {"random"}


def score(settings):
    """Largest at 1e-2, W4A4, no decay and 4 epochs; None where a trial fails."""
    if settings["allocation.bits"] is None and settings["qat.epochs"] == 1:
        return None
    decades = abs(math.log10(settings["qat.learning_rate"]) + 2)
    bits = settings["allocation.bits"] == [4, 4]
    return bits - decades - 5 * settings["qat.weight_decay"] - abs(settings["qat.epochs"] - 4) / 4


def scores(batch):
    return [score(settings) for settings in batch]


def proposals(case, trials=40, batch=8, seed=0, scores_of=scores, space=SPACE):
    make, options = CASES[case]
    return propose(make(space, seed, **options), trials, batch, scores_of)


@pytest.mark.parametrize("case", CASES)
def test_proposals_are_in_the_space_and_cover_it(case):
    found = proposals(case, trials=60)
    assert len(found) == 60
    for settings in found:
        assert settings.keys() == SPACE.keys()
        assert 1e-4 <= settings["qat.learning_rate"] <= 1e-1
        assert settings["allocation.bits"] in ([2, 2], [4, 4], None)
        assert 0 <= settings["qat.weight_decay"] <= 0.1
        assert type(settings["qat.epochs"]) is int
        for key in ("qat.learning_rate", "qat.weight_decay"):
            assert settings[key] == float(f"{settings[key]:.6g}"), "people read configs"
    assert {settings["qat.epochs"] for settings in found} == {1, 2, 3, 4, 5}
    assert len({json.dumps(settings["allocation.bits"]) for settings in found}) == 3
    assert min(settings["qat.learning_rate"] for settings in found) < 1e-3


@pytest.mark.parametrize("case", CASES)
def test_the_seed_decides_and_the_order_of_keys_does_not(case):
    assert proposals(case) == proposals(case)
    assert proposals(case) != proposals(case, seed=1)
    assert proposals(case) == proposals(case, space=dict(reversed(SPACE.items())))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("stopped", range(5))
def test_a_search_that_was_stopped_proposes_the_same_again(case, stopped):
    """It is killed while its batch number ``stopped`` runs, after some of its trials, and then done again."""
    whole, stored, batches = proposals(case), {}, []

    def until_killed(batch):
        batches.append(batch)
        for settings in batch[: None if len(batches) <= stopped else 3]:
            stored[json.dumps(settings)] = score(settings)
        if len(batches) > stopped:
            raise KeyboardInterrupt
        return scores(batch)

    with pytest.raises(KeyboardInterrupt):
        proposals(case, scores_of=until_killed)
    ran = []

    def again(batch):
        for settings in batch:
            if json.dumps(settings) not in stored:
                ran.append(settings)
                stored[json.dumps(settings)] = score(settings)
        return [stored[json.dumps(settings)] for settings in batch]

    assert proposals(case, scores_of=again) == whole
    assert len(ran) <= 40 - 8 * stopped - 3, "what was stored is not run again"


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("fewer", [1, 7, 8, 19, 39])
def test_more_trials_begin_with_the_same(case, fewer):
    """Also where fewer trials ended within a batch: its rest is proposed before it is told."""
    assert proposals(case)[:fewer] == proposals(case, trials=fewer)


@pytest.mark.parametrize("case", sorted(CASES.keys() - WITHOUT_MEMORY))
def test_scores_change_what_is_proposed_next(case):
    first, second = proposals(case), proposals(case, scores_of=lambda batch: [-1.0 for _ in batch])
    assert first[:8] == second[:8]
    assert first != second


def test_a_suggester_that_learns_finds_more_than_chance():
    """The mean of the best over 20 seeds; the same 40 trials for each."""
    best = {
        case: statistics.mean(
            max(s for settings in proposals(case, seed=seed) if (s := score(settings)) is not None)
            for seed in range(20)
        )
        for case in ("random", "optuna")
    }
    assert best["optuna"] > best["random"]


@pytest.mark.parametrize("case", CASES)
def test_a_search_of_which_every_trial_fails_ends(case):
    assert len(proposals(case, trials=12, scores_of=lambda batch: [None] * len(batch))) == 12


@pytest.mark.parametrize("case", CASES)
def test_equal_proposals_are_told_apart(case):
    """A space of one point proposes it every time, and every time takes its score."""
    found = proposals(case, space={"task": Domain("choice", ("a",))}, scores_of=lambda batch: [0.5] * len(batch))
    assert found == [{"task": "a"}] * 40


def test_a_package_that_is_missing_is_one_line_that_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ConfigError, match=r"optuna cannot be imported \(.*\); pip install 'qresearch\[optuna\]'$"):
        SUGGESTERS["optuna"](SPACE, 0)


def test_what_the_samplers_do_not_take_is_one_line():
    with pytest.raises(ConfigError, match=r"'population' of suggester 'optuna' is at least 2, got 1$"):
        SUGGESTERS["optuna"](SPACE, 0, sampler="nsga2", population=1)
    with pytest.raises(ConfigError, match=r"suggester 'optuna' has no sampler 'tpes'; did you mean 'tpe'\?$"):
        SUGGESTERS["optuna"](SPACE, 0, sampler="tpes")
