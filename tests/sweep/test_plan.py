"""The cut of a sweep into groups and pieces: every trial in one piece, what belongs together together."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from qresearch.config import expand, from_mapping
from qresearch.sweep.floats import float_key
from qresearch.sweep.plan import float_pieces, groups_of, trial_pieces

SWEEP = {
    "name": "a",
    "flow": "ptq",
    "sweep": {
        "grid": {"seed": [0, 1, 2], "quantize.weight.quantizer": ["lsq", "minmax"]},
        "list": [
            {"flow": "float"},
            {"allocation": {"bits": [3, 5]}},
            {"allocation": {"allocator": "exact", "budget": 4}},
            {"flow": "qat", "allocation": {"bits": [2, 7]}, "qat.learning_rate": 1e-3},
            {"flow": "qat", "allocation": {"bits": [2, 7]}, "qat.learning_rate": 1e-2},
        ],
    },
}
TRIALS = expand(from_mapping(SWEEP))


def test_groups_share_all_that_is_static_and_know_their_widths():
    groups = groups_of(TRIALS)
    assert sum((group.members for group in groups), ()) != ()
    assert sorted(map(repr, (c for group in groups for c in group.members))) == sorted(map(repr, TRIALS))
    assert len(groups) == 2
    for group in groups:
        assert len({config.quantize for config in group.members}) == 1
        assert group.widths == (2, 3, 5, 7)


@given(st.sets(st.integers(0, len(TRIALS) - 1), min_size=1), st.integers(1, 9), st.integers(1, 5), st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_every_trial_is_in_one_piece(chosen, workers, each, together):
    configs = [TRIALS[i] for i in sorted(chosen)]
    groups = groups_of(configs)
    pieces = trial_pieces(groups, workers, each, together)
    found = [config for piece in pieces for config in piece.configs]
    assert len(found) == len(configs)
    assert set(found) == set(configs)
    for piece in pieces:
        assert len({config.quantize for config in piece.configs}) == 1
    for group in groups:
        sizes = [len(piece.configs) for piece in pieces if piece.configs[0] in group.members]
        assert len(sizes) >= min(workers, len(group.members)) or len(group.members) % workers or workers == 1
        assert workers > 1 or len(sizes) == 1


@given(st.sets(st.integers(0, 2)), st.integers(1, 5))
def test_float_models_are_trained_once_and_those_there_are_not(stored, workers):
    pieces = float_pieces(groups_of(TRIALS), lambda config: config.seed in stored, workers)
    keys = [key for piece in pieces for key in map(float_key, piece.configs)]
    assert sorted(keys) == sorted({float_key(config) for config in TRIALS if config.seed not in stored})
    assert len(pieces) <= workers


def test_the_widths_and_pieces_do_not_depend_on_the_order():
    backwards = groups_of(TRIALS[::-1])
    assert {group.widths for group in backwards} == {group.widths for group in groups_of(TRIALS)}
