from __future__ import annotations

import ast
import dataclasses
import inspect
import pkgutil
import re
import subprocess
import sys
from collections.abc import Mapping

import pytest
from conftest import ROOT

import qresearch

README = ROOT / "README.md"


@pytest.mark.parametrize("name", qresearch.__all__)
def test_every_public_name_is_there_and_documented(name):
    value = getattr(qresearch, name)
    if isinstance(value, Mapping):
        assert value, "a registry with nothing in it"
        return
    written = inspect.getdoc(value) or ""
    automatic = f"{value.__name__}(" if isinstance(value, type) else "\0"
    assert len(written.split("\n")[0]) > 15, f"{name} has no docstring"
    assert not written.startswith(automatic), f"{name} has only the docstring that Python makes"


def test_public_functions_are_annotated():
    for name in qresearch.__all__:
        value = getattr(qresearch, name)
        if inspect.isfunction(value):
            missing = [p for p in inspect.signature(value).parameters if p not in value.__annotations__]
            assert not missing, (name, missing)
            assert "return" in value.__annotations__, name


def test_no_public_name_is_a_modules():
    """Importing the module would put it in the place of what it is named after."""
    assert not {module.name for module in pkgutil.iter_modules(qresearch.__path__)} & set(qresearch.__all__)


def test_the_list_of_names_is_sorted_and_says_each_once():
    names = qresearch.__all__
    assert len(set(names)) == len(names)
    assert dir(qresearch) == sorted(names)
    assert set(names) == set(qresearch._MODULE_OF)


def test_type_checkers_see_the_same_names():
    tree = ast.parse((ROOT / "qresearch" / "__init__.py").read_text())
    blocks = [node for node in tree.body if isinstance(node, ast.If)]
    imported = {alias.name for block in blocks for node in block.body if isinstance(node, ast.ImportFrom)
                for alias in node.names}  # fmt: skip
    assert imported == set(qresearch.__all__)


def test_star_import():
    found: dict[str, object] = {}
    exec("from qresearch import *", found)
    assert set(qresearch.__all__) <= set(found)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'qresearch' has no attribute 'quantise_model'"):
        qresearch.quantise_model  # noqa: B018
    assert not hasattr(qresearch, "nothing")


def test_importing_qresearch_imports_no_jax():
    code = "import sys, qresearch; print(sorted({'jax', 'flax', 'numpy', 'optax'} & set(sys.modules)))"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stdout == "[]\n"


def test_results_are_tuples_or_frozen():
    for name in qresearch.__all__:
        value = getattr(qresearch, name)
        if dataclasses.is_dataclass(value):
            assert value.__dataclass_params__.frozen, name


def quick_start():
    text = README.read_text() if README.is_file() else ""
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    if not blocks:
        pytest.skip("README.md has no python block")
    return blocks


def test_the_quick_start_of_the_readme_runs(capsys):
    found: dict[str, object] = {}
    for block in quick_start():
        exec(compile(block, str(README), "exec"), found)
    assert capsys.readouterr().out
    scores = found["scores"]
    assert 0.8 < scores.score.mean() <= 1  # far above chance: the model and its bits are real


def test_every_command_of_the_readme_exists():
    from qresearch.cli import main

    commands = set(re.findall(r"(?:^|[`/ ])qresearch ([a-z]+) (?:[A-Z\[]|configs/)", README.read_text()))
    assert "sweep" in commands
    for command in sorted(commands):
        with pytest.raises(SystemExit) as stop:
            main([command, "--help"])
        assert stop.value.code == 0
