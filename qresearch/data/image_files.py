"""Images that stay on disk: decoded when they are asked for, by a pool of processes.

The decoding is the standard evaluation of ImageNet classifiers, He et al., "Deep Residual Learning for Image
Recognition", 2015, https://arxiv.org/abs/1512.03385, as torchvision does it: to RGB, the shorter side to 256 by
antialiased bilinear interpolation, the central 224x224. EXIF orientation is not applied, as there.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from qresearch.errors import DataError

SHORTER, SIDE = 256, 224
SHAPE = (SIDE, SIDE, 3)
ALONE = 16  # so few images are decoded in this process: starting the pool takes longer
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")  # 8 bits; Pillow would saturate deeper ones


def require_pillow() -> None:
    """Raises DataError, with the command that installs it, if Pillow is missing."""
    try:
        import PIL  # noqa: F401
    except ImportError:
        raise DataError(
            "imagefolder: Pillow, which decodes images, is not installed; install it: pip install 'qresearch[images]'"
        ) from None


def decode(path: str) -> UInt8[np.ndarray, "224 224 3"]:
    """Reads one image file as RGB, resized and cropped; DataError if it is damaged or deeper than 8 bits."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            if image.mode not in MODES:
                raise DataError(
                    f"imagefolder: {path} has pixels of mode {image.mode}, expected 8 bits; convert it, or remove it"
                )
            return _central(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # what Pillow's readers raise
        raise DataError(
            f"imagefolder: {path} cannot be decoded ({' '.join(str(error).split())}), expected a whole image file; get "
            "it again, or remove it"
        ) from None


def _central(image: Any) -> UInt8[np.ndarray, "224 224 3"]:
    from PIL import Image

    shorter = min(image.size)
    width, height = (SHORTER if side == shorter else SHORTER * side // shorter for side in image.size)
    left, top = round((width - SIDE) / 2), round((height - SIDE) / 2)
    resized = image.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(resized.crop((left, top, left + SIDE, top + SIDE)), np.uint8)


class ImageFiles:
    """Images [n, 224, 224, 3] of uint8, as a ``Streamed``: holds file names, never pixels.

    files: relative to root. ``[indices]``, an index array or a slice, decodes just those images.
    """

    dtype: np.dtype[Any] = np.dtype(np.uint8)

    def __init__(self, root: Path, files: Iterable[str]) -> None:
        self.root = root
        # One block of bytes: a million Python strings would take three times the memory.
        self._files = np.array([os.fsencode(file) for file in files], np.bytes_)

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self._files), *SHAPE)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, indices: Any, /) -> UInt8[np.ndarray, "... 224 224 3"]:
        chosen = self._files[indices]
        paths = [os.path.join(self.root, os.fsdecode(file)) for file in np.ravel(chosen)]
        images = np.empty((len(paths), *SHAPE), np.uint8)
        for i, image in enumerate(_decode_all(paths)):
            images[i] = image
        return images.reshape(*np.shape(chosen), *SHAPE)

    def __array__(self, *arguments: Any, **more: Any) -> np.ndarray:
        raise TypeError(f"{len(self):,} images stay on disk: index them, instead of making one array of all")


def _decode_all(paths: list[str]) -> Iterable[np.ndarray]:
    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if len(paths) <= ALONE or workers == 1:
        return map(decode, paths)
    return _decode_in_pool(paths, workers)


def _decode_in_pool(paths: list[str], workers: int) -> Iterable[np.ndarray]:
    share = max(1, min(16, len(paths) // (4 * workers)))
    try:
        yield from _pool(workers).map(decode, paths, chunksize=share)
    except BrokenProcessPool:
        _pool.cache_clear()
        raise DataError(
            "imagefolder: a decoding process ended early; out of memory, or a script that starts a run outside of "
            "'if __name__ == \"__main__\":'"
        ) from None


@functools.lru_cache(maxsize=1)
def _pool(workers: int) -> ProcessPoolExecutor:
    # spawn: a fork would copy the locks of JAX's threads in whatever state they are.
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, context, initializer=_ignore_interrupts)


def _ignore_interrupts() -> None:
    # Ctrl-C goes to every process of the terminal; the main one alone answers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
