from __future__ import annotations

import hashlib

import numpy as np
import pytest
from conftest import shared_path

from qresearch.data import DATASETS
from qresearch.data.dataset import Split
from qresearch.data.digit_scenes import Box, compose_split, ink, resize, shared_part
from qresearch.errors import DataError

PARTS = ("train", "validation", "test")
# Of the boxes and classes composed from scikit-learn's digits: published numbers depend on them.
TARGETS = "bb427581e89023b5"


@pytest.fixture(scope="module")
def scenes():
    return DATASETS["digit_scenes"](None)


@pytest.fixture(autouse=True)
def _no_folder_named(monkeypatch):
    monkeypatch.delenv("QRESEARCH_DATA", raising=False)


def real(targets):
    return targets[targets[:, 0] >= 0]


def pixels(rows):
    return (rows[:, 1:] * 64).astype(int)


def test_shapes_and_dtypes(scenes):
    assert [len(getattr(scenes, part)) for part in PARTS] == [4000, 500, 1000]
    for part in PARTS:
        split = getattr(scenes, part)
        assert (split.inputs.dtype, split.inputs.shape[1:]) == (np.uint8, (64, 64, 1))
        assert (split.targets.dtype, split.targets.shape[1:]) == (np.float32, (4, 5))


@pytest.mark.parametrize("part", PARTS)
def test_boxes_are_whole_pixels_inside_the_canvas_of_the_stated_sizes(scenes, part):
    rows = real(getattr(scenes, part).targets.reshape(-1, 5))
    np.testing.assert_array_equal(pixels(rows) / 64, rows[:, 1:])
    y0, x0, y1, x1 = pixels(rows).T
    assert min(y0.min(), x0.min()) >= 0
    assert max(y1.max(), x1.max()) <= 64
    longest = np.maximum(y1 - y0, x1 - x0)
    assert (longest.min(), longest.max()) == (14, 28)
    assert set(rows[:, 0]) == set(range(10))


def test_one_to_four_digits_all_equally_often_then_padding(scenes):
    present = scenes.train.targets[..., 0] >= 0
    counts = present.sum(axis=1)
    assert np.all(np.abs(np.bincount(counts, minlength=5)[1:] - 1000) < 150)
    assert counts.min() == 1
    np.testing.assert_array_equal(present, np.arange(4) < counts[:, None])
    assert np.all(scenes.train.targets[~present] == [-1, 0, 0, 0, 0])


def test_boxes_share_at_most_a_tenth(scenes):
    for targets in scenes.train.targets[:500]:
        boxes = [Box(*row) for row in pixels(real(targets))]
        assert all(shared_part(a, b) <= 0.1 for i, a in enumerate(boxes) for b in boxes[:i])


def test_all_ink_lies_in_a_box_and_touches_its_edges(scenes):
    for image, targets in zip(scenes.test.inputs[:300, ..., 0], scenes.test.targets):
        outside = image.copy()
        for y0, x0, y1, x1 in pixels(real(targets)):
            outside[y0:y1, x0:x1] = 0
            box = image[y0:y1, x0:x1]
            assert all(edge.max() > 0 for edge in (box[0], box[-1], box[:, 0], box[:, -1]))
        assert not outside.any()


def test_the_digits_of_the_splits_are_different_images():
    """Every source image has a grey level of its own, which a scene shows."""

    def grey(level):
        return Split(np.full((1, 8, 8, 1), level, np.uint8), np.array([level], np.int32))

    for level in (50, 100):
        split = compose_split(grey(level), 20, stream=0)
        assert set(np.unique(split.inputs)) == {0, level}
        assert set(real(split.targets.reshape(-1, 5))[:, 0]) == {level}


def test_splits_are_different_scenes(scenes):
    assert not np.array_equal(scenes.train.targets[:500], scenes.validation.targets)


def test_a_scene_does_not_depend_on_how_many_there_are():
    source = DATASETS["digits"](None).test
    few, many = compose_split(source, 3, stream=1), compose_split(source, 9, stream=1)
    np.testing.assert_array_equal(few.inputs, many.inputs[:3])
    assert not np.array_equal(few.targets, compose_split(source, 3, stream=2).targets)


def test_the_scenes_are_stable(scenes):
    content = b"".join(getattr(scenes, part).targets.astype("<f4").tobytes() for part in PARTS)
    assert hashlib.sha256(content).hexdigest()[:16] == TARGETS


@pytest.mark.parametrize("shape", [(14, 9), (28, 28), (8, 8), (3, 20)])
def test_resize_keeps_a_constant_and_is_pillow_s(shape):
    assert np.all(resize(np.full((8, 6), 77, np.uint8), *shape) == 77)
    image_module = pytest.importorskip("PIL.Image", reason="Pillow is what resize is compared with")
    image = np.random.default_rng(0).integers(0, 256, (12, 10)).astype(np.uint8)
    expected = image_module.fromarray(image).resize(shape[::-1], image_module.Resampling.BILINEAR)
    difference = resize(image, *shape).astype(int) - np.asarray(expected).astype(int)
    assert np.abs(difference).max() <= 1


def test_ink_is_the_smallest_part_that_holds_the_strong_pixels():
    image = np.zeros((8, 8), np.uint8)
    image[2, 3], image[5, 6], image[0, 0] = 16, 8, 4
    assert ink(image).shape == (4, 4)


def test_mnist_is_used_where_the_folder_holds_it(tmp_path):
    data = DATASETS["digit_scenes"](shared_path("data", "mnist"))
    assert "MNIST" in data.source
    assert data.train.inputs.shape == (4000, 64, 64, 1)


def test_a_damaged_mnist_is_an_error_and_no_reason_for_other_digits(tmp_path):
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(b"x")
    with pytest.raises(DataError, match="train-images"):
        DATASETS["digit_scenes"](tmp_path)
