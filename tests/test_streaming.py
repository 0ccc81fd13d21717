"""Data that stay on disk give what data in memory give, and few of them are in memory at a time."""

from __future__ import annotations

import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import qresearch.evaluation
import qresearch.streaming
import qresearch.training
from qresearch.data.dataset import Dataset, Split
from qresearch.evaluation import evaluate, make_batches
from qresearch.population import unchanged
from qresearch.streaming import IN_FLIGHT, StreamedBatches, make_feed, place_batches
from qresearch.tasks import TASKS, Task
from qresearch.training import Program, Recipe, Trial, make_trainer

RNG = np.random.default_rng(0)
ARRAY = RNG.normal(size=(40, 6)).astype(np.float32)
TARGETS = RNG.integers(0, 3, 40).astype(np.int32)


class OnDisk:
    """A ``Streamed`` that counts what is read from it, and how many of the arrays it gave are still alive."""

    def __init__(self, array):
        self.array, self.reads, self.alive, self.most = array, [], 0, 0
        self.shape, self.dtype = array.shape, array.dtype

    def __len__(self):
        return len(self.array)

    def __array__(self, *arguments, **more):
        raise AssertionError("all of the data were asked for at once")

    def __getitem__(self, indices):
        found = np.array(self.array[indices])
        self.reads.append(np.arange(len(self.array))[indices])
        self.alive += 1
        self.most = max(self.most, self.alive)
        weakref.finalize(found, self._gone)
        return found

    def _gone(self):
        self.alive -= 1


@pytest.fixture
def kept_none(monkeypatch):
    monkeypatch.setattr(qresearch.streaming, "KEPT_BYTES", 0)


# ---- Batches


