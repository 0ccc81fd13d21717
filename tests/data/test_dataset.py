from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from qresearch.data import epoch_permutation, resolve_folder
from qresearch.data.dataset import Dataset, Split, stratified_order, with_first


def test_epoch_permutation_visits_every_example_once():
    assert sorted(epoch_permutation(3, 5, 97)) == list(range(97))


def test_epoch_permutation_depends_on_its_arguments_alone():
    expected = epoch_permutation(1, 2, 50)
    epoch_permutation(7, 0, 10)
    np.random.default_rng(0).random()
    np.testing.assert_array_equal(epoch_permutation(1, 2, 50), expected)


def test_epoch_permutation_is_the_same_in_every_version():
    # A resumed run relies on it: change this list only with a note that older runs cannot be resumed.
    assert epoch_permutation(0, 0, 10).tolist() == [6, 3, 8, 1, 4, 5, 9, 2, 7, 0]


def test_epoch_permutations_differ_between_seeds_and_epochs():
    arguments = [(seed, epoch) for seed in (0, 1, 2**32, 2**40) for epoch in (0, 1, 2)]
    orders = {tuple(epoch_permutation(seed, epoch, 40)) for seed, epoch in arguments}
    assert len(orders) == len(arguments)


@pytest.mark.parametrize("counts", [(10, 10, 10), (50, 7, 3), (1, 1, 98)])
def test_any_run_of_a_stratified_order_holds_the_classes_in_proportion(counts):
    targets = np.repeat(np.arange(len(counts)), counts)
    order = stratified_order(targets, seed=0)
    assert sorted(order) == list(range(len(targets)))
    for start, stop in [(0, 10), (3, 20), (8, len(targets)), (0, len(targets))]:
        found = np.bincount(targets[order[start:stop]], minlength=len(counts))
        expected = (stop - start) * np.array(counts) / len(targets)
        assert np.all(np.abs(found - expected) <= 1 + 1e-9)


def test_a_stratified_order_is_shuffled_within_a_class():
    order = stratified_order(np.zeros(30, np.int32), seed=0)
    assert order.tolist() != list(range(30))
    assert order.tolist() != stratified_order(np.zeros(30, np.int32), seed=1).tolist()


def test_the_configured_folder_goes_before_the_environment(monkeypatch):
    monkeypatch.setenv("QRESEARCH_DATA", "from_environment")
    assert resolve_folder(Path("configured")) == Path("configured")
    assert resolve_folder(None) == Path("from_environment")


@pytest.mark.parametrize("value", [None, ""])
def test_no_folder_is_none(monkeypatch, value):
    monkeypatch.delenv("QRESEARCH_DATA", raising=False)
    if value is not None:
        monkeypatch.setenv("QRESEARCH_DATA", value)
    assert resolve_folder(None) is None


def test_importing_the_data_sets_does_not_import_jax():
    # The command line lists DATASETS, and `import jax` costs it 1.7 s.
    code = "import qresearch.data, sys; sys.exit('jax' in sys.modules or 'sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


class Counting:
    """Streamed inputs that note what is read."""

    shape, dtype = (10, 2), np.dtype(np.float32)

    def __init__(self):
        self.read = []

    def __len__(self):
        return 10

    def __getitem__(self, indices):
        self.read += np.arange(10)[indices].tolist()
        return np.repeat(np.arange(10, dtype=np.float32)[indices, None], 2, axis=1)


@pytest.mark.parametrize("inputs", [np.repeat(np.arange(10, dtype=np.float32)[:, None], 2, axis=1), Counting()])
def test_the_first_examples_of_a_data_set(inputs):
    split = Split(inputs, np.arange(10, dtype=np.int32))
    data = Dataset("made", split, split, split, 10, lambda x: x, (2,), "made here")
    first = with_first(data, 4)
    assert len(first.train) == len(first.train.inputs) == first.train.inputs.shape[0] == 4
    np.testing.assert_array_equal(first.train.inputs[np.array([3, 0])], [[3, 3], [0, 0]])
    np.testing.assert_array_equal(first.train.inputs[1:], [[1, 1], [2, 2], [3, 3]])
    np.testing.assert_array_equal(first.train.targets, [0, 1, 2, 3])
    assert (first.test, first.validation) == (split, split)
    assert with_first(data, 4) is first  # what is compiled for it is found again
    assert with_first(data, None) is with_first(data, 10) is data
    if isinstance(inputs, Counting):
        assert max(inputs.read) == 3
