"""The rules of the source tree that no import error would show: layers, who may use which library, what is never done.

A rule is added to one of the tables below. ``violations`` reads source only, so that a violation is named even where
the module cannot be imported.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "qresearch"
MAX_LINES = 300

# Imports point downwards: a part may import its own layer and the layers below it.
LAYERS = {
    1: ("numerics", "kernels", "cost", "latency", "cost_table", "pareto", "options", "errors", "registry", "compat"),
    2: ("quantizers", "allocation"),
    3: ("graph", "models", "data", "tasks"),
    4: (
        "rules",
        "units",
        "qmodel",
        "calibration",
        "devices",
        "streaming",
        "evaluation",
        "programs",
        "prequantized",
        "prefixes",
        "population",
        "frozen",
        "sensitivities",
        "ptq",
    ),
    5: (
        "augmentation",
        "training_step",
        "keeper",
        "training",
        "search",
        "config",
        "engines",
        "results",
        "checkpoint",
        "sweep",
        "report",
        "export",
        "trackers",
        "suggesters",
        "doctor",
    ),
    6: ("cli", "commands", "export_commands", "figure_commands", "__main__"),
}
LAYER = {part: layer for layer, parts in LAYERS.items() for part in parts}

# Parts that may import even less than their layer allows, and why.
ONLY = {
    "errors": (set(), "every part raises these"),
    "registry": ({"errors"}, "names and what they stand for"),
    "compat": ({"errors"}, "it isolates what JAX changes, nothing else"),
    "numerics": ({"errors"}, "numerics are pure arrays"),
    "kernels": ({"numerics", "errors"}, "a kernel is a product of arrays, another way to compute one"),
    "cost": ({"errors"}, "a cost is a formula over shapes and widths"),
    "latency": ({"cost", "errors"}, "a cost is a formula over shapes and widths"),
    "cost_table": ({"cost", "errors"}, "a cost is a table over layers and widths"),
    "pareto": ({"errors"}, "a front is a set of numbers"),
    "quantizers": ({"numerics", "errors"}, "a quantizer sees one tensor: no model, no cost, no allocation"),
    "allocation": ({"cost", "options", "pareto", "errors"}, "an allocator sees a table: no model, no quantizer"),
    "graph": ({"compat", "errors"}, "the interpreter knows jaxprs: no quantizer, no model library"),
    "models": ({"errors"}, "models never see a scale"),
    "data": ({"errors"}, "data never see a model"),
    "tasks": ({"errors"}, "a task is a loss and a score"),
    "config": ({"errors"}, "a configuration is text; names are checked against registries passed in"),
    "results": ({"errors"}, "a record is plain data"),
    "engines": ({"options", "errors"}, "an engine hands text to processes: no trial, no model, no JAX"),
    "trackers": ({"results", "errors"}, "a tracker mirrors records; it never runs a model"),
    "suggesters": ({"config", "errors"}, "a suggester sees settings and scores"),
    "doctor": ({"data", "results", "errors"}, "it looks at the machine, and asks JAX in a process of its own"),
    "report": ({"results", "cost", "pareto", "errors"}, "figures read records and never run a model"),
}

# Libraries that belong to one place, as path prefixes below the package.
LIBRARIES = {
    "flax": "models/",
    "numpyro": ("allocation/bayes/", "search/svi.py"),
    "matplotlib": "report/",
    "plotly": "report/",
    "distributed": "engines/dask.py",
    "submitit": "engines/slurm.py",
    "tensorboard": "trackers/tensorboard.py",
    "mlflow": "trackers/mlflow.py",
    "wandb": "trackers/wandb.py",
    "optuna": "suggesters/optuna.py",
    "onnx": "export/onnx/",
    "onnxruntime": "export/onnx/",
}

# The one import by name: the public names of the package, each found on first use in a fixed table of its modules.
LAZY_NAMES = "__init__.py"

# Parts that the command line loads before it knows whether it needs JAX, which takes seconds to import.
LIGHT = ("config", "results", "cli", "commands", "export_commands", "figure_commands", "doctor", "__main__", "errors")

UNSAFE_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
UNSAFE_NAMES = {"eval", "exec", "__import__"}
UNSAFE_ATTRIBUTES = {
    ("yaml", "load"),
    ("yaml", "load_all"),
    ("yaml", "full_load"),
    ("yaml", "unsafe_load"),
}
IMPORT_BY_STRING = "imports by string: write the import, or a dict of factories"


def part_of(path: Path, root: Path) -> str:
    """The part a file belongs to: its folder below the package, or its own name; "" for the package's __init__."""
    first = path.relative_to(root).parts[0]
    return "" if first == "__init__.py" else first.removesuffix(".py")


