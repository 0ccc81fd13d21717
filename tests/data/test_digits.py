from __future__ import annotations

import hashlib

import jax
import numpy as np
import pytest

from qresearch.data import DATASETS

# Of the inputs and targets of each split, in order: every published number on digits depends on them.
HASHES = {"train": "9fe9d9b9af3b113d", "validation": "ab77c2a9c8f5c0fe", "test": "0eb9bbb85dfb14f8"}


@pytest.fixture(scope="module")
def digits():
    return DATASETS["digits"](None)


def splits(dataset):
    return {"train": dataset.train, "validation": dataset.validation, "test": dataset.test}


def test_sizes_shapes_and_dtypes(digits):
    assert {name: len(split) for name, split in splits(digits).items()} == {
        "train": 1097,
        "validation": 300,
        "test": 400,
    }
    for split in splits(digits).values():
        assert split.inputs.shape == (len(split), 8, 8, 1)
        assert split.inputs.dtype == np.uint8
        assert split.targets.dtype == np.int32
        assert set(split.targets) == set(range(digits.classes))


def test_the_splits_are_disjoint_and_together_are_all_images(digits):
    from sklearn.datasets import load_digits

    rows = np.concatenate([split.inputs.reshape(len(split), -1) for split in splits(digits).values()])
    targets = np.concatenate([split.targets for split in splits(digits).values()])
    found = sorted(map(tuple, np.column_stack([rows, targets]).tolist()))
    bunch = load_digits()
    assert found == sorted(map(tuple, np.column_stack([bunch.data, bunch.target]).astype(int).tolist()))
    assert len(set(found)) == 1797  # no image occurs twice, so equality above means that the splits are disjoint


def test_every_split_is_stratified(digits):
    total = sum(np.bincount(split.targets, minlength=10) for split in splits(digits).values())
    for split in splits(digits).values():
        assert np.all(np.abs(np.bincount(split.targets, minlength=10) - total * len(split) / 1797) < 2)


def test_the_split_is_stable(digits):
    found = {
        name: hashlib.sha256(split.inputs.tobytes() + split.targets.astype("<i4").tobytes()).hexdigest()[:16]
        for name, split in splits(digits).items()
    }
    assert found == HASHES


def test_prepare_scales_to_one_and_runs_inside_a_compiled_step(digits):
    raw = digits.train.inputs
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        prepared = jax.jit(digits.prepare)(raw)
    assert prepared.dtype == np.float32
    assert prepared.shape[1:] == digits.example_shape
    assert float(prepared.min()) == 0
    assert float(prepared.max()) == 1
    np.testing.assert_array_equal(prepared * 16, raw)
    np.testing.assert_array_equal(prepared, digits.prepare(raw))
