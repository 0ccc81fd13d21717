"""Detection on scenes of one to four real handwritten digits, composed with a seed on a black canvas of 64x64.

The digits are MNIST's where the data folder holds it, else scikit-learn's 8x8 images; those of the three splits are
different images. A digit is cut to its ink and scaled so that its longer side is 14 to 28 pixels, so that its box is
tight. At most a tenth of the smaller of two boxes is shared.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from qresearch.data.dataset import Dataset, Split, resolve_folder
from qresearch.data.digits import load_digits
from qresearch.data.mnist import MNIST, find_files, load_mnist

CANVAS = 64
MOST = 4  # digits in a scene
SMALLEST, LARGEST = 14, 28
SHARED = 0.1
TRIES = 30
SCENES = {"train": 4_000, "validation": 500, "test": 1_000}
SEED = 0  # fixed: every result has the same scenes
PADDING = (-1.0, 0.0, 0.0, 0.0, 0.0)

# (exclusive upper bound) -> a whole number from 0
Draw = Callable[[int], int]


class Box(NamedTuple):
    """Pixels: from y0, x0 up to and without y1, x1."""

    y0: int
    x0: int
    y1: int
    x1: int


def prepare(inputs: Any) -> Any:
    """Computes ``x / 255`` in float32. ``inputs``: [n, 64, 64, 1]."""
    return inputs.astype(np.float32) / 255


def resize(image: UInt8[np.ndarray, "h w"], height: int, width: int) -> UInt8[np.ndarray, "height width"]:
    """Computes bilinear interpolation with the triangle filter widened when shrinking, as Pillow does."""
    rows, columns = _weights(image.shape[0], height), _weights(image.shape[1], width)
    return np.rint(rows @ image.astype(np.float64) @ columns.T).astype(np.uint8)


def _weights(before: int, after: int) -> Float[np.ndarray, "after before"]:
    step = before / after
    centre = (np.arange(after) + 0.5) * step - 0.5
    distance = np.abs(np.arange(before) - centre[:, None]) / max(step, 1.0)
    weight = np.maximum(1 - distance, 0)
    return weight / weight.sum(axis=1, keepdims=True)


def ink(image: UInt8[np.ndarray, "h w"]) -> UInt8[np.ndarray, "rows columns"]:
    """Returns the part of an image that holds all pixels above a quarter of its maximum."""
    strong = image > image.max() / 4
    (rows,), (columns,) = strong.any(axis=1).nonzero(), strong.any(axis=0).nonzero()
    return image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def shared_part(a: Box, b: Box) -> float:
    """Computes the area that two boxes share, as a part of the smaller one."""
    height = min(a.y1, b.y1) - max(a.y0, b.y0)
    width = min(a.x1, b.x1) - max(a.x0, b.x0)
    smaller = min((box.y1 - box.y0) * (box.x1 - box.x0) for box in (a, b))
    return max(height, 0) * max(width, 0) / smaller


def compose(source: Split, draw: Draw) -> tuple[UInt8[np.ndarray, "64 64 1"], Float[np.ndarray, "4 5"]]:
    """Composes one scene: its canvas and the rows (class, y0, x0, y1, x1) of its digits in fractions of the canvas.

    A digit for which no place is found in some tries is left out; the first always has one.
    """
    canvas = np.zeros((CANVAS, CANVAS), np.uint8)
    targets = np.full((MOST, 5), PADDING, np.float32)
    boxes: list[Box] = []
    for _ in range(1 + draw(MOST)):
        chosen = draw(len(source))
        digit = ink(np.asarray(source.inputs[chosen])[..., 0])
        box = _place(digit.shape, boxes, draw)
        if box is not None:
            part = canvas[box.y0 : box.y1, box.x0 : box.x1]
            np.maximum(part, resize(digit, *part.shape), out=part)
            targets[len(boxes)] = (source.targets[chosen], *(edge / CANVAS for edge in box))
            boxes.append(box)
    return canvas[..., None], targets


def _place(shape: tuple[int, ...], boxes: list[Box], draw: Draw) -> Box | None:
    for _ in range(TRIES):
        longest = SMALLEST + draw(LARGEST - SMALLEST + 1)
        height, width = (max(1, round(longest * side / max(shape))) for side in shape)
        y, x = draw(CANVAS - height + 1), draw(CANVAS - width + 1)
        box = Box(y, x, y + height, x + width)
        if all(shared_part(box, other) <= SHARED for other in boxes):
            return box
    return None


def compose_split(source: Split, count: int, stream: int) -> Split:
    """Composes ``count`` scenes; scene ``i`` depends on its source, the seed, ``stream`` and ``i`` alone."""
    scenes = [compose(source, _draws(stream, i)) for i in range(count)]
    return Split(np.stack([canvas for canvas, _ in scenes]), np.stack([targets for _, targets in scenes]))


def _draws(stream: int, scene: int) -> Draw:
    # Raw draws: NumPy promises the stream of a bit generator, but not the algorithms of Generator. The remainder
    # prefers small numbers by less than 1 in 10^15.
    bits = np.random.PCG64(np.random.SeedSequence(SEED, spawn_key=(stream, scene)))
    return lambda bound: int(bits.random_raw()) % bound


def _full_scale(split: Split) -> Split:
    # scikit-learn's 0..16 to MNIST's 0..255
    return Split((np.asarray(split.inputs).astype(np.int32) * 255 // 16).astype(np.uint8), split.targets)


def load_digit_scenes(folder: Path | None = None) -> Dataset:
    """Composes 4,000 / 500 / 1,000 detection scenes from MNIST if the folder holds it, else scikit-learn's digits."""
    resolved = resolve_folder(folder)
    from_mnist = resolved is not None and find_files(MNIST, resolved) is not None
    source = load_mnist(resolved) if from_mnist else load_digits()
    splits = {part: getattr(source, part) for part in SCENES}
    if not from_mnist:
        splits = {part: _full_scale(split) for part, split in splits.items()}
    composed = {part: compose_split(splits[part], count, i) for i, (part, count) in enumerate(SCENES.items())}
    return Dataset(
        name="digit_scenes",
        **composed,
        classes=10,
        prepare=prepare,
        example_shape=(CANVAS, CANVAS, 1),
        source=f"scenes composed from {source.source}",
    )
