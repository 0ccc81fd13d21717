"""How the documentation is built: ``sphinx-build -W -b html docs docs/_build`` (extra ``docs``)."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

project = "qresearch"
extensions = ["myst_parser"]
html_theme = "furo"
html_title = "qresearch"
exclude_patterns = ["_build"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
GENERATED = Path(__file__).parent / "methods"


def setup(app: Any) -> None:
    """Writes the pages of methods before Sphinx looks for pages."""
    write_pages(GENERATED)


def write_pages(folder: Path) -> list[Path]:
    """A page for every method of the registries that papers are behind, from its docstring, and one that lists them."""
    from qresearch.sweep.catalogue import REGISTRIES

    pages = []
    for kind in ("quantizers", "ptq", "sensitivities", "allocators", "searches"):
        for name, entry in sorted(REGISTRIES[kind].items()):
            pages.append(_written(folder / kind / f"{name}.md", _page(kind, name, entry)))
    lines = ["# Methods", "", "From their docstrings; each says where it differs from its paper.", ""]
    for kind in dict.fromkeys(page.parent.name for page in pages):
        names = [f"{kind}/{page.stem}" for page in pages if page.parent.name == kind]
        lines += ["```{toctree}", ":maxdepth: 1", f":caption: {kind}", "", *names, "```", ""]
    return [*pages, _written(folder / "index.md", "\n".join(lines))]


def _page(kind: str, name: str, entry: Any) -> str:
    source = Path(inspect.getsourcefile(entry) or "").name
    text = inspect.getdoc(entry) or ""
    title, _, rest = text.partition("\n")
    given = [p for p in inspect.signature(entry).parameters.values() if p.kind is p.KEYWORD_ONLY]
    options = [f"- `{p.name}`: {p.default!r}" for p in given if p.default is not p.empty]
    folder = {"searches": "search", "allocators": "allocation"}.get(kind, kind)
    lines = [f"# {name}", "", title, ""]
    lines += ["```text", rest.strip("\n"), "```", ""] if rest.strip() else []
    lines += ["Options:", "", *options, ""] if options else []
    return "\n".join([*lines, f"Source: `qresearch/{folder}/{source}`.", ""])


def _written(path: Path, text: str) -> Path:
    """Only where it changed: Sphinx reads again what is newer."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")
    return path
