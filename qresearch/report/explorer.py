"""The interactive page of one or several runs: one HTML file with all that it needs in it, and no network."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path

from qresearch.report.explorer_data import embedded, explorer_data
from qresearch.report.searches import report_settings
from qresearch.results.run_folder import RunFolder

NEEDS = "pip install 'qresearch[report]'"
_ASSETS = Path(__file__).with_name("assets")


def explorer_html(runs: Sequence[RunFolder]) -> str | None:
    """The page of these runs; None where Plotly is not installed. ``DataError`` if none of them has a finished trial.

    Its browser may run the three scripts that are in the file, by their sha256, and load nothing: a text in a record
    that looks like a script stays a text.
    """
    try:
        from plotly.offline import get_plotlyjs
    except ImportError:
        return None
    data = explorer_data(runs)
    costs = [cost["name"] for cost in data["costs"]]
    wanted = report_settings(runs[0]).get("cost", "average_bits")
    data["x"] = wanted if wanted in costs else costs[0]
    scripts = {
        "plotly": get_plotlyjs(),
        "views": _asset("explorer_views.js"),
        "page": _asset("explorer.js"),
    }
    hashes = " ".join(f"'sha256-{_sha256(script)}'" for script in scripts.values())
    policy = f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:"
    parts = {
        "title": escape(" · ".join(run.path.name for run in runs)),
        "policy": escape(policy, quote=False),
        "style": _asset("explorer.css"),
        "data": embedded(data),
        **scripts,
    }
    # In one pass: what is put in is not searched again.
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], _asset("explorer.html"))


def _asset(name: str) -> str:
    return (_ASSETS / name).read_text(encoding="utf-8")


def _sha256(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
