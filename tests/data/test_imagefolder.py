from __future__ import annotations

import shutil
import tracemalloc

import numpy as np
import pytest
from conftest import shared_path
from made_files import write_images

from qresearch.data import DATASETS, image_files
from qresearch.errors import DataError

load = DATASETS["imagefolder"]
PARTS = ("train", "validation", "test")


@pytest.fixture(autouse=True)
def _no_folder_named(monkeypatch):
    monkeypatch.delenv("QRESEARCH_DATA", raising=False)


def splits(data):
    return {part: getattr(data, part) for part in PARTS}


def files_of(split):
    return [name.decode() for name in split.inputs._files]


def fails(folder, *fragments):
    with pytest.raises(DataError) as caught:
        load(folder)
    for fragment in ("imagefolder: ", *fragments):
        assert fragment in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.fixture
def both(tmp_path):
    """100 training images in two classes, 20 to test."""
    write_images(tmp_path, "train", count=50)
    write_images(tmp_path, "val", count=10)
    return tmp_path


@pytest.mark.parametrize("inside", [False, True])
def test_the_folder_itself_and_its_parent_are_accepted(tmp_path, inside):
    write_images(tmp_path / "imagefolder")
    data = load(tmp_path / "imagefolder" if inside else tmp_path)
    assert (data.name, data.classes, data.example_shape) == ("imagefolder", 2, (224, 224, 3))


def test_with_both_parts_val_is_the_test_and_a_twentieth_of_train_validation(both):
    data = load(both)
    assert [len(split) for split in splits(data).values()] == [95, 5, 20]
    assert all(name.startswith("val/") for name in files_of(data.test))
    names = files_of(data.train) + files_of(data.validation)
    assert len(set(names)) == 100
    assert all(name.startswith("train/") for name in names)


@pytest.mark.parametrize(("part", "sizes"), [("train", [80, 10, 10]), ("val", [10, 10, 80])])
def test_one_part_alone_is_cut_in_three(tmp_path, part, sizes):
    write_images(tmp_path, part, count=50)
    data = load(tmp_path)
    assert [len(split) for split in splits(data).values()] == sizes
    assert len({name for split in splits(data).values() for name in files_of(split)}) == 100
    for split in splits(data).values():  # the classes in proportion, also in every beginning
        assert np.bincount(split.targets).tolist() == [len(split) // 2] * 2
        assert abs(np.bincount(split.targets[:4], minlength=2)[0] - 2) <= 1


def test_targets_are_the_sorted_classes_of_their_files(both):
    for split in splits(load(both)).values():
        assert split.targets.dtype == np.int32
        assert [("ant", "bee")[label] for label in split.targets] == [name.split("/")[1] for name in files_of(split)]
        for i in range(3):  # and the pixels are those of the file: every image has a colour of its own
            label, number = split.targets[i], int(files_of(split)[i].split("/")[2][:3])
            assert split.inputs[i][0, 0].tolist() == [label * 100 + number, 10 * number % 256, 50]


def test_the_split_does_not_depend_on_the_order_of_the_file_system_or_on_the_folder(both, tmp_path_factory):
    other = tmp_path_factory.mktemp("other") / "copy"
    shutil.copytree(both, other)
    for a, b in zip(splits(load(both)).values(), splits(load(other)).values()):
        assert files_of(a) == files_of(b)
        np.testing.assert_array_equal(a.targets, b.targets)


def test_other_files_and_hidden_folders_are_not_images(both):
    (both / "train" / "ant" / "readme.txt").write_text("x")
    (both / "train" / "ant" / "._000.png").write_text("x")
    (both / "train" / ".cache").mkdir()
    (both / "train" / "list.csv").write_text("x")
    assert len(load(both).train) == 95


def test_a_class_without_images(both):
    (both / "val" / "cat").mkdir()
    (both / "train" / "cat").mkdir()
    fails(both, "no image in", "cat", "expected files named *.jpeg", "QRESEARCH_DATA", "https://image-net.org")


def test_different_classes(both):
    shutil.rmtree(both / "val" / "ant")
    fails(both, "different classes, 1 of them in one only, such as 'ant'", "the same class folders")


def test_images_that_are_not_in_classes(tmp_path):
    write_images(tmp_path)
    for path in list((tmp_path / "train").rglob("*.png")):
        path.rename(tmp_path / "train" / f"{path.parent.name}{path.name}")
    for name in ("ant", "bee"):
        (tmp_path / "train" / name).rmdir()
    fails(tmp_path, "no class folder in", "train/<class>/*.JPEG")


def test_too_few_images(tmp_path):
    write_images(tmp_path, count=9)
    fails(tmp_path, "holds 18 images, expected at least 20")


def test_prepare_is_imagenets(both):
    data = load(both)
    raw = np.full((1, 2, 2, 3), 255, np.uint8)
    np.testing.assert_allclose(
        data.prepare(raw)[0, 0, 0], (1 - np.array([0.485, 0.456, 0.406])) / [0.229, 0.224, 0.225]
    )


def peak_of(folder, monkeypatch):
    """The most memory that Python and NumPy held while loading and while going through every image, in bytes."""
    image = np.zeros(image_files.SHAPE, np.uint8)
    monkeypatch.setattr(image_files, "decode", lambda path: image)
    tracemalloc.start()
    try:
        data = load(folder)
        for split in splits(data).values():
            for start in range(0, len(split), 8):
                split.inputs[start : start + 8]
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_grows_by_file_names_alone(tmp_path, monkeypatch):
    peaks = []
    for count in (20, 1020):
        for name in ("ant", "bee"):
            (tmp_path / str(count) / "train" / name).mkdir(parents=True)
            for i in range(count):
                (tmp_path / str(count) / "train" / name / f"{i:04d}.png").touch()
        peaks.append(peak_of(tmp_path / str(count), monkeypatch))
    assert peaks[0] > 8 * 224 * 224 * 3
    # 2,000 more images of 150 kB each: a thousandth of that for names and labels, and what listing them takes.
    assert peaks[1] - peaks[0] < 2000 * 500


def test_the_real_images():
    root = shared_path("data", "imagenet_mini")
    data = load(root)
    assert [len(split) for split in splits(data).values()] == [8, 8, 64]
    assert data.classes == 80
    assert sorted(np.concatenate([split.targets for split in splits(data).values()])) == list(range(80))
    prepared = data.prepare(data.train.inputs[:2])
    assert prepared.shape == (2, 224, 224, 3)
    assert 0.2 < prepared.std() < 3
