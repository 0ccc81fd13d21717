"""Small files in the official format of every data set, and what may be wrong with them: a new one adds its line."""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest

from qresearch.data import mnist, text
from qresearch.data.cifar10 import CIFAR10
from qresearch.data.cifar100 import CIFAR100
from qresearch.data.idx import IdxFile

KINDS = ("missing", "truncated", "mislabelled", "another size")


class Made(NamedTuple):
    """``write(folder, monkeypatch)`` makes a whole data set; ``damage[kind](folder)`` spoils one file of it and returns
    that file, or the folder that is wrong, and what the message must say was expected.
    """

    write: Callable
    damage: dict[str, Callable]


def remove(path):
    path.unlink()
    return path


def shorten(path, by=20):
    os.truncate(path, path.stat().st_size - by)
    return path


def put(path, place, content):
    with path.open("r+b") as file:
        file.seek(place)
        file.write(content)
    return path


def replace(path, content):
    path.write_bytes(content)
    return path


# ---- CIFAR: black images of class 0 in sparse files, which take no room on disk


def write_sparse(folder, layout, sizes):
    (folder / layout).mkdir()
    for name, size in sizes.items():
        (folder / layout / name).touch()
        os.truncate(folder / layout / name, size)


def write_cifar(layout):
    def write(folder, monkeypatch):
        sizes = {name: records * layout.record_bytes for name, records in layout.files.items()}
        write_sparse(folder, layout.folder, sizes)

    return write


def cifar_damage(layout, test, other, record):
    """The file's true size is the expectation, but for labels."""
    at = f"{layout}/{test}"
    return {
        "missing": lambda folder: (remove(folder / at), "30,7"),
        "truncated": lambda folder: (shorten(folder / at), "30,7"),
        "mislabelled": lambda folder: (put(folder / at, 5 * record, bytes([200])), "0 to"),
        "another size": lambda folder: (replace(folder / at, bytes(other)), "30,7"),
    }


# ---- MNIST: 60 and 20 images, and the loader told to expect just these


SOURCES = {"mnist": "MNIST", "fashion_mnist": "FASHION_MNIST"}
ORIGINAL = {name: getattr(mnist, attribute) for name, attribute in SOURCES.items()}


def write_idx(path, array):
    """One official file; returns what a loader must expect of it."""
    header = IdxFile("", array.shape, "").header
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(gzip.compress(header + array.tobytes()))
    return IdxFile(path.name, array.shape, hashlib.md5(header + array.tobytes()).hexdigest())


def write_mnist(name, folder, monkeypatch, wrong_label=False):
    rng = np.random.default_rng(0)
    parts = {}
    for part, prefix, count in (("train", "train", 60), ("test", "t10k", 20)):
        images = rng.integers(0, 256, (count, 28, 28)).astype(np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        labels[7] = 10 if wrong_label else labels[7]
        names = f"{prefix}-{mnist.IMAGES}", f"{prefix}-{mnist.LABELS}"
        parts[part] = tuple(write_idx(folder / name / file, a) for file, a in zip(names, (images, labels)))
    monkeypatch.setattr(mnist, SOURCES[name], ORIGINAL[name]._replace(**parts, validation=10))


def made_mnist(name):
    images, labels = (f"{name}/t10k-{kind}" for kind in (mnist.IMAGES, mnist.LABELS))

    def relabel(path):
        content = bytearray(gzip.decompress(path.read_bytes()))
        content[-1] ^= 1
        return replace(path, gzip.compress(bytes(content)))

    def other_images(folder):
        shutil.copy(folder / name / f"train-{mnist.IMAGES}", folder / images)
        return folder / images

    return Made(
        lambda folder, monkeypatch: write_mnist(name, folder, monkeypatch),
        {
            "missing": lambda folder: (remove(folder / images), "15,696 bytes"),
            "truncated": lambda folder: (shorten(folder / images), "15,696 bytes"),
            "mislabelled": lambda folder: (relabel(folder / labels), "expected "),
            "another size": lambda folder: (other_images(folder), "[20, 28, 28]"),
        },
    )


# ---- A folder of classes


def write_images(folder, part="train", classes=("ant", "bee"), count=15, suffix=".png"):
    """``count`` images a class of 24x16 pixels, no two alike."""
    image_module = pytest.importorskip("PIL.Image", reason="image folders need Pillow")
    for label, name in enumerate(classes):
        (folder / part / name).mkdir(parents=True)
        for i in range(count):
            pixels = np.full((16, 24, 3), (label * 100 + i, 10 * i, 50), np.uint8)
            image_module.fromarray(pixels).save(folder / part / name / f"{i:03d}{suffix}")


def write_imagefolder(folder, monkeypatch):
    write_images(folder, suffix=".jpeg")


def spoil_all(folder, spoil):
    """Every image of one class, so that the training images hold one whatever the split."""
    for path in sorted((folder / "train" / "bee").iterdir()):
        spoil(path)
    return folder / "train" / "bee"


def deepen(path):
    import PIL.Image

    PIL.Image.new("I;16", (20, 20)).save(path, format="PNG")
    return path


def unequal_classes(folder):
    write_images(folder, "val", ("ant", "wasp"), count=2)
    return folder


# ---- Text


def write_shakespeare(folder, monkeypatch):
    content = b"To be, or not to be. " * 200
    monkeypatch.setattr(text, "BYTES", len(content))
    monkeypatch.setattr(text, "SHA256", hashlib.sha256(content).hexdigest())
    (folder / text.TINYSHAKESPEARE).write_bytes(content)


TEXT = text.TINYSHAKESPEARE

MADE = {
    "cifar10": Made(write_cifar(CIFAR10), cifar_damage(CIFAR10.folder, "test_batch.bin", 30_740_000, 3073)),
    "cifar100": Made(write_cifar(CIFAR100), cifar_damage(CIFAR100.folder, "test.bin", 30_730_000, 3074)),
    "mnist": made_mnist("mnist"),
    "fashion_mnist": made_mnist("fashion_mnist"),
    "digit_scenes": made_mnist("mnist"),  # composed from it where the folder holds it
    "imagefolder": Made(
        write_imagefolder,
        {
            "missing": lambda folder: (spoil_all(folder, remove), "expected files named"),
            "truncated": lambda folder: (spoil_all(folder, lambda path: shorten(path, 100)), "a whole image file"),
            "mislabelled": lambda folder: (unequal_classes(folder), "the same class folders"),
            "another size": lambda folder: (spoil_all(folder, deepen), "expected 8 bits"),
        },
    ),
    "text": Made(
        write_shakespeare,
        {
            "missing": lambda folder: (remove(folder / TEXT).parent, f"expected {TEXT}"),
            "truncated": lambda folder: (shorten(folder / TEXT), "expected 4,200"),
            "mislabelled": lambda folder: (replace(folder / TEXT, b"x" * 4200), "SHA-256"),
            "another size": lambda folder: (replace(folder / TEXT, b"To be" * 1000), "expected 4,200"),
        },
    ),
}
