from __future__ import annotations

import os

import jax
import numpy as np
import pytest

from qresearch.data import DATASETS
from qresearch.data.cifar10 import FILE_BYTES, LAYOUT, TEST_FILE, TRAIN_FILES, prepare, read_file
from qresearch.errors import DataError

load = DATASETS["cifar10"]


@pytest.fixture
def made(tmp_path, monkeypatch):
    """The official layout with black images of class 0: sparse files, so they take no room on disk."""
    monkeypatch.delenv("QRESEARCH_DATA", raising=False)
    layout = tmp_path / LAYOUT
    layout.mkdir()
    for name in (*TRAIN_FILES, TEST_FILE):
        (layout / name).touch()
        os.truncate(layout / name, FILE_BYTES)
    return tmp_path


def fails(folder, *fragments):
    with pytest.raises(DataError) as caught:
        load(folder)
    message = str(caught.value)
    for fragment in (*fragments, "QRESEARCH_DATA", "data.folder", "https://"):
        assert fragment in message
    assert "\n" not in message


@pytest.mark.parametrize("inside", [False, True])
def test_the_folder_itself_and_its_parent_are_accepted(made, inside):
    dataset = load(made / LAYOUT if inside else made)
    assert [len(split) for split in (dataset.train, dataset.validation, dataset.test)] == [45_000, 5_000, 10_000]


def test_the_environment_names_the_folder(made, monkeypatch):
    os.truncate(made / LAYOUT / TEST_FILE, 5)  # fails early: what matters is that it was found
    monkeypatch.setenv("QRESEARCH_DATA", str(made))
    fails(None, TEST_FILE)


def test_no_folder_at_all(monkeypatch):
    monkeypatch.delenv("QRESEARCH_DATA", raising=False)
    fails(None, "no data folder given")


def test_a_folder_without_the_layout(tmp_path):
    fails(tmp_path / "elsewhere", "elsewhere", LAYOUT)


def test_a_missing_file(made):
    (made / LAYOUT / "data_batch_3.bin").unlink()
    fails(made, "data_batch_3.bin is missing", "30,730,000")


@pytest.mark.parametrize("size", [0, FILE_BYTES - 1, FILE_BYTES + 3073])
def test_a_file_of_another_size(made, size):
    os.truncate(made / LAYOUT / TEST_FILE, size)
    fails(made, TEST_FILE, f"{size:,} bytes", "30,730,000")


def test_a_label_out_of_range(made):
    with (made / LAYOUT / "data_batch_1.bin").open("r+b") as file:
        file.seek(7 * 3073)
        file.write(bytes([10]))
    fails(made, "data_batch_1.bin", "label 10 at record 7", "0 to 9")


def test_a_record_is_a_label_then_red_green_blue_rows(made):
    path = made / LAYOUT / TEST_FILE
    record = bytes([9]) + bytes(range(32)) + bytes(3072 - 32 - 1) + bytes([255])
    with path.open("r+b") as file:
        file.seek(3073)
        file.write(record)
    split = read_file(path)
    assert split.targets[:3].tolist() == [0, 9, 0]
    assert split.inputs[1, 0, :, 0].tolist() == list(range(32))  # the first bytes are the red top row
    assert split.inputs[1, 31, 31].tolist() == [0, 0, 255]  # the last byte is the blue corner
    assert int(split.inputs.sum(dtype=int)) == sum(range(32)) + 255


def test_prepare_normalizes_every_channel():
    raw = np.arange(256, dtype=np.uint8).reshape(-1, 1, 1, 1).repeat(3, axis=-1)
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        prepared = jax.jit(prepare)(raw)
    expected = (raw / 255.0 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    assert prepared.dtype == np.float32
    np.testing.assert_allclose(prepared, expected, atol=1e-6)


def test_the_real_files(cifar10_folder):
    dataset = load(cifar10_folder)
    for split, size in ((dataset.train, 45_000), (dataset.validation, 5_000), (dataset.test, 10_000)):
        assert split.inputs.shape == (size, *dataset.example_shape)
        assert split.inputs.dtype == np.uint8
        assert split.inputs.flags.c_contiguous
        assert np.bincount(split.targets).tolist() == [size // 10] * 10
    assert dataset.test.targets[:10].tolist() == [3, 8, 8, 0, 6, 6, 1, 6, 3, 1]
    everything = [read_file(next(cifar10_folder.rglob(name))) for name in TRAIN_FILES]
    total = sum(int(batch.inputs.sum(dtype=int)) for batch in everything)
    assert sum(int(split.inputs.sum(dtype=int)) for split in (dataset.train, dataset.validation)) == total
    assert everything[0].inputs[0, 0, 0].tolist() == [59, 62, 63]  # the frog that every CIFAR-10 tutorial shows
