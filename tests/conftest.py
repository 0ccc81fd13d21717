"""Shared fixtures. Tests run in float32 on whatever device JAX finds; data tests skip, with a reason, where it is absent."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def shared_path(*parts: str) -> Path:
    """The path of a development file beside the checkout (or under QRESEARCH_SHARED), or a skip that names it."""
    base = Path(os.environ.get("QRESEARCH_SHARED", ROOT.parent / "shared"))
    path = base.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"development data not present: shared/{'/'.join(parts)} (set QRESEARCH_SHARED)")
    return path


@pytest.fixture(scope="session")
def cifar10_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CIFAR-10 in its official layout: QRESEARCH_DATA if it holds one, else unpacked from the shared sprites."""
    named = os.environ.get("QRESEARCH_DATA")
    if named and any((Path(named) / part / "test_batch.bin").is_file() for part in (".", "cifar-10-batches-bin")):
        return Path(named)
    script = shared_path("data", "unpack_cifar10.py")
    pytest.importorskip("PIL", reason="unpacking shared/data/cifar10 needs Pillow")
    folder = tmp_path_factory.mktemp("cifar10")
    subprocess.run([sys.executable, str(script), str(folder)], check=True, capture_output=True)
    return folder
