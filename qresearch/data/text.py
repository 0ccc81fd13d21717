"""A text file at character level: what comes next after each of 128 characters.

The default file is tinyshakespeare, 1,115,394 characters: Karpathy, "The Unreasonable Effectiveness of Recurrent Neural
Networks", 2015, https://github.com/karpathy/char-rnn/tree/master/data/tinyshakespeare.
The last tenth of the characters is the test split. Of the chunks before it every 18th, a twentieth of the text, is
validation: a block of its own would be the text that test is most like, as plays are in it one after the other.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32

from qresearch.data.dataset import FOLDER_VARIABLE, Dataset, Split, require_folder
from qresearch.errors import DataError

LENGTH = 128
VALIDATION_EVERY = 18
TINYSHAKESPEARE = "tinyshakespeare.txt"
BYTES, SHA256 = 1_115_394, "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"

WHERE = (
    "get input.txt from https://github.com/karpathy/char-rnn/tree/master/data/tinyshakespeare, save it as "
    f"{TINYSHAKESPEARE} (or use one .txt file of your own, under another name), and set data.folder or "
    f"{FOLDER_VARIABLE} to the folder that holds it or text/"
)


def prepare(inputs: Any) -> Any:
    """Returns the token ids as they are. ``inputs``: int32 [n, 128]."""
    return inputs


def find_file(folder: Path | None) -> Path:
    """Returns tinyshakespeare.txt, else the only .txt file, in ``folder`` (else QRESEARCH_DATA) or its ``text``."""
    resolved = require_folder("text", folder, WHERE)
    places = (resolved, resolved / "text")
    named = next((place / TINYSHAKESPEARE for place in places if (place / TINYSHAKESPEARE).is_file()), None)
    if named is not None:
        return named
    found = sorted(path for place in places for path in place.glob("*.txt") if path.is_file())
    if len(found) != 1:
        some = f"{len(found)} .txt files ({', '.join(path.name for path in found[:5])})" if found else "no .txt file"
        raise DataError(f"text: {some} in {places[0]} and {places[1]}, expected {TINYSHAKESPEARE} or just one; {WHERE}")
    return found[0]


def read_text(path: Path) -> str:
    """Reads a utf-8 file; DataError if it is not utf-8, or named tinyshakespeare.txt and not that text."""
    content = path.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if path.name == TINYSHAKESPEARE and found != SHA256:
        raise DataError(
            f"text: {path} has {len(content):,} bytes and SHA-256 {found[:16]}..., expected {BYTES:,} and "
            f"{SHA256[:16]}...: it is truncated, or another text; {WHERE}"
        )
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"text: {path} is not utf-8 (byte {content[error.start]:#04x} at {error.start:,}); save it as utf-8"
        ) from None


def chunks(ids: Int32[np.ndarray, "characters"]) -> Split:
    """Cuts token ids into inputs [n, 128] and, one character later, targets [n, 128]; what is left over is dropped."""
    count = (len(ids) - 1) // LENGTH
    inputs, targets = (ids[start : start + count * LENGTH].reshape(count, LENGTH) for start in (0, 1))
    return Split(inputs.copy(), targets.copy())


def _every(step: int, split: Split) -> tuple[Split, Split]:
    """(the other chunks, every ``step``-th chunk)."""
    chosen = np.arange(len(split)) % step == step - 1
    inputs, targets = np.asarray(split.inputs), split.targets
    return Split(inputs[~chosen], targets[~chosen]), Split(inputs[chosen], targets[chosen])


def load_text(folder: Path | None = None) -> Dataset:
    """Loads a text file as int32 token ids, chunks of 128 characters, 85 / 5 / 10 % of it; classes: its vocabulary."""
    path = find_file(folder)
    text = read_text(path)
    # uint32 code points, so that one search over the sorted vocabulary encodes the whole text.
    points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    known = np.unique(points)
    ids = np.searchsorted(known, points).astype(np.int32)
    if len(ids) < 20 * (LENGTH + 1):
        raise DataError(
            f"text: {path} has {len(ids):,} characters, expected at least {20 * (LENGTH + 1):,}, of which the "
            f"twentieth for validation fills one chunk of {LENGTH}; {WHERE}"
        )
    before, test = map(chunks, np.split(ids, [len(ids) - len(ids) // 10]))
    train, validation = _every(VALIDATION_EVERY, before)
    return Dataset("text", train, validation, test, len(known), prepare, (LENGTH,), f"text file {path.name}")
