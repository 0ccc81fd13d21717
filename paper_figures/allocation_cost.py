"""What an allocation costs: one program for all, one for each, and other frameworks.

Paper: our own; Qwix, https://github.com/google/qwix, and Brevitas, https://github.com/Xilinx/brevitas.
Published: nothing.
Recipe: experiments/bench_population.py: an MLP of 8 layers of 256 x 256 on 1,000 examples, weights of 4 or 8 bits,
  inputs of 8; 16 allocations from empty caches, and 16 further ones; medians of 3 repeats in turn in one process. Needs
  the extra ``peers``; without it only our own rows are made.
Run: CPU (x86-64, JAX 0.10.2, Qwix 0.1.8, Brevitas 0.13.4), 2 min 33 s on two cores.
Tolerance: none: times are of one machine.
"""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from paper_figures.figure import ROOT, Figure, Record, Row, find
from qresearch.errors import DataError

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Picture

OURS = ("ours", "one program each")
RATIOS = {
    "float pass": "time of a warm allocation, times that of a float pass",
    "shared prefixes": "one layer at a time: speed-up by running common first layers once",
}
PEERS = ("qwix", "brevitas", "torch")
PARTS = {"first": "first 16 allocations, compilation included", "further": "16 further allocations"}


def run() -> list[Record]:
    """A record per method, in a process of its own, so that nothing is compiled before."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        script = ROOT / "experiments" / "bench_population.py"
        done = subprocess.run([sys.executable, str(script), "--case", "mlp", "--json", str(path)], cwd=ROOT)
        if done.returncode or not path.is_file():
            raise DataError(f"{script}: ended with status {done.returncode}")
        found = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    peers = {name: version for name in PEERS if (version := _version(name))}
    return [{name: row[name] for name in row.keys() - {"device", "jax", "seconds"}} | {"peers": peers} for row in found]


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _timed(records: Sequence[Record]) -> list[Record]:
    return [record for record in records if "first" in record]


def rows(records: Sequence[Record]) -> list[Row]:
    """Seconds of every method, and ratios."""
    found = [
        Row(f"{method}, seconds of the {text}", None, find(_timed(records), part, method=method))
        for method in dict.fromkeys([*OURS, *(record["method"] for record in _timed(records))])
        for part, text in PARTS.items()
    ]
    ratios = [record for record in records if "ratio" in record]
    names = [str(RATIOS.get(record["method"], record["method"])) for record in ratios]
    return found + [Row(name, None, record["ratio"]) for name, record in zip(names, ratios)]


def draw(records: Sequence[Record]) -> Picture:
    """Seconds as bars, on a logarithmic axis."""
    from qresearch.report.figure import new_figure

    picture = new_figure(9.0, 4.2)
    axes, own = picture.subplots(), _timed(records)
    for i, (part, colour) in enumerate(zip(PARTS, ("#0072B2", "#E69F00"))):
        places = [j + 0.38 * (i - 0.5) for j in range(len(own))]
        bars = axes.barh(places, [record[part] for record in own], 0.36, color=colour, label=PARTS[part])
        axes.bar_label(bars, fmt=" %.2f s", fontsize=8)
    axes.set_yticks(range(len(own)), [record["method"] for record in own])
    axes.invert_yaxis()
    axes.set(xscale="log", xlabel="seconds for 16 allocations", title="MLP of 8 layers, 1,000 examples")
    axes.set_xlim(right=3 * max(record["first"] for record in own))
    axes.grid(alpha=0.25, axis="x")
    axes.legend(fontsize=8)
    return picture


FIGURE = Figure(
    title="Cost of an allocation, against other frameworks",
    paper="our own",
    run=run,
    rows=rows,
    draw=draw,
)
