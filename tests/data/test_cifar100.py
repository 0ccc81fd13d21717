from __future__ import annotations

import os

import numpy as np
import pytest

from qresearch.data import DATASETS
from qresearch.data.cifar100 import LAYOUT, RECORD_BYTES, RECORDS, prepare, read_file
from qresearch.errors import DataError

load = DATASETS["cifar100"]


@pytest.fixture
def made(tmp_path, monkeypatch):
    """The official layout with black images of class 0: sparse files, so they take no room on disk."""
    monkeypatch.delenv("QRESEARCH_DATA", raising=False)
    layout = tmp_path / LAYOUT
    layout.mkdir()
    for name, records in RECORDS.items():
        (layout / name).touch()
        os.truncate(layout / name, records * RECORD_BYTES)
    return tmp_path


def fails(folder, *fragments):
    with pytest.raises(DataError) as caught:
        load(folder)
    for fragment in (*fragments, "QRESEARCH_DATA", "data.folder", "https://www.cs.toronto.edu/~kriz/cifar.html"):
        assert fragment in str(caught.value)
    assert "\n" not in str(caught.value)


def put(path, record, content):
    with path.open("r+b") as file:
        file.seek(record * RECORD_BYTES)
        file.write(content)


@pytest.mark.parametrize("inside", [False, True])
def test_the_folder_itself_and_its_parent_are_accepted(made, inside):
    data = load(made / LAYOUT if inside else made)
    assert [len(split) for split in (data.train, data.validation, data.test)] == [45_000, 5_000, 10_000]
    assert data.classes == 100


def test_validation_holds_fifty_of_every_fine_class(made):
    path = made / LAYOUT / "train.bin"
    labels = np.zeros((50_000, RECORD_BYTES), np.uint8)
    labels[:, 1] = np.arange(50_000) % 100
    labels.tofile(path)
    data = load(made)
    assert np.bincount(data.validation.targets).tolist() == [50] * 100
    assert np.bincount(data.train.targets).tolist() == [450] * 100


def test_a_missing_file(made):
    (made / LAYOUT / "train.bin").unlink()
    fails(made, "train.bin is missing", "153,700,000")


@pytest.mark.parametrize("size", [0, 30_740_000 - 1, 30_730_000])
def test_a_file_of_another_size(made, size):
    os.truncate(made / LAYOUT / "test.bin", size)
    fails(made, "test.bin", f"{size:,} bytes", "30,740,000", "truncated")


@pytest.mark.parametrize(("content", "message"), [
    (bytes([20, 0]), "coarse label 20 at record 7"),
    (bytes([0, 100]), "fine label 100 at record 7"),
])  # fmt: skip
def test_a_label_out_of_range(made, content, message):
    put(made / LAYOUT / "test.bin", 7, content)
    fails(made, "test.bin", message)


def test_a_record_is_two_labels_then_red_green_blue_rows(made):
    path = made / LAYOUT / "test.bin"
    put(path, 1, bytes([3, 99]) + bytes(range(32)) + bytes(3072 - 32 - 1) + bytes([255]))
    split = read_file(path, 10_000)
    assert split.targets[:3].tolist() == [0, 99, 0]  # fine, not coarse
    assert split.inputs[1, 0, :, 0].tolist() == list(range(32))
    assert split.inputs[1, 31, 31].tolist() == [0, 0, 255]


def test_prepare_normalizes_every_channel():
    raw = np.arange(256, dtype=np.uint8).reshape(-1, 1, 1, 1).repeat(3, axis=-1)
    expected = (raw / 255.0 - [0.5071, 0.4867, 0.4408]) / [0.2675, 0.2565, 0.2761]
    assert prepare(raw).dtype == np.float32
    np.testing.assert_allclose(prepare(raw), expected, atol=1e-5)
