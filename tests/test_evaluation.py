from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_sweep import compilations

from qresearch.data.dataset import Split
from qresearch.evaluation import default_chunk, evaluate, make_batches
from qresearch.population import unchanged
from qresearch.tasks import Task

RNG = np.random.default_rng(0)
TASK = Task(
    loss=lambda outputs, targets: jnp.square(outputs - targets),
    score=lambda outputs, targets: outputs,
    score_name="output",
)


def split_of(examples):
    inputs = RNG.normal(size=(examples, 3)).astype(np.float32)
    return Split(inputs, np.arange(examples, dtype=np.int32))


def linear(shared, own, x):
    return (x * own["w"]).sum(-1) + shared


def members_of(count):
    return {"w": RNG.normal(size=(count, 3)).astype(np.float32)}


def by_hand(split, members, shared, prepare=unchanged):
    outputs = np.einsum("nf,mf->mn", prepare(split.inputs).astype(np.float64), members["w"].astype(np.float64)) + shared
    return np.square(outputs - split.targets), outputs


@pytest.mark.parametrize("examples", [None, 1, 5, 6, 100])
@pytest.mark.parametrize("size", [1, 3, 7, 10])
def test_batches_hold_the_first_examples_in_order(size, examples):
    split = split_of(7)
    batches = make_batches(split, size, examples)
    count = 7 if examples is None else min(examples, 7)
    assert batches.examples == count
    assert batches.inputs.shape == (-(-count // size), size, 3)
    assert batches.targets.shape == batches.inputs.shape[:2]
    np.testing.assert_array_equal(batches.inputs.reshape(-1, 3)[:count], split.inputs[:count])
    np.testing.assert_array_equal(batches.targets.reshape(-1)[:count], split.targets[:count])


def test_filling_repeats_examples_of_the_data():
    split = split_of(7)
    batches = make_batches(split, 5)
    filled = np.asarray(batches.targets).reshape(-1)[7:]
    assert set(filled) <= set(split.targets)
    np.testing.assert_array_equal(batches.inputs.reshape(-1, 3)[7:], split.inputs[filled])


@pytest.mark.parametrize("chunk", [1, 2, 4, 100])
@pytest.mark.parametrize("count", [1, 5, 8])
@pytest.mark.parametrize("size", [3, 7, 20])
def test_every_member_on_every_example_whatever_the_batches_and_chunks(size, count, chunk):
    split, members = split_of(7), members_of(count)
    scores = evaluate(linear, TASK, unchanged, 0.5, members, make_batches(split, size), chunk)
    loss, outputs = by_hand(split, members, 0.5)
    assert scores.loss.shape == scores.score.shape == (count, 7)
    assert scores.loss.dtype == np.float32
    np.testing.assert_allclose(scores.score, outputs, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(scores.loss, loss, rtol=1e-4, atol=1e-4)


def test_what_fills_a_batch_or_a_chunk_does_not_reach_the_scores():
    # Filling that would be seen at once: every output of the filled places is NaN.
    split, members = split_of(5), members_of(3)
    batches = make_batches(split, 4)
    clean = evaluate(linear, TASK, unchanged, 0.0, members, batches, chunk=2)
    spoilt = batches._replace(inputs=batches.inputs.at[1, 1:].set(jnp.nan))
    dirty = evaluate(linear, TASK, unchanged, 0.0, members, spoilt, chunk=2)
    np.testing.assert_array_equal(clean.loss, dirty.loss)
    np.testing.assert_array_equal(clean.score, dirty.score)


def test_inputs_are_prepared():
    def prepare(inputs):
        return inputs * 4

    split, members = split_of(4), members_of(2)
    scores = evaluate(linear, TASK, prepare, 0.0, members, make_batches(split, 2))
    np.testing.assert_allclose(scores.score, by_hand(split, members, 0.0, prepare)[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("chunk", "expected"), [(1, [1, 2, 3, 4, 5]), (2, [2, 4, 5]), (9, [5])])
def test_progress_counts_members_and_never_more_than_there_are(chunk, expected):
    done = []
    batches = make_batches(split_of(4), 2)
    evaluate(linear, TASK, unchanged, 0.0, members_of(5), batches, chunk, on_done=done.append)
    assert done == expected


@pytest.mark.parametrize("chunk", [1, 4])
def test_one_program_for_all_batches_chunks_and_calls(chunk):
    def forward(shared, own, x):
        return linear(shared, own, x)

    split = split_of(7)
    with compilations() as compiled:
        for count in (4, 6, 9):
            evaluate(forward, TASK, unchanged, 0.0, members_of(count), make_batches(split, 3), chunk)
    assert compiled.count("jit(step)") == 1


def test_chunks_of_one_on_cpu():
    assert (default_chunk() == 1) == (jax.default_backend() == "cpu")
