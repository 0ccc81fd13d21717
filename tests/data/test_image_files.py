from __future__ import annotations

import os
import sys

import numpy as np
import pytest
from conftest import shared_path

from qresearch.data import image_files
from qresearch.data.digit_scenes import resize
from qresearch.data.image_files import ALONE, ImageFiles, decode, require_pillow
from qresearch.errors import DataError

Image = pytest.importorskip("PIL.Image", reason="Pillow decodes images")


def picture(height, width, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels)).astype(np.uint8)


def saved(path, pixels, mode=None):
    """A PNG, which keeps every value."""
    image = Image.fromarray(np.squeeze(pixels))
    (image if mode is None else image.convert(mode)).save(path)
    return str(path)


def by_hand(pixels):
    """The shorter side to 256, the longer one in proportion, the central 224x224."""
    height, width = pixels.shape[:2]
    shorter = min(height, width)
    size = [256 if side == shorter else 256 * side // shorter for side in (height, width)]
    top, left = (round((side - 224) / 2) for side in size)
    resized = np.stack([resize(pixels[..., c], *size) for c in range(3)], axis=-1)
    return resized[top : top + 224, left : left + 224]


@pytest.mark.parametrize(("height", "width"), [(300, 500), (40, 30), (256, 256), (20, 400), (511, 257)])
def test_decoding_is_resize_then_central_crop(tmp_path, height, width):
    pixels = picture(height, width)
    found = decode(saved(tmp_path / "a.png", pixels))
    assert (found.shape, found.dtype) == ((224, 224, 3), np.uint8)
    assert np.abs(found.astype(int) - by_hand(pixels).astype(int)).max() <= 1


def test_the_crop_is_central():
    """Of a picture whose left half is black and right half white, the edge stays in the middle."""
    pixels = np.zeros((256, 400, 3), np.uint8)
    pixels[:, 200:] = 255
    found = np.asarray(image_files._central(Image.fromarray(pixels)))
    assert (found[:, :112] == 0).all()
    assert (found[:, 112:] == 255).all()


def test_greyscale_becomes_three_equal_channels(tmp_path):
    grey = picture(40, 50, 1)
    found = decode(saved(tmp_path / "grey.png", grey))
    assert (found == found[..., :1]).all()
    np.testing.assert_array_equal(found, decode(saved(tmp_path / "rgb.png", grey.repeat(3, axis=-1))))


@pytest.mark.parametrize(("mode", "suffix"), [
    ("1", "png"), ("LA", "png"), ("P", "gif"), ("RGBA", "png"), ("CMYK", "jpg"), ("YCbCr", "jpg"), ("L", "webp"),
])  # fmt: skip
def test_other_modes_of_8_bits_are_read(tmp_path, mode, suffix):
    path = saved(tmp_path / f"a.{suffix}", np.full((30, 40, 3), 255, np.uint8), mode)
    assert decode(path).min() > 250


def test_transparency_is_left_out(tmp_path):
    opaque = picture(30, 40)
    clear = np.concatenate([opaque, np.zeros((30, 40, 1), np.uint8)], axis=-1)
    np.testing.assert_array_equal(decode(saved(tmp_path / "a.png", clear)), decode(saved(tmp_path / "b.png", opaque)))


def truncated(path):
    os.truncate(path, path.stat().st_size // 2)


def deep(path):
    Image.new("I;16", (20, 20)).save(path)


DAMAGE = {
    "truncated": (truncated, "cannot be decoded"),
    "empty": (lambda path: os.truncate(path, 0), "cannot be decoded"),
    "no image": (lambda path: path.write_text("<html>\nNot found\n</html>"), "cannot be decoded"),
    "missing": (lambda path: path.unlink(), "No such file"),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), "cannot be decoded"),
    "16 bits": (deep, "pixels of mode I;16, expected 8 bits; convert it"),
    "damaged": (lambda path: path.write_bytes(path.read_bytes()[:60] + b"\xff" * 4000), "cannot be decoded"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_file_that_is_no_whole_image_is_one_line(tmp_path, kind):
    path = tmp_path / "a.png"
    saved(path, picture(60, 60))
    damage, message = DAMAGE[kind]
    damage(path)
    with pytest.raises(DataError) as caught:
        decode(str(path))
    for fragment in (f"imagefolder: {path} ", message):
        assert fragment in str(caught.value)
    assert "\n" not in str(caught.value)


def test_without_pillow_the_command_that_installs_it_is_given(monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(DataError, match=r"pip install 'qresearch\[images\]'"):
        require_pillow()


# ---- Many images


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """(a ``Streamed`` of 40 images, their pixels decoded one by one)."""
    folder = tmp_path_factory.mktemp("many")
    names = [f"ü{i}.png" for i in range(40)]
    for i, name in enumerate(names):
        saved(folder / name, picture(20, 24, seed=i))
    return ImageFiles(folder, names), np.stack([decode(str(folder / name)) for name in names])


@pytest.mark.parametrize("indices", [
    slice(3), slice(None, None, -9), np.array([5, 5, 0]), np.array([[1, 2], [3, 4]]), -1, np.int64(7),
    np.array([], int),
])  # fmt: skip
def test_an_index_reads_what_it_would_of_an_array(many, indices):
    files, pixels = many
    np.testing.assert_array_equal(files[indices], pixels[indices])


def test_it_says_what_it_is_without_decoding(many, monkeypatch):
    files, pixels = many
    monkeypatch.setattr(image_files, "decode", None)
    assert (files.shape, files.dtype, len(files)) == (pixels.shape, pixels.dtype, 40)
    with pytest.raises(TypeError, match="40 images stay on disk"):
        np.asarray(files)


def test_a_pool_of_processes_gives_the_same_in_order_and_names_the_damaged_file(many, tmp_path, monkeypatch):
    files, pixels = many
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1}, raising=False)
    order = np.random.default_rng(0).permutation(40)
    assert len(order) > ALONE
    np.testing.assert_array_equal(files[order], pixels[order])
    workers = image_files._pool(2)._processes  # what the standard library offers to see that they were used
    assert workers
    assert os.getpid() not in workers
    (tmp_path / "no.png").write_text("no image")
    paths = [str(files.root / os.fsdecode(name)) for name in files._files]
    mixed = ImageFiles(tmp_path, [*paths[:30], "no.png"])  # an absolute path stays what it is
    with pytest.raises(DataError, match=r"no\.png cannot be decoded"):
        mixed[:]
    np.testing.assert_array_equal(files[:20], pixels[:20])  # the pool outlives a damaged file
    image_files._pool(2).shutdown()
    image_files._pool.cache_clear()


def leave(path):
    os._exit(1)


def test_a_process_that_ends_early_is_one_line(many, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1}, raising=False)
    monkeypatch.setattr(image_files, "decode", leave)
    with pytest.raises(DataError, match="a decoding process ended early; out of memory") as caught:
        many[0][:20]
    assert "\n" not in str(caught.value)


def test_few_images_start_no_process(many, monkeypatch):
    monkeypatch.setattr(image_files, "_pool", None)
    assert len(many[0][:ALONE]) == ALONE


def test_the_real_images():
    """Of 80 ImageNet photographs 23 are greyscale."""
    root = shared_path("data", "imagenet_mini", "val")
    names = sorted(str(path.relative_to(root)) for path in root.glob("*/*.JPEG"))
    with (root.parent / "labels.csv").open() as stream:
        grey = [
            line.split(",")[4] == "L" for line in sorted(stream.readlines()[1:], key=lambda line: line.split(",")[1])
        ]
    files = ImageFiles(root, names)
    chosen = np.concatenate([np.flatnonzero(grey)[:4], np.flatnonzero(np.logical_not(grey))[:4]])
    assert (len(names), sum(grey)) == (80, 23)
    equal = [(image == image[..., :1]).all() for image in files[chosen]]
    assert equal == [True] * 4 + [False] * 4
