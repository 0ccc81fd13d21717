from __future__ import annotations

import numpy as np
import pytest
from conftest import shared_path

from qresearch.data import DATASETS
from qresearch.data.text import LENGTH, TINYSHAKESPEARE
from qresearch.errors import DataError

load = DATASETS["text"]
ALPHABET = sorted("\nabc déλ\r𝄞")  # one to four bytes each in utf-8


def some_text(characters, seed=0):
    return "".join(ALPHABET[i] for i in np.random.default_rng(seed).integers(len(ALPHABET), size=characters))


def written(folder, text, name="mine.txt"):
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(text.encode("utf-8"))
    return folder


def fails(folder, *fragments):
    with pytest.raises(DataError) as caught:
        load(folder)
    for fragment in ("text: ", *fragments):
        assert fragment in str(caught.value)
    assert "\n" not in str(caught.value)


def decoded(ids):
    return "".join(ALPHABET[i] for i in np.ravel(ids))


@pytest.mark.parametrize("characters", [2600, 10_000, 10_019])
def test_chunks_are_the_text_and_targets_come_one_character_later(tmp_path, characters):
    text = some_text(characters)
    data = load(written(tmp_path, text))
    end = characters - characters // 10  # of what is not test
    before = [i * LENGTH for i in range((end - 1) // LENGTH)]
    starts = {
        "train": [start for i, start in enumerate(before) if i % 18 != 17],
        "validation": [start for i, start in enumerate(before) if i % 18 == 17],
        "test": [end + i * LENGTH for i in range((characters - end - 1) // LENGTH)],
    }
    for part, places in starts.items():
        split = getattr(data, part)
        assert split.inputs.dtype == split.targets.dtype == np.int32
        assert split.inputs.shape == split.targets.shape == (len(places), LENGTH)
        for row, place in enumerate(places):
            assert decoded(split.inputs[row]) == text[place : place + LENGTH]
            assert decoded(split.targets[row]) == text[place + 1 : place + 1 + LENGTH]
    assert before[-1] + LENGTH < end  # no target comes from the test split


def test_classes_are_the_vocabulary_and_inputs_need_no_preparation(tmp_path):
    data = load(written(tmp_path, some_text(3000)))
    assert data.classes == len(ALPHABET)
    assert data.example_shape == (LENGTH,)
    assert data.prepare(data.train.inputs) is data.train.inputs


def test_tinyshakespeare_goes_before_other_files(tmp_path):
    written(tmp_path, some_text(3000), "other.txt")
    written(tmp_path / "text", "x", TINYSHAKESPEARE)
    fails(tmp_path, TINYSHAKESPEARE, "1 bytes")


@pytest.mark.parametrize("place", [".", "text"])
def test_the_only_file_is_found_in_the_folder_and_in_text(tmp_path, place):
    written(tmp_path / place, some_text(3000))
    assert load(tmp_path).source == "text file mine.txt"


def test_several_files(tmp_path):
    written(written(tmp_path, "a", "one.txt"), "b", "two.txt")
    fails(tmp_path, "2 .txt files (one.txt, two.txt)", "just one", "https://")


def test_a_truncated_or_changed_tinyshakespeare(tmp_path):
    written(tmp_path, some_text(3000), TINYSHAKESPEARE)
    fails(tmp_path, TINYSHAKESPEARE, "expected 1,115,394", "truncated", "SHA-256", "https://")


def test_another_encoding(tmp_path):
    (tmp_path / "mine.txt").write_bytes("é".encode("latin-1") * 5000)
    fails(tmp_path, "mine.txt", "not utf-8", "0xe9 at 0")


@pytest.mark.parametrize("characters", [0, 100, 2579])
def test_too_short(tmp_path, characters):
    fails(written(tmp_path, "x" * characters), f"{characters:,} characters", "2,580")


def test_the_shortest_text(tmp_path):
    data = load(written(tmp_path, "x" * 2580))
    assert [len(split) for split in (data.train, data.validation, data.test)] == [17, 1, 2]


def test_the_real_file():
    data = load(shared_path("data", "text", TINYSHAKESPEARE).parent.parent)
    assert data.classes == 65
    assert sum(split.inputs.size for split in (data.train, data.validation, data.test)) > 1_115_394 - 3 * 129
