from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the sweep of ``kills``, run without interruption, with its config and its compiled programs."""
    from kills import TRIALS, begin

    folder = tmp_path_factory.mktemp("unbroken")
    process = begin(folder, folder / "out", "--engine", "inline")
    text, _ = process.communicate(timeout=600)
    assert process.returncode == 0, text
    assert f"{TRIALS} trials run, 0 found done, 0 failed" in text
    return folder