def imports(nodes: Iterable[ast.AST], path: Path, root: Path) -> Iterator[tuple[int, str]]:
    """Every imported module, relative ones resolved, ``from a import b`` as a.b: (line, dotted name)."""
    package = (root.name, *path.relative_to(root).parts[:-1])
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *(node.module or "").split(".")]).strip(".")
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


def import_problems(tree: ast.AST, path: Path, root: Path) -> Iterator[tuple[int, str]]:
    own = part_of(path, root)
    relative = path.relative_to(root).as_posix()
    for line, name in imports(ast.walk(tree), path, root):
        top, *rest = name.split(".")
        if top in LIBRARIES and not relative.startswith(LIBRARIES[top]):
            yield line, f"imports {top}, which belongs to {LIBRARIES[top]}"
        if top in UNSAFE_MODULES:
            yield line, f"imports {top}: loading it can run code"
        if name == "importlib.import_module":
            yield line, IMPORT_BY_STRING
        other = rest[0] if rest else ""
        if top == root.name and own and other != own:
            yield from ((line, problem) for problem in layer_problems(own, other))


def layer_problems(own: str, other: str) -> Iterator[str]:
    if other not in LAYER:
        yield f"imports {other or 'the package itself'!r}, which no layer holds: import the module, or add it to LAYERS"
    elif own in LAYER and LAYER[other] > LAYER[own]:
        yield f"{own} (layer {LAYER[own]}) imports {other} (layer {LAYER[other]}): imports point downwards"
    elif own in ONLY and other not in ONLY[own][0] | {"registry"}:  # names, which every part may have
        allowed = ", ".join(sorted(ONLY[own][0])) or "nothing"
        yield f"{own} imports {other}; it may import {allowed}: {ONLY[own][1]}"


def call_problems(tree: ast.AST, path: Path, root: Path) -> Iterator[tuple[int, str]]:
    lazy = path == root / LAZY_NAMES
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name) if name in UNSAFE_NAMES:
                yield node.lineno, f"uses {name}: text is never run as code"
            case ast.Attribute(value=ast.Name(id=module), attr=name) if (module, name) in UNSAFE_ATTRIBUTES:
                yield node.lineno, f"uses {module}.{name}: it can build any object; use a safe loader"
            case ast.Attribute(value=ast.Name(id="importlib"), attr="import_module") if not lazy:
                yield node.lineno, IMPORT_BY_STRING
            case ast.keyword(arg="allow_pickle", value=ast.Constant(value=False)):
                pass
            case ast.keyword(arg="allow_pickle"):
                yield node.value.lineno, "loads arrays with allow_pickle: unpickling can run code"


