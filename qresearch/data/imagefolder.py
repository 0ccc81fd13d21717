"""A folder of classes, as ImageNet is usually laid out: ``train/<class>/*`` and/or ``val/<class>/*``, streamed.

Russakovsky et al., "ImageNet Large Scale Visual Recognition Challenge", 2015, https://arxiv.org/abs/1409.0575.
A class is a folder name, numbered in sorted order (ImageNet's own numbers, where all thousand are there). Splits are
fixed draws with the classes in proportion, in an order of which every beginning is such a draw:

    train/ and val/    5 % of train/ (at most 10,000) is validation, val/ is test
    one of them only   80 / 10 / 10 % of train/; 10 / 10 / 80 % of val/, which is for post-training quantization
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from qresearch.data.cifar10 import prepare  # ImageNet's channel statistics
from qresearch.data.dataset import FOLDER_VARIABLE, Dataset, Split, require_folder, stratified_order
from qresearch.data.image_files import SHAPE, ImageFiles, require_pillow
from qresearch.errors import DataError

NAME = "imagefolder"
SUFFIXES = (".jpeg", ".jpg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff")
LARGEST_VALIDATION, FEWEST = 10_000, 20  # FEWEST: a twentieth of them is one image
SPLIT_SEED = 0  # fixed: every result has the same validation images

WHERE = (
    f"set data.folder or {FOLDER_VARIABLE} to a folder that holds train/<class>/*.JPEG or val/<class>/*.JPEG, or to "
    f"the parent of such a folder named {NAME}; ImageNet: ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar from "
    "https://image-net.org/download"
)


class Listing(NamedTuple):
    """The image files of train/ or val/, relative to the root, and their class numbers."""

    files: list[str]
    targets: np.ndarray


def find_root(folder: Path | None) -> Path:
    """Returns the folder that holds train/ or val/: ``folder`` (else QRESEARCH_DATA), or ``imagefolder`` in it."""
    resolved = require_folder(NAME, folder, WHERE)
    places = (resolved / NAME, resolved)
    found = next((place for place in places if any((place / part).is_dir() for part in ("train", "val"))), None)
    if found is None:
        raise DataError(f"{NAME}: no train/ and no val/ in {resolved} or {resolved / NAME}; {WHERE}")
    return found


def class_names(part: Path) -> list[str]:
    """Returns the names of the class folders in train/ or val/, sorted; none where it does not exist."""
    if not part.is_dir():
        return []
    return sorted(entry.name for entry in part.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def list_images(root: Path, part: str, classes: list[str]) -> Listing:
    """Lists the image files of ``root/part``; DataError for a class folder without any."""
    files: list[str] = []
    counts = []
    for name in classes:
        inside = sorted(entry for entry in os.listdir(root / part / name) if _is_image(entry))
        if not inside:
            raise DataError(
                f"{NAME}: no image in {root / part / name}, expected files named *{', *'.join(SUFFIXES)}; {WHERE}"
            )
        files += [os.path.join(part, name, entry) for entry in inside]
        counts.append(len(inside))
    return Listing(files, np.repeat(np.arange(len(classes), dtype=np.int32), counts))


def _is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")  # macOS leaves ._x.JPEG beside x.JPEG


def _classes(root: Path) -> tuple[dict[str, list[str]], list[str]]:
    """The class names of each part that exists, and of both; DataError where the parts have different classes."""
    named = {part: names for part in ("train", "val") if (names := class_names(root / part))}
    if not named:
        raise DataError(f"{NAME}: no class folder in {root / 'train'} or {root / 'val'}; {WHERE}")
    first = next(iter(named.values()))
    if len(named) == 2 and (different := sorted(set(named["train"]) ^ set(named["val"]))):
        raise DataError(
            f"{NAME}: train/ and val/ of {root} have different classes, {len(different)} of them in one only, "
            f"such as '{different[0]}'; expected the same class folders in both"
        )
    return named, first


def load_imagefolder(folder: Path | None = None) -> Dataset:
    """Streams uint8 images of 224x224 from a folder of classes: Pillow decodes them when they are asked for."""
    require_pillow()
    root = find_root(folder)
    named, classes = _classes(root)
    listings = {part: list_images(root, part, names) for part, names in named.items()}
    train, validation, test = _splits(root, listings)
    return Dataset(NAME, train, validation, test, len(classes), prepare, SHAPE, f"folder of classes {root.name}")


def _splits(root: Path, listings: dict[str, Listing]) -> list[Split]:
    part, listing = next(iter(listings.items()))
    count = len(listing.files)
    if count < FEWEST:
        raise DataError(f"{NAME}: {root / part} holds {count} images, expected at least {FEWEST} to split; {WHERE}")
    if len(listings) == 2:
        validation, train = _cut(root, listing, [min(count // 20, LARGEST_VALIDATION)])
        return [train, validation, *_cut(root, listings["val"], [])]
    validation, smaller, larger = _cut(root, listing, [count // 10, count // 10 * 2])
    return [larger, validation, smaller] if part == "train" else [smaller, validation, larger]


def _cut(root: Path, listing: Listing, places: list[int]) -> list[Split]:
    order = stratified_order(listing.targets, SPLIT_SEED)
    return [
        Split(ImageFiles(root, [listing.files[i] for i in part]), listing.targets[part])
        for part in np.split(order, places)
    ]
