from __future__ import annotations

import os

import jax
import numpy as np
import pytest

from qresearch.data import DATASETS
from qresearch.data.cifar10 import CIFAR10
from qresearch.data.cifar10 import prepare as prepare10
from qresearch.data.cifar100 import CIFAR100
from qresearch.data.cifar100 import prepare as prepare100
from qresearch.data.cifar_files import read_file
from qresearch.errors import DataError

LAYOUTS = {layout.name: layout for layout in (CIFAR10, CIFAR100)}
TEST = {"cifar10": "test_batch.bin", "cifar100": "test.bin"}


@pytest.fixture(params=LAYOUTS)
def layout(request):
    return LAYOUTS[request.param]


@pytest.fixture
def made(layout, tmp_path, monkeypatch):
    """The official layout with black images of class 0: sparse files, so they take no room on disk."""
    monkeypatch.delenv("QRESEARCH_DATA", raising=False)
    folder = tmp_path / layout.folder
    folder.mkdir()
    for name, records in layout.files.items():
        (folder / name).touch()
        os.truncate(folder / name, records * layout.record_bytes)
    return tmp_path


def load(layout, folder):
    return DATASETS[layout.name](folder)


def fails(layout, folder, *fragments):
    with pytest.raises(DataError) as caught:
        load(layout, folder)
    message = str(caught.value)
    for fragment in (*fragments, "QRESEARCH_DATA", "data.folder", "https://www.cs.toronto.edu/~kriz/cifar.html"):
        assert fragment in message
    assert "\n" not in message


def put(layout, path, record, content):
    with path.open("r+b") as file:
        file.seek(record * layout.record_bytes)
        file.write(content)


@pytest.mark.parametrize("inside", [False, True])
def test_the_folder_itself_and_its_parent_are_accepted(layout, made, inside):
    data = load(layout, made / layout.folder if inside else made)
    assert [len(split) for split in (data.train, data.validation, data.test)] == [45_000, 5_000, 10_000]
    assert data.classes == {"cifar10": 10, "cifar100": 100}[layout.name]


def test_the_environment_names_the_folder(layout, made, monkeypatch):
    os.truncate(made / layout.folder / TEST[layout.name], 5)  # fails early: what matters is that it was found
    monkeypatch.setenv("QRESEARCH_DATA", str(made))
    fails(layout, None, TEST[layout.name])


def test_no_folder_at_all(layout, monkeypatch):
    monkeypatch.delenv("QRESEARCH_DATA", raising=False)
    fails(layout, None, "no data folder given")


def test_a_folder_without_the_layout(layout, tmp_path):
    fails(layout, tmp_path, str(tmp_path), layout.folder)
    fails(layout, tmp_path / "elsewhere", "elsewhere", layout.folder)


def test_every_file_is_needed_and_its_size_is_said(layout, made):
    official = {"train.bin": "153,700,000", "test.bin": "30,740,000"}
    for name in layout.files:
        path = made / layout.folder / name
        path.rename(made / "hidden")
        fails(layout, made, f"{name} is missing", official.get(name, "30,730,000"))
        (made / "hidden").rename(path)


@pytest.mark.parametrize("change", [-1, 3072])
def test_a_file_of_another_size(layout, made, change):
    path = made / layout.folder / TEST[layout.name]
    official = {"cifar10": 30_730_000, "cifar100": 30_740_000}[layout.name]
    os.truncate(path, official + change)
    fails(layout, made, path.name, f"{official + change:,} bytes", f"{official:,}", "truncated")


@pytest.mark.parametrize(
    ("layout", "content", "messages"),
    [
        ("cifar10", bytes([10]), (" label 10 at record 7", "0 to 9")),
        ("cifar100", bytes([20, 0]), ("coarse label 20 at record 7", "0 to 19")),
        ("cifar100", bytes([0, 100]), ("fine label 100 at record 7", "0 to 99")),
    ],
    indirect=["layout"],
)
def test_a_label_out_of_range(layout, made, content, messages):
    put(layout, made / layout.folder / TEST[layout.name], 7, content)
    fails(layout, made, TEST[layout.name], *messages)


@pytest.mark.parametrize(
    ("layout", "labels"), [("cifar10", [9]), ("cifar100", [3, 99])], indirect=["layout"]
)  # the last label is the target: fine, not coarse
def test_a_record_is_labels_then_red_green_blue_rows(layout, made, labels):
    path = made / layout.folder / TEST[layout.name]
    put(layout, path, 1, bytes(labels) + bytes(range(32)) + bytes(3072 - 32 - 1) + bytes([255]))
    split = read_file(layout, path)
    assert split.targets[:3].tolist() == [0, labels[-1], 0]
    assert split.inputs[1, 0, :, 0].tolist() == list(range(32))  # the first bytes are the red top row
    assert split.inputs[1, 31, 31].tolist() == [0, 0, 255]  # the last byte is the blue corner
    assert int(split.inputs.sum(dtype=int)) == sum(range(32)) + 255


def test_validation_has_as_many_of_every_class(layout, made):
    (classes,) = (count for _, count in layout.labels[-1:])
    for name, records in layout.train.items():
        content = np.zeros((records, layout.record_bytes), np.uint8)
        content[:, len(layout.labels) - 1] = np.arange(records) % classes
        content.tofile(made / layout.folder / name)
    data = load(layout, made)
    assert np.bincount(data.validation.targets).tolist() == [5_000 // classes] * classes
    assert np.bincount(data.train.targets).tolist() == [45_000 // classes] * classes


@pytest.mark.parametrize(
    ("prepare", "mean", "std"),
    [
        (prepare10, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        (prepare100, [0.5071, 0.4867, 0.4408], [0.2675, 0.2565, 0.2761]),
    ],
)
def test_prepare_normalizes_every_channel(prepare, mean, std):
    raw = np.arange(256, dtype=np.uint8).reshape(-1, 1, 1, 1).repeat(3, axis=-1)
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        prepared = jax.jit(prepare)(raw)
    assert prepared.dtype == prepare(raw).dtype == np.float32
    np.testing.assert_allclose(prepared, (raw / 255.0 - mean) / std, atol=2e-6)


def test_the_real_files(cifar10_folder):
    dataset = DATASETS["cifar10"](cifar10_folder)
    for split, size in ((dataset.train, 45_000), (dataset.validation, 5_000), (dataset.test, 10_000)):
        assert split.inputs.shape == (size, *dataset.example_shape)
        assert split.inputs.dtype == np.uint8
        assert split.inputs.flags.c_contiguous
        assert np.bincount(split.targets).tolist() == [size // 10] * 10
    assert dataset.test.targets[:10].tolist() == [3, 8, 8, 0, 6, 6, 1, 6, 3, 1]
    everything = [read_file(CIFAR10, next(cifar10_folder.rglob(name))) for name in CIFAR10.train]
    total = sum(int(batch.inputs.sum(dtype=int)) for batch in everything)
    assert sum(int(split.inputs.sum(dtype=int)) for split in (dataset.train, dataset.validation)) == total
    assert everything[0].inputs[0, 0, 0].tolist() == [59, 62, 63]  # the frog that every CIFAR-10 tutorial shows