@pytest.mark.parametrize("examples", [None, 1, 13])
def test_streamed_batches_are_those_of_memory(examples):
    here = make_batches(Split(ARRAY, TARGETS), 8, examples)
    there = make_batches(Split(OnDisk(ARRAY), TARGETS), 8, examples)
    assert (there.examples, len(there.inputs)) == (here.examples, len(here.inputs))
    for a, b in zip(here.inputs, there.inputs, strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(here.targets, there.targets)


def test_nothing_is_read_before_it_is_asked_for_and_a_slice_reads_its_part():
    disk = OnDisk(ARRAY)
    batches = place_batches(disk, np.arange(40).reshape(5, 8))
    assert isinstance(batches, StreamedBatches)
    assert disk.reads == []
    np.testing.assert_array_equal(np.stack(list(batches[1:3])), ARRAY[8:24].reshape(2, 8, 6))
    assert np.concatenate(disk.reads).tolist() == list(range(8, 24))
    with pytest.raises(IndexError):
        batches[5]


@pytest.mark.parametrize(("room", "again"), [(0, 5), (1, 5), (8 * 6 * 4 * 2, 3), (2**20, 0)])
def test_the_first_batches_are_kept_as_far_as_there_is_room(monkeypatch, room, again):
    monkeypatch.setattr(qresearch.streaming, "KEPT_BYTES", room)
    disk = OnDisk(ARRAY)
    batches = place_batches(disk, np.arange(40).reshape(5, 8))
    for _ in range(3):
        np.testing.assert_array_equal(np.concatenate(list(batches)), ARRAY)
    assert len(disk.reads) == 5 + 2 * again


# ---- Evaluation


def linear(shared, own, x):
    return x @ own["w"] + shared


SUM = Task(lambda outputs, targets: jnp.square(outputs.sum(-1)), lambda outputs, targets: outputs[:, 0], "first")


@pytest.mark.parametrize("chunk", [1, 2])
def test_scores_are_those_of_memory(chunk):
    members = {"w": RNG.normal(size=(3, 6, 4)).astype(np.float32)}
    here, there = (
        evaluate(linear, SUM, unchanged, 0.5, members, make_batches(Split(inputs, TARGETS), 8), chunk)
        for inputs in (ARRAY, OnDisk(ARRAY))
    )
    np.testing.assert_array_equal(here.loss, there.loss)
    np.testing.assert_array_equal(here.score, there.score)


@pytest.mark.parametrize("examples", [40, 400])
def test_memory_does_not_grow_with_the_number_of_examples_evaluated(kept_none, examples):
    disk = OnDisk(np.tile(ARRAY, (examples // 40, 1)))
    batches = make_batches(Split(disk, np.tile(TARGETS, examples // 40)), 4)
    evaluate(linear, SUM, unchanged, 0.5, {"w": np.ones((2, 6, 4), np.float32)}, batches, 1)
    assert len(disk.reads) == 2 * examples // 4
    assert disk.most <= IN_FLIGHT + 3


# ---- Training


def slowly(x):
    """The inputs, after work that takes longer than reading them."""
    big = jax.lax.fori_loop(0, 20, lambda i, b: b @ b * 1e-3, jnp.ones((200, 200)) * x.mean())
    return x + 0 * big[0, 0]


def perceptron(prepare=unchanged):
    def forward(variables, x):
        return prepare(x) @ variables["params"]["w"]

    return Program(
        lambda variables, qparams, bits, x, key: (forward(variables, x), {}),
        lambda shared, own, x: forward(own[0], x),
        lambda qparams: {},
    )


def trained(inputs, chunk, epochs=3, program=None):
    split, test = Split(inputs, np.resize(TARGETS, len(inputs))), Split(ARRAY, TARGETS)
    data = Dataset("made", split, test, test, 3, unchanged, (6,), "made here")
    recipe = Recipe(epochs=epochs, batch_size=8)
    trainer = make_trainer(program or perceptron(), TASKS["classification"], recipe, data, make_batches(test, 20))
    start = {"params": {"w": jnp.zeros((6, 3))}}
    return list(trainer.train([Trial(start, {}, (), 0.1, seed) for seed in range(3)], chunk))


@pytest.mark.parametrize("chunk", [1, 2])
def test_training_is_that_of_memory(chunk):
    for here, there in zip(trained(ARRAY, chunk), trained(OnDisk(ARRAY), chunk), strict=True):
        np.testing.assert_allclose(here.last[0]["params"]["w"], there.last[0]["params"]["w"], rtol=1e-5, atol=1e-6)
        assert here.history[-1]["train_loss"] == pytest.approx(there.history[-1]["train_loss"], rel=1e-5)
        assert here.history[-1]["train_loss"] < here.history[0]["train_loss"]


@pytest.mark.parametrize("examples", [40, 400])
def test_memory_does_not_grow_with_the_number_of_examples_trained_on(examples):
    disk = OnDisk(np.tile(ARRAY, (examples // 40, 1)))
    trained(disk, 1, epochs=1)
    assert len(disk.reads) == 3 * (examples // 8)
    assert disk.most <= IN_FLIGHT + 3


def test_a_feed_gives_each_trial_the_examples_of_its_order():
    order = np.random.default_rng(1).permutation(40)[: 2 * 3 * 4].reshape(2, 3, 4)  # trial, step, size
    for inputs in (ARRAY, OnDisk(ARRAY)):
        for given in (order, order[0]):
            steps = list(make_feed(Split(inputs, TARGETS))(given))
            assert len(steps) == 3
            for step, (x, y, indices) in enumerate(steps):
                np.testing.assert_array_equal(np.asarray(x)[np.asarray(indices)], ARRAY[given[..., step, :]])
                np.testing.assert_array_equal(np.asarray(y)[np.asarray(indices)], TARGETS[given[..., step, :]])


def test_steps_of_streamed_data_share_one_program():
    shapes = {
        tuple((np.shape(part), np.asarray(part).dtype) for part in step)
        for step in make_feed(Split(OnDisk(ARRAY), TARGETS))(np.arange(40).reshape(5, 8))
    }
    assert len(shapes) == 1


def test_waiting_leaves_the_latest_results_alone(monkeypatch):
    waited = []
    monkeypatch.setattr(jax, "block_until_ready", waited.append)
    results = []
    for step in range(10):
        results.append(step)
        qresearch.streaming.wait(results)
    assert waited == list(range(10 - IN_FLIGHT))


@pytest.mark.parametrize("module", [qresearch.evaluation, qresearch.training])
def test_no_more_batches_are_in_flight_than_stated(monkeypatch, module, kept_none):
    """JAX queues 32 steps, and with them their inputs, where nobody waits."""
    unfinished = []

    def counted(results):
        qresearch.streaming.wait(results)
        unfinished.append(sum(not leaf.is_ready() for leaf in jax.tree.leaves(results[-40:])))

    monkeypatch.setattr(module, "wait", counted)
    disk = OnDisk(np.tile(ARRAY, (10, 1)))
    if module is qresearch.training:
        trained(disk, 1, epochs=1, program=perceptron(slowly))
    else:
        batches = make_batches(Split(disk, np.tile(TARGETS, 10)), 8)
        members = {"w": np.ones((3, 6, 4), np.float32)}
        evaluate(lambda shared, own, x: linear(shared, own, slowly(x)), SUM, unchanged, 0.5, members, batches, 1)
    assert len(unfinished) == 150
    assert max(unfinished) <= 2 * IN_FLIGHT  # loss and score of each
