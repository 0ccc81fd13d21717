"""The commands ``export`` and ``verify`` on a copy of the small run."""

from __future__ import annotations

import sys

from qresearch.cli import main

TRIAL = "qat-lsq-w4a4-seed0"


def export(output, *arguments):
    return main(["export", "small", "--output", str(output), *arguments])


def verify(output, *arguments):
    return main(["verify", "small", "--output", str(output), "--examples", "100", *arguments])


def hide(monkeypatch, *packages):
    """As if they were not installed."""
    for name in list(sys.modules):
        if name.split(".")[0] in packages:
            monkeypatch.delitem(sys.modules, name)
    for name in packages:
        monkeypatch.setitem(sys.modules, name, None)