def on_import(tree: ast.AST) -> Iterator[ast.AST]:
    """The nodes outside function bodies: what runs when the module is imported."""
    for node in ast.iter_child_nodes(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield node
            yield from on_import(node)


def module_problems(path: Path, root: Path) -> Iterator[tuple[int, str]]:
    source = path.read_text(encoding="utf-8")
    tree = ast.parse(source)
    own = part_of(path, root)
    if own and own not in LAYER:
        yield 1, f"{own!r} is in no layer: add it to LAYERS"
    if (lines := len(source.splitlines())) > MAX_LINES:
        yield lines, f"has {lines} lines, more than {MAX_LINES}: split it"
    yield from import_problems(tree, path, root)
    yield from call_problems(tree, path, root)
    if own in LIGHT or own == "":
        for line, name in imports(on_import(tree), path, root):
            if name.split(".")[0] in {"jax", "jaxlib", "flax", "optax", "numpyro"}:
                yield line, f"imports {name.split('.')[0]} at module level; --help must not pay for it"


def violations(root: Path) -> list[str]:
    """Every broken rule of the package at ``root``, as "path:line: what is wrong"."""
    found = (
        f"{path.relative_to(root.parent).as_posix()}:{line}: {problem}"
        for path in sorted(root.rglob("*.py"))
        for line, problem in module_problems(path, root)
    )
    return list(dict.fromkeys(found))  # one line may import several names of one module


def test_the_package_keeps_every_rule():
    assert len(list(PACKAGE.rglob("*.py"))) > 30
    assert not (found := violations(PACKAGE)), "\n" + "\n".join(found)


@pytest.mark.parametrize("folder", ["tests", "experiments", "paper_figures"])
def test_no_module_beside_the_package_is_longer(folder):
    lines = {path.name: len(path.read_text().splitlines()) for path in (PACKAGE.parent / folder).rglob("*.py")}
    assert lines
    assert not {name: count for name, count in lines.items() if count > MAX_LINES}


PLANTED = {
    "upwards": ("numerics/bad.py", "from qresearch.training import fit", "(layer 1) imports training (layer 5)"),
    "upwards through the package": ("graph/bad.py", "from qresearch import cli", "(layer 3) imports cli (layer 6)"),
    "relative": ("quantizers/bad.py", "from ..graph import trace", "(layer 2) imports graph (layer 3)"),
    "inside a function": ("cost.py", "def f():\n    import qresearch.graph.trace", "imports graph (layer 3)"),
    "sideways": ("allocation/bad.py", "import qresearch.quantizers", "may import cost, errors, options, pareto"),
    "downwards but forbidden": ("models/bad.py", "from qresearch.numerics import grid", "models never see a scale"),
    "report": ("report/bad.py", "from qresearch.training import fit", "never run a model"),
    "the package itself": ("tasks/bad.py", "import qresearch", "the package itself"),
    "no layer": ("utilities.py", "", "'utilities' is in no layer"),
    "unknown part": ("sweep/bad.py", "from qresearch.helpers import x", "'helpers', which no layer holds"),
    "flax": ("graph/bad.py", "from flax import nnx", "flax, which belongs to models/"),
    "numpyro": ("allocation/greedy.py", "import numpyro.distributions as dist", "numpyro, which belongs to"),
    "matplotlib": ("sweep/bad.py", "def f():\n    import matplotlib.pyplot", "matplotlib, which belongs to report/"),
    "plotly": ("results/bad.py", "from plotly import graph_objects", "plotly, which belongs to report/"),
    "jax": ("config/bad.py", "import jax.numpy as jnp", "jax at module level"),
    "jax in a class": ("cli.py", "class A:\n    import jax", "jax at module level"),
    "jax under try": ("__init__.py", "try:\n    import jax\nexcept ImportError:\n    pass", "jax at module level"),
    "pickle": ("data/bad.py", "import pickle", "loading it can run code"),
    "eval": ("config/bad.py", "x = eval('1')", "uses eval"),
    "exec": ("config/bad.py", "exec('1')", "uses exec"),
    "yaml": ("config/bad.py", "import yaml\nyaml.load('')", "uses yaml.load"),
    "unpickling": ("data/bad.py", "import numpy\nnumpy.load('', allow_pickle=True)", "allow_pickle"),
    "unpickling by a flag": ("data/bad.py", "import numpy\nnumpy.load('', allow_pickle=flag)", "allow_pickle"),
    "import by string": ("rules.py", "import importlib\nimportlib.import_module('os')", "imports by string"),
    "import by string, renamed": ("rules.py", "from importlib import import_module as load", "imports by string"),
    "length": ("qmodel.py", "x = 1\n" * MAX_LINES + "x = 1", f"has {MAX_LINES + 1} lines"),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_violation_is_found(name, tmp_path):
    relative, source, message = PLANTED[name]
    path = tmp_path / "qresearch" / relative
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source + "\n", encoding="utf-8")
    (found,) = violations(tmp_path / "qresearch")
    assert found.startswith(f"qresearch/{relative}:")
    assert message in found


ALLOWED = {
    "__init__.py": "import importlib\nf = importlib.import_module",
    "models/net.py": "from flax import linen\nfrom qresearch.models.model import Model",
    "allocation/bayes/model.py": "import numpyro\nfrom qresearch.errors import BudgetError",
    "report/figure.py": "import matplotlib\nfrom qresearch.results.record import Record",
    "config/load.py": "def f():\n    import jax",
    "cli.py": "from qresearch.sweep import run\nfrom . import config",
    "data/arrays.py": "import numpy\nnumpy.load('', allow_pickle=False)\nmodel.eval()",
    "qmodel.py": "import jax\nfrom qresearch.rules import Rule\nfrom .quantizers import QUANTIZERS",
}


def test_what_is_allowed_is_not_reported(tmp_path):
    for relative, source in ALLOWED.items():
        path = tmp_path / "qresearch" / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source + "\n", encoding="utf-8")
    assert violations(tmp_path / "qresearch") == []


HELP = "from qresearch.cli import main\ntry:\n    main(['--help'])\nexcept SystemExit:\n    pass"


@pytest.mark.parametrize(
    "source", ["import qresearch", "import qresearch.config", "import qresearch.results", "import qresearch.cli", HELP]
)
def test_what_help_imports_does_not_load_jax(source):
    """``import jax`` takes 1.7 s of CPU time, which ``--help``, ``check`` and ``status`` must not pay."""
    heavy = {"jax", "jaxlib", "flax", "optax", "orbax", "numpyro", "matplotlib", "sklearn", "scipy"}
    script = f"import sys\n{source}\nprint(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], cwd=PACKAGE.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
