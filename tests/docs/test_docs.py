"""Every snippet of the documentation runs, every config in it is one, and every method has its page."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import tomllib
import types
from pathlib import Path

import pytest

from qresearch.config import expand, load, suggestion_of
from qresearch.engines import check_engine
from qresearch.registry import Registry
from qresearch.sweep.assemble import costs_of, known_names, methods_of
from qresearch.sweep.catalogue import REGISTRIES
from qresearch.sweep.suggest import make_suggester

DOCS = Path(__file__).parents[2] / "docs"
PAGES = sorted(page for page in DOCS.rglob("*.md") if not {"methods", "_build"} & set(page.relative_to(DOCS).parts))


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


def with_blocks(language: str) -> list[Path]:
    return [page for page in PAGES if blocks(page, language)]


def named(page: Path) -> str:
    return page.relative_to(DOCS).as_posix()


@pytest.fixture
def registries():
    """What a snippet registers is gone after it."""
    kept = [(registry, dict(registry._own)) for registry in REGISTRIES.values() if isinstance(registry, Registry)]
    yield
    for registry, own in kept:
        registry._own.clear()
        registry._own.update(own)


BASE = {
    "name": "name: any",
    "flow": "flow: ptq",
    "allocation": "allocation: {bits: [8, 8]}",
    "sweep": "sweep: {grid: {seed: [0, 1, 2]}}",
}


@pytest.mark.parametrize("page", with_blocks("python"), ids=named)
def test_snippets_run_and_what_they_add_can_be_named_in_a_config(page, registries, monkeypatch, tmp_path):
    snippet = types.ModuleType("snippet")  # Flax looks up the module of a class
    monkeypatch.setitem(sys.modules, "snippet", snippet)
    monkeypatch.chdir(tmp_path)  # where a page may write files
    for block in blocks(page, "python"):
        exec(compile(block, str(page), "exec"), snippet.__dict__)
    for fragment in re.findall(r"^In a config: `(.*?)`", page.read_text(), re.MULTILINE):
        others = [line for key, line in BASE.items() if key != fragment.partition(":")[0]]
        Path("config.yaml").write_text("\n".join([*others, fragment]))
        sweep = load("config.yaml", [])
        if (suggest := suggestion_of(sweep)) is not None:
            make_suggester(suggest)
        for config in expand(sweep, known_names()):
            costs_of(config)
            methods_of(config)
            check_engine(config.engine.name, dict(config.engine.options))


@pytest.mark.parametrize("page", with_blocks("yaml"), ids=named)
def test_configs_are_configs(page, tmp_path):
    for block in blocks(page, "yaml"):
        (tmp_path / "config.yaml").write_text(block)
        assert len(expand(load(str(tmp_path / "config.yaml"), []), known_names())) >= 3


@pytest.mark.parametrize("page", with_blocks("toml"), ids=named)
def test_groups_of_entry_points_are_registries(page):
    for block in blocks(page, "toml"):
        for group in tomllib.loads(block)["project"]["entry-points"]:
            assert group.removeprefix("qresearch.") in REGISTRIES


def test_every_kind_that_the_page_names_is_a_registry():
    text = (DOCS / "how_to" / "package.md").read_text()
    kinds = re.search(r"`qresearch list` prints:\n(.*?)\.\n", text, re.DOTALL)[1]
    assert set(kinds.replace("\n", " ").split(", ")) == set(REGISTRIES)


def test_the_index_has_every_registry():
    """By the name that ``qresearch list`` prints, with the dict that its line goes into."""
    text = (DOCS / "how_to" / "index.md").read_text()
    rows = {row.split("|")[1].strip(): row for row in text.splitlines() if row.startswith("|")}
    assert set(REGISTRIES) <= set(rows)
    for kind, registry in REGISTRIES.items():
        module, name = re.search(r"`(qresearch/[\w/]+)\.py`, `(\w+)`", rows[kind]).groups()
        found = importlib.import_module(module.replace("/", ".").removesuffix(".__init__"))
        assert getattr(found, name) is registry


def test_what_quantizers_are_made_of_exists():
    text = (DOCS / "how_to" / "quantizer.md").read_text()
    names = re.findall(r"^\| `((?:numerics|quantizers)\.[\w.]+)", text, re.MULTILINE)
    for name in names:
        module, _, function = name.rpartition(".")
        assert callable(getattr(importlib.import_module(f"qresearch.{module}"), function)), name
    assert len(names) >= 6


def test_every_test_that_is_named_exists():
    root = DOCS.parent
    text = "\n".join(page.read_text() for page in (*PAGES, root / "README.md", root / "CONTRIBUTING.md"))
    named = set(re.findall(r"tests/[\w/]*\w(?:\.py)?", text))
    assert {path for path in named if not (root / path).exists()} == set()
    assert len(named) > 10


def test_every_command_exists():
    from qresearch.cli import _parser

    known = next(iter(action.choices for action in _parser()._actions if action.choices))
    text = "\n".join(page.read_text() for page in PAGES)
    assert set(re.findall(r"`qresearch ([a-z-]+)", text)) <= set(known)


def test_every_method_has_its_page(tmp_path):
    spec = importlib.util.spec_from_file_location("docs_conf", DOCS / "conf.py")
    conf = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(conf)
    pages = conf.write_pages(tmp_path)
    for kind in ("quantizers", "ptq", "sensitivities", "allocators", "searches"):
        for name in REGISTRIES[kind]:
            text = (tmp_path / kind / f"{name}.md").read_text()
            assert text.startswith(f"# {name}\n")
            assert (DOCS.parent / re.search(r"Source: `(.*?)`", text)[1]).is_file(), name
    before = {page: page.stat().st_mtime_ns for page in pages}
    conf.write_pages(tmp_path)
    assert before == {page: page.stat().st_mtime_ns for page in pages}


@pytest.mark.slow
def test_it_builds_without_a_warning(tmp_path):
    pytest.importorskip("myst_parser", reason="the extra docs is not installed")
    command = [sys.executable, "-m", "sphinx", "-W", "-q", "-b", "html", str(DOCS), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    for page in PAGES:
        assert (tmp_path / page.relative_to(DOCS)).with_suffix(".html").is_file()
