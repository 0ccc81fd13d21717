from __future__ import annotations

import numpy as np
import pytest
from results_fixtures import make_record

from qresearch.errors import DataError
from qresearch.report import compare
from qresearch.report.compare import mixed_versus_uniform, paired_difference


def simulate(rng, *, seeds, examples=200, difference=0.0, seed_effect=0.0):
    """Two groups of paired scores whose examples are of very different difficulty, as test images are."""
    difficulty = rng.normal(0, 3, size=(1, examples))
    shared = difficulty + rng.normal(0, 0.5, size=(seeds, examples))
    effect = rng.normal(0, seed_effect, size=(seeds, 1)) + rng.normal(0, 0.3, size=(1, examples))
    return shared + difference + effect + rng.normal(0, 0.5, size=(seeds, examples)), shared


def coverage(trials=400, difference=0.1, **settings):
    rng = np.random.default_rng(0)
    covered, excludes_zero = 0, 0
    for trial in range(trials):
        a, b = simulate(rng, difference=difference, **settings)
        found = paired_difference(a, b, seed=trial, resamples=300)
        covered += found.low <= difference <= found.high
        excludes_zero += found.low > 0 or found.high < 0
    return covered / trials, excludes_zero / trials


# 400 trials: one standard error of a coverage of 0.95 is 0.011. The interval is conservative where seeds differ little.
@pytest.mark.parametrize("seeds", [3, 5, 10])
@pytest.mark.parametrize("seed_effect", [0.0, 0.03, 0.1])
def test_interval_covers_a_known_difference(seeds, seed_effect):
    covered, _ = coverage(seeds=seeds, seed_effect=seed_effect)
    assert 0.915 <= covered <= 0.995


def test_no_difference_is_rarely_called_real_and_a_large_one_always():
    assert coverage(seeds=5, seed_effect=0.05, difference=0.0)[1] <= 0.085
    assert coverage(seeds=5, seed_effect=0.05, difference=0.5, trials=50)[1] == 1


def test_binary_scores_are_covered_too():
    rng = np.random.default_rng(1)
    covered = 0
    for trial in range(300):
        p = rng.beta(2, 0.5, size=400)  # mean 0.8
        a, b = (rng.random((3, 400)) < q for q in (np.minimum(p + 0.05 * (1 - p), 1), p))
        found = paired_difference(a, b, seed=trial, resamples=300)
        covered += found.low <= 0.05 * 0.2 <= found.high
    assert covered / 300 >= 0.92


def test_ignoring_the_pairs_or_the_seeds_would_fail_the_same_test():
    """The negative control: with strong seed effects, an interval from examples alone covers far too rarely."""
    rng, covered = np.random.default_rng(0), 0
    for trial in range(200):
        a, b = simulate(rng, seeds=3, difference=0.1, seed_effect=0.1)
        found = paired_difference(a.mean(0, keepdims=True), b.mean(0, keepdims=True), seed=trial, resamples=300)
        covered += found.low <= 0.1 <= found.high
    assert covered / 200 < 0.8
    a, b = simulate(np.random.default_rng(0), seeds=3)
    paired, shuffled = paired_difference(a, b), paired_difference(a, np.random.default_rng(1).permuted(b, axis=1))
    assert paired.high - paired.low < 0.5 * (shuffled.high - shuffled.low)


def test_properties():
    a, b = simulate(np.random.default_rng(0), seeds=3, difference=0.2)
    found = paired_difference(a, b)
    assert found == paired_difference(a, b)
    assert found.mean == pytest.approx((a - b).mean())
    assert found.low < found.mean < found.high
    mirrored = paired_difference(b, a)
    # Other draws are mirrored, so the ends agree only as well as 2000 resamples tell them.
    assert (mirrored.low, mirrored.high) == pytest.approx((-found.high, -found.low), abs=0.1 * (found.high - found.low))
    assert paired_difference(a + 7, b + 7)[:3] == pytest.approx(found[:3])
    assert paired_difference(a + 1000, b).share_above_zero == 1
    assert paired_difference(a, a) == (0, 0, 0, 0)


