from __future__ import annotations

import gzip
import hashlib
import struct

import numpy as np
import pytest

from qresearch.data.idx import IdxFile, read_idx
from qresearch.errors import DataError

PIXELS = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
CONTENT = struct.pack(">IIII", 0x00000803, 2, 3, 4) + PIXELS.tobytes()  # as the format's description states it
EXPECTED = IdxFile("images.gz", PIXELS.shape, hashlib.md5(CONTENT).hexdigest())


def written(folder, content, zipped=True):
    path = folder / EXPECTED.name
    path.write_bytes(gzip.compress(content) if zipped else content)
    return path


def fails(path, *fragments):
    with pytest.raises(DataError) as caught:
        read_idx("mine", path, EXPECTED, "get it from https://example.org")
    message = str(caught.value)
    for fragment in ("mine: ", str(path), "get it from https://example.org", *fragments):
        assert fragment in message
    assert "\n" not in message


def test_values_are_read_in_order(tmp_path):
    np.testing.assert_array_equal(read_idx("mine", written(tmp_path, CONTENT), EXPECTED, ""), PIXELS)


def test_how_it_was_zipped_does_not_matter(tmp_path):
    path = tmp_path / EXPECTED.name
    path.write_bytes(gzip.compress(CONTENT, compresslevel=1, mtime=7))
    np.testing.assert_array_equal(read_idx("mine", path, EXPECTED, ""), PIXELS)


def test_missing(tmp_path):
    fails(tmp_path / EXPECTED.name, "is missing", "40 bytes")


@pytest.mark.parametrize("kept", [0, 5, 20, -9, -1])
def test_a_truncated_gzip_file(tmp_path, kept):
    path = written(tmp_path, gzip.compress(CONTENT)[:kept], zipped=False)
    fails(path, "40 bytes") if kept else fails(path, "it is another file")  # zero bytes unzip to zero bytes


def test_a_damaged_gzip_file(tmp_path):
    data = bytearray(gzip.compress(CONTENT))
    data[len(data) // 2] ^= 0xFF
    fails(written(tmp_path, bytes(data), zipped=False))


def test_an_unzipped_file(tmp_path):
    fails(written(tmp_path, CONTENT, zipped=False), "cannot be unzipped")


@pytest.mark.parametrize("size", [17, 39, 41])
def test_another_size_inside(tmp_path, size):
    fails(written(tmp_path, (CONTENT + bytes(5))[:size]), f"{size} bytes unzipped, expected 40")


def test_labels_in_place_of_images(tmp_path):
    labels = struct.pack(">II", 0x00000801, 2) + bytes(2)
    fails(written(tmp_path, labels), "begins with 00000801", "expected 00000803", "[2, 3, 4]")


def test_another_number_of_images(tmp_path):
    fails(written(tmp_path, struct.pack(">IIII", 0x803, 9, 3, 4) + bytes(9 * 12)), "sizes [9, 3, 4]")


def test_other_content_of_the_same_shape(tmp_path):
    fails(written(tmp_path, CONTENT[:-1] + b"\0"), "MD5", EXPECTED.md5, "another data set")
