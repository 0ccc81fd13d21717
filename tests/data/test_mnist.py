from __future__ import annotations

import gzip
import shutil

import numpy as np
import pytest
from conftest import shared_path
from made_files import SOURCES, write_mnist

from qresearch.data import DATASETS, mnist
from qresearch.errors import DataError


@pytest.fixture(params=sorted(SOURCES))
def small(request, tmp_path, monkeypatch):
    """The four files with 60 and 20 images, and the loader told to expect just these: (name, folder)."""
    monkeypatch.delenv("QRESEARCH_DATA", raising=False)
    write_mnist(request.param, tmp_path, monkeypatch)
    return request.param, tmp_path


def fails(name, folder, *fragments):
    with pytest.raises(DataError) as caught:
        DATASETS[name](folder)
    for fragment in (*fragments, name, "https://" if name == "fashion_mnist" else "http://", "QRESEARCH_DATA"):
        assert fragment in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("inside", [False, True])
def test_the_folder_itself_and_its_parent_are_accepted(small, inside):
    name, folder = small
    data = DATASETS[name](folder / name if inside else folder)
    assert (data.name, data.classes, data.example_shape) == (name, 10, (28, 28, 1))
    assert [len(split) for split in (data.train, data.validation, data.test)] == [50, 10, 20]
    for split in (data.train, data.validation, data.test):
        assert (split.inputs.dtype, split.targets.dtype) == (np.uint8, np.int32)
        assert split.inputs.shape[1:] == (28, 28, 1)
        assert np.bincount(split.targets).tolist() == [len(split) // 10] * 10


def test_train_and_validation_are_all_training_images_once(small):
    name, folder = small
    data = DATASETS[name](folder)
    rows = np.concatenate([data.train.inputs, data.validation.inputs]).reshape(60, -1)
    assert len(np.unique(rows, axis=0)) == 60
    with gzip.open(folder / name / f"train-{mnist.IMAGES}") as file:
        everything = np.frombuffer(file.read(), np.uint8, offset=16).reshape(60, -1)
    assert sorted(map(tuple, rows.tolist())) == sorted(map(tuple, everything.tolist()))


def test_the_split_does_not_change(small):
    name, folder = small
    first, second = DATASETS[name](folder), DATASETS[name](folder)
    np.testing.assert_array_equal(first.validation.inputs, second.validation.inputs)


@pytest.mark.parametrize("file", [f"train-{mnist.LABELS}", f"t10k-{mnist.IMAGES}"])
def test_a_missing_and_a_truncated_file(small, file):
    name, folder = small
    path = folder / name / file
    path.write_bytes(path.read_bytes()[:-20])
    fails(name, folder, str(path), "truncated")
    path.unlink()
    fails(name, folder, str(path), "is missing")


def test_images_and_labels_exchanged(small):
    name, folder = small
    shutil.copy(folder / name / f"t10k-{mnist.LABELS}", folder / name / f"t10k-{mnist.IMAGES}")
    fails(name, folder, "begins with 00000801", "expected 00000803")


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_a_label_out_of_range(name, tmp_path, monkeypatch):
    write_mnist(name, tmp_path, monkeypatch, wrong_label=True)
    fails(name, tmp_path, "label 10 at record 7", "0 to 9")


def test_files_of_the_other_data_set_are_noticed(tmp_path, monkeypatch):
    """Both have the same names and sizes."""
    write_mnist("mnist", tmp_path, monkeypatch)
    shutil.copytree(tmp_path / "mnist", tmp_path / "fashion_mnist")
    other = mnist.MNIST.test[0]._replace(md5="0" * 32)
    expected = mnist.FASHION_MNIST._replace(train=mnist.MNIST.train, test=(other, mnist.MNIST.test[1]), validation=10)
    monkeypatch.setattr(mnist, "FASHION_MNIST", expected)
    fails("fashion_mnist", tmp_path, "MD5", "another data set")


def test_prepare_scales_to_one():
    raw = np.arange(256, dtype=np.uint8).reshape(-1, 1, 1, 1)
    prepared = mnist.prepare(raw)
    assert prepared.dtype == np.float32
    np.testing.assert_allclose(prepared * 255, raw, atol=1e-4)


# The first test labels, as every tutorial prints them.
FIRST = {"mnist": [7, 2, 1, 0, 4, 1, 4, 9, 5, 9], "fashion_mnist": [9, 2, 1, 1, 6, 1, 4, 6, 5, 7]}


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_the_real_files(name):
    data = DATASETS[name](shared_path("data", name).parent)
    assert [len(split) for split in (data.train, data.validation, data.test)] == [55_000, 5_000, 10_000]
    assert data.test.targets[:10].tolist() == FIRST[name]
    everything = sum(np.bincount(split.targets) for split in (data.train, data.validation))
    share = np.bincount(data.validation.targets) * 12
    assert np.all(np.abs(share - everything) <= 12)


def test_real_fashion_in_the_place_of_mnist():
    folder = shared_path("data", "fashion_mnist")
    fails("mnist", folder, "MD5", "another data set")