def test_memory_is_bounded(monkeypatch):
    monkeypatch.setattr(compare, "_CHUNK", 1000)
    a, b = simulate(np.random.default_rng(0), seeds=3)
    small = paired_difference(a, b, resamples=1003)
    monkeypatch.undo()
    assert small == paired_difference(a, b, resamples=1003)


@pytest.mark.parametrize("shapes", [((3,), (3,)), ((2, 3), (3, 3)), ((0, 3), (0, 3))])
def test_unpaired_scores_are_refused(shapes):
    with pytest.raises(DataError, match=r"expected two \[seed, example\]"):
        paired_difference(np.zeros(shapes[0]), np.zeros(shapes[1]))


def sweep(seeds=3, gain=0.0, **mixed):
    """Uniform and mixed trials with per-example scores; mixed is right on a further ``gain`` of the examples."""
    rng = np.random.default_rng(0)
    base = rng.random(1000)
    uniform = [make_record(seed=seed, bits=4) for seed in range(seeds)]
    known = {"allocator": "exact", "budget": 4.0, "bits": 3.98}
    others = [make_record(seed=seed, **{**known, **mixed}) for seed in range(seeds)]
    examples = {}
    for record, level in [(r, 0.8) for r in uniform] + [(r, 0.8 + gain) for r in others]:
        examples[record.key] = (base + rng.normal(0, 0.02, 1000) < level).astype(np.float32)
    return uniform + others, examples


@pytest.mark.parametrize(("gain", "word"), [(0.1, "better"), (-0.1, "worse"), (0.0, "no, ")])
def test_verdict(gain, word):
    records, examples = sweep(gain=gain)
    (row,) = mixed_versus_uniform(records, examples)
    assert word in row.real
    assert (row.average_bits, row.mixed_average_bits, row.seeds) == (4, 3.98, 3)
    assert (row.uniform, row.mixed) == ("qat lsq uniform W4A4", "qat lsq exact average_bits 4")


@pytest.mark.parametrize(
    ("mixed", "rows"),
    [
        ({"budget": 4.04}, 1),
        ({"budget": 3.96}, 1),
        ({"budget": 4.06}, 0),
        ({"budget": 3.94}, 0),
        ({"bits": 4.0}, 1),
        ({"bits": 4.01}, 0),  # uses more than the uniform one
        ({"bits": 3.0}, 1),  # spends less than its budget: allowed to
        ({"quantizer": "pact"}, 0),
        ({"flow": "ptq"}, 0),
        ({"data": "other"}, 0),
        ({"budget": None}, 0),
        ({"allocator": "uniform"}, 0),
    ],
)
def test_only_equals_are_compared(mixed, rows):
    records, examples = sweep(**mixed)
    assert len(mixed_versus_uniform(records, examples)) == rows


def test_only_common_seeds_count():
    records, examples = sweep(seeds=3)
    kept = [r for r in records if not (r.allocation["allocator"] == "exact" and r.seed == 0)]
    (row,) = mixed_versus_uniform(kept, examples)
    assert row.seeds == 2
    apart = [r for r in records if (r.allocation["allocator"] == "exact") == (r.seed == 0)]
    assert mixed_versus_uniform(apart, examples) == ()


def test_allocators_with_a_seed_of_their_own_still_pair():
    records, examples = sweep(seeds=2)
    uniform = [r for r in records if r.allocation["allocator"] == "uniform"]
    mixed = [
        make_record(seed=s, allocator="bayes", budget=4.0, bits=4.0, config={"seed": s, "bayes": {"seed": 5}})
        for s in range(2)
    ]
    scores = {**examples, **{record.key: np.zeros(1000) for record in mixed}}
    (row,) = mixed_versus_uniform(uniform + mixed, scores)
    assert row.seeds == 2


def test_one_seed_is_said_and_missing_examples_are_unknown():
    records, examples = sweep(seeds=1, gain=0.1)
    (row,) = mixed_versus_uniform(records, examples)
    assert "one seed" in row.real
    (row,) = mixed_versus_uniform(records, {})
    assert row.difference is None
    assert row.real.startswith("unknown")


def test_other_test_sets_are_refused():
    records, examples = sweep()
    examples[records[0].key] = examples[records[0].key][:-1]
    with pytest.raises(DataError, match="different numbers of examples"):
        mixed_versus_uniform(records, examples)
