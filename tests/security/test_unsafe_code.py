"""Nothing that we write runs what it reads: what ``test_architecture`` asks of the package, and ways round it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_architecture import PACKAGE, UNSAFE_MODULES, call_problems, imports

FOLDERS = ("qresearch", "experiments")

# Names that are never imported, and attributes that are never used, whatever module they are of.
IMPORTED = {
    **{f"yaml.{name}": "it can build any object" for name in ("load", "load_all", "full_load", "unsafe_load")},
    **{f"yaml.{name}": "it can build any object" for name in ("Loader", "FullLoader", "UnsafeLoader")},
    **{f"builtins.{name}": "text is never run as code" for name in ("eval", "exec", "compile", "__import__")},
    **{f"os.{name}": "a shell reads its argument" for name in ("system", "popen")},
    "jax.experimental.serialize_executable": "it unpickles",
}
ATTRIBUTES = {
    **dict.fromkeys(("unsafe_load", "full_load", "FullLoader", "UnsafeLoader"), "it can build any object"),
    **dict.fromkeys(("system", "popen"), "a shell reads its argument"),
    **dict.fromkeys(("extractall", "unpack_archive"), "an archive says where its files go: read its members"),
    **dict.fromkeys(("read_pickle", "serialize_executable"), "it unpickles"),
    "mktemp": "another process may take the name first",
    "__import__": "imports by string",
}
SAFE = {("platform", "system")}  # which says the name of the system


def problems(path: Path, root: Path) -> Iterator[str]:
    """Every unsafe use in a file, as "path:line: what"."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = [*call_problems(tree, path, root), *_imported(tree, path, root), *_used(tree)]
    yield from (f"{path.relative_to(root.parent).as_posix()}:{line}: {problem}" for line, problem in found)


def _imported(tree: ast.AST, path: Path, root: Path) -> Iterator[tuple[int, str]]:
    for line, name in imports(ast.walk(tree), path, root):
        if name in IMPORTED:
            yield line, f"imports {name}: {IMPORTED[name]}"
        if name.split(".")[0] in UNSAFE_MODULES:
            yield line, f"imports {name.split('.')[0]}: loading it can run code"
    for node in ast.walk(tree):
        # Under another name no rule would know it again.
        if isinstance(node, ast.Import):
            yield from (
                (node.lineno, f"renames {alias.name}")
                for alias in node.names
                if alias.asname and alias.name in ("yaml", "builtins", "os")
            )


def _used(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Name(id=module), attr=name) if (module, name) in SAFE:
                pass
            case ast.Attribute(attr=name) if name in ATTRIBUTES:
                yield node.lineno, f"uses {name}: {ATTRIBUTES[name]}"
            case ast.Attribute(value=ast.Name(id="builtins"), attr=name) if f"builtins.{name}" in IMPORTED:
                yield node.lineno, f"uses builtins.{name}: {IMPORTED[f'builtins.{name}']}"
            case ast.keyword(arg="shell", value=value) if not (
                isinstance(value, ast.Constant) and value.value is False
            ):
                yield value.lineno, "runs a shell"
            # numpy.load(file, mmap_mode, allow_pickle)
            case ast.Call(func=ast.Attribute(value=ast.Name(id="np" | "numpy" | "jnp"), attr="load"), args=args) if (
                len(args) > 2
            ):
                yield node.lineno, "loads arrays with a third argument, which is allow_pickle"
            case ast.Call(func=ast.Attribute(attr="load"), keywords=keywords) if any(k.arg is None for k in keywords):
                yield node.lineno, "loads with arguments that cannot be seen: write allow_pickle=False"


@pytest.mark.parametrize("folder", FOLDERS)
def test_none_of_our_source_is_unsafe(folder):
    root = PACKAGE.parent / folder
    files = sorted(root.rglob("*.py"))
    assert files
    assert not (found := [line for path in files for line in problems(path, root)]), "\n" + "\n".join(found)


PLANTED = {
    "pickle": "import pickle",
    "pickle, from": "from pickle import load",
    "cloudpickle": "import cloudpickle as c",
    "joblib": "def f():\n    from joblib import load",
    "eval": "eval('1')",
    "eval, from builtins": "from builtins import eval as e",
    "eval of builtins": "import builtins\nbuiltins.eval('1')",
    "yaml.load": "import yaml\nyaml.load('')",
    "yaml.load, imported": "from yaml import load\nload('')",
    "yaml, renamed": "import yaml as y\ny.load('')",
    "yaml, a loader": "import yaml\nyaml.UnsafeLoader('')",
    "yaml, a loader imported": "from yaml import Loader",
    "arrays": "import numpy as np\nnp.load('a', allow_pickle=True)",
    "arrays, third argument": "import numpy as np\nnp.load('a', None, True)",
    "arrays, hidden": "import numpy as np\nnp.load('a', **options)",
    "shell": "import subprocess\nsubprocess.run('ls', shell=True)",
    "shell, by a variable": "import subprocess\nsubprocess.run('ls', shell=flag)",
    "system": "import os\nos.system('ls')",
    "system, imported": "from os import system",
    "archive": "import tarfile\ntarfile.open('a').extractall()",
    "archive of any kind": "import shutil\nshutil.unpack_archive('a')",
    "temporary name": "import tempfile\ntempfile.mktemp()",
    "compiled programs": "from jax.experimental import serialize_executable",
    "data frames": "import pandas\npandas.read_pickle('a')",
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_use_is_found(name, tmp_path):
    path = tmp_path / "experiments" / "bad.py"
    path.parent.mkdir()
    path.write_text(PLANTED[name] + "\n", encoding="utf-8")
    assert list(problems(path, path.parent))


def test_what_is_safe_is_not_reported(tmp_path):
    path = tmp_path / "experiments" / "good.py"
    path.parent.mkdir()
    path.write_text(
        "import platform, yaml\nimport numpy as np\nplatform.system()\nyaml.SafeLoader('')\nyaml.safe_load('')\n"
        "np.load('a', allow_pickle=False)\nmodel.eval()\nload('a', **options)\nrun('ls', shell=False)\n"
    )
    assert list(problems(path, path.parent)) == []
