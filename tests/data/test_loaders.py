"""What every loader keeps, by the registry: a new data set cannot escape."""

from __future__ import annotations

import re

import numpy as np
import pytest
from made_files import KINDS, MADE

from qresearch.data import DATASETS, digit_scenes
from qresearch.errors import DataError

BUILT_IN = {"digits", "digit_scenes"}  # these need no folder
NO_FILES = {"digits"}  # nothing of it can be missing: scikit-learn holds it


@pytest.fixture(autouse=True)
def _no_folder_named_and_few_scenes(monkeypatch):
    monkeypatch.delenv("QRESEARCH_DATA", raising=False)
    monkeypatch.setattr(digit_scenes, "SCENES", {"train": 40, "validation": 10, "test": 10})


def failure(name, folder):
    with pytest.raises(DataError) as caught:
        DATASETS[name](folder)
    return str(caught.value)


@pytest.mark.parametrize("name", sorted(DATASETS))
@pytest.mark.parametrize("place", ["nowhere", "missing", "empty"])
def test_without_files_it_loads_or_says_in_one_line_where_to_get_them(name, place, tmp_path):
    folder = {"nowhere": None, "missing": tmp_path / "missing", "empty": tmp_path}[place]
    if name in BUILT_IN:
        assert DATASETS[name](folder).name == name
        return
    message = failure(name, folder)
    assert message.startswith(f"{name}: ")
    assert "\n" not in message
    for fragment in ("QRESEARCH_DATA", "data.folder", "://", *([str(folder)] if folder else [])):
        assert fragment in message


@pytest.mark.parametrize("name", sorted(set(DATASETS) - NO_FILES))
@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_file_is_one_line_that_names_it_and_says_what_was_expected(name, kind, tmp_path, monkeypatch):
    MADE[name].write(tmp_path, monkeypatch)
    place, expected = MADE[name].damage[kind](tmp_path)
    with pytest.raises(DataError) as caught:
        # What is streamed is read when it is asked for.
        DATASETS[name](tmp_path).train.inputs[:]
    message = str(caught.value)
    assert "\n" not in message
    for fragment in (": ", str(place), expected):
        assert fragment in message
    assert re.search(r"; (get|set|convert|expected) ", message)  # what to do comes last


@pytest.mark.parametrize("name", sorted(set(DATASETS) - NO_FILES - {"digit_scenes"}))
def test_whole_files_are_read(name, tmp_path, monkeypatch):
    """What the test above damages is a data set; the sizes and the values are in each loader's own tests."""
    MADE[name].write(tmp_path, monkeypatch)
    data = DATASETS[name](tmp_path)
    assert data.name == name
    for split in (data.train, data.validation, data.test):
        assert len(split) == len(split.inputs) > 0
        prepared = data.prepare(split.inputs[:2])
        assert prepared.shape == (min(2, len(split)), *data.example_shape)


@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_splits_agree_with_what_the_data_set_says_of_itself(name):
    data = DATASETS[name](None)
    for split in (data.train, data.validation, data.test):
        assert len(split) == len(split.inputs) == len(split.targets) > 0
        prepared = data.prepare(split.inputs[np.arange(3)])
        assert prepared.shape == (3, *data.example_shape)
        assert prepared.dtype == np.float32
        assert 0 <= prepared.min() < prepared.max() <= 1


@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_loading_again_gives_the_same(name):
    first, second = DATASETS[name](None), DATASETS[name](None)
    for part in ("train", "validation", "test"):
        np.testing.assert_array_equal(getattr(first, part).inputs, getattr(second, part).inputs)
        np.testing.assert_array_equal(getattr(first, part).targets, getattr(second, part).targets)
