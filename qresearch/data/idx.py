"""The idx format of MNIST and the data sets that follow it: a big-endian header, then unsigned bytes, gzipped.

LeCun, Cortes & Burges, "The MNIST database of handwritten digits", 1998, http://yann.lecun.com/exdb/mnist/.
The header is 0, 0, 8 (unsigned byte), the rank, then one 32-bit size per axis.
"""

from __future__ import annotations

import gzip
import hashlib
import math
import struct
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from qresearch.errors import DataError

UNSIGNED_BYTE = 8


class IdxFile(NamedTuple):
    """What a file must hold. ``md5``: of the unzipped content, because a copy may have been zipped again."""

    name: str
    shape: tuple[int, ...]
    md5: str

    @property
    def header(self) -> bytes:
        return struct.pack(f">HBB{len(self.shape)}I", 0, UNSIGNED_BYTE, len(self.shape), *self.shape)

    @property
    def size(self) -> int:
        """Bytes, unzipped."""
        return len(self.header) + math.prod(self.shape)


def read_idx(data_set: str, path: Path, expected: IdxFile, where: str) -> UInt8[np.ndarray, "n ..."]:
    """Reads one gzipped idx file; DataError if missing, damaged, of another format or size, or of another data set."""
    if not path.is_file():
        raise DataError(f"{data_set}: {path} is missing, expected {expected.size:,} bytes unzipped; {where}")
    content = _unzip(data_set, path, expected, where)
    header, size = content[: len(expected.header)], len(content)
    if header != expected.header:
        raise DataError(
            f"{data_set}: {path} begins with {header[:4].hex()} and sizes {_sizes(header)}, expected "
            f"{expected.header[:4].hex()} and sizes {list(expected.shape)}: it is another file; {where}"
        )
    if size != expected.size:
        raise DataError(f"{data_set}: {path} has {size:,} bytes unzipped, expected {expected.size:,}; {where}")
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != expected.md5:
        raise DataError(
            f"{data_set}: {path} has MD5 {found} unzipped, expected {expected.md5}: it is damaged, or a file of "
            f"another data set, which may have the same name; {where}"
        )
    return np.frombuffer(content, np.uint8, offset=len(expected.header)).reshape(expected.shape)


def _unzip(data_set: str, path: Path, expected: IdxFile, where: str) -> bytes:
    try:
        with gzip.open(path) as file:
            return file.read(expected.size + 1)  # no more: a wrong file may unzip to anything
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(
            f"{data_set}: {path} cannot be unzipped ({error}), so it is truncated or no gzip file; expected "
            f"{expected.size:,} bytes unzipped; {where}"
        ) from None


def _sizes(header: bytes) -> list[int]:
    count = (len(header) - 4) // 4
    return list(struct.unpack_from(f">{count}I", header, 4)) if count > 0 else []
