"""The recipe in CONTRIBUTING.md, followed to the letter: its method passes the conformance suite by its line alone."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
REGISTER = """
from qresearch.quantizers import QUANTIZERS
from wrpn import wrpn

QUANTIZERS["wrpn"] = wrpn
"""


@pytest.mark.parametrize(("marked", "count"), [("not slow", 40), pytest.param("", 80, marks=pytest.mark.slow)])
def test_the_quantizer_of_the_recipe_conforms(marked, count, tmp_path):
    section = (ROOT / "CONTRIBUTING.md").read_text().split("## Adding a quantizer")[1]
    (tmp_path / "wrpn.py").write_text(re.search(r"```python\n(.*?)```", section, re.DOTALL)[1])
    (tmp_path / "register_wrpn.py").write_text(REGISTER)
    command = [sys.executable, "-m", "pytest", "-p", "register_wrpn", "-n", "0", "-q", "-k", "wrpn", "-m", marked]
    suites = [
        str(ROOT / "tests" / "quantizers" / name)
        for name in ("test_conformance.py", "test_factories.py", "test_traits.py")
    ]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([*command, *suites], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) > count
