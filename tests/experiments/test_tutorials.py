"""The tutorials run as they are, and say what they promise."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TUTORIALS = {
    "own_flax_model": r"in integers +0\.9\d+, \['integer', 'integer', 'integer'\]",
    "add_a_quantizer": r"0\.\d+ \(1 seed\) +qat +deviations +uniform W4A4",
    "search_and_posterior": r"4 bits: P\(optimal\) \d\.\d\d, expected regret",
}


def test_every_tutorial_is_tested():
    assert {path.stem for path in (ROOT / "experiments" / "tutorials").glob("*.py")} == set(TUTORIALS)


@pytest.mark.slow
@pytest.mark.parametrize("name", TUTORIALS)
def test_a_tutorial_runs(name):
    command = [sys.executable, str(ROOT / "experiments" / "tutorials" / f"{name}.py")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert re.search(TUTORIALS[name], done.stdout), done.stdout[-2000:]
