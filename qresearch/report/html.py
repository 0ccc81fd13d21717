"""The report of a run as one static HTML file that needs nothing else: no network, no script, no second file."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape
from typing import NamedTuple

_STYLE = """
:root { color-scheme: light dark; --text: #1b1b1b; --page: #fff; --line: #d0d0d0; --soft: #f3f4f6; }
@media (prefers-color-scheme: dark) { :root { --text: #e6e6e6; --page: #16181c; --line: #44474d; --soft: #22252b; } }
* { box-sizing: border-box; }
body { color: var(--text); background: var(--page); font: 16px/1.5 system-ui, sans-serif; margin: 0 auto;
  max-width: 60rem; padding: 1rem; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
img { width: 100%; height: auto; background: #fff; border-radius: 6px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid var(--line); padding: .3rem .7rem .3rem 0; text-align: left; vertical-align: top;
  overflow-wrap: normal; }
th { white-space: nowrap; }
pre { background: var(--soft); border-radius: 6px; padding: .8rem; overflow-x: auto; font-size: .85rem; }
"""

# What the page may load, told to the browser: its own style and pictures inside the file, nothing else.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


class Section(NamedTuple):
    """A heading with a text and, where given, a table or preformatted lines below it."""

    title: str
    text: str
    header: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    preformatted: str | None = None


def report_html(title: str, picture: bytes, picture_text: str, sections: Iterable[Section]) -> str:
    """The page. ``picture``: the bytes of a PNG, ``picture_text`` what it shows, for those who cannot see it."""
    image = base64.b64encode(picture).decode("ascii")
    body = "\n".join(_section(section) for section in sections)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{escape(_POLICY)}">
<title>{escape(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>{escape(title)}</h1>
<img alt="{escape(picture_text)}" src="data:image/png;base64,{image}">
{body}
</body>
</html>
"""


def _section(section: Section) -> str:
    parts = [f"<h2>{escape(section.title)}</h2>"]
    if section.text:
        parts.append(f"<p>{escape(section.text)}</p>")
    if section.header:
        parts.append(_table(section.header, section.rows))
    if section.preformatted is not None:
        # A <pre> that scrolls must be reachable with the keyboard.
        parts.append(f'<pre tabindex="0">{escape(section.preformatted)}</pre>')
    return "\n".join(parts)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    # An empty <th> reads as nothing to a screen reader.
    heads = "".join(f'<th scope="col">{escape(name or "front")}</th>' for name in header)
    lines = "\n".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    head = f"<thead><tr>{heads}</tr></thead>"
    return f'<div class="scroll" tabindex="0"><table>{head}<tbody>\n{lines}\n</tbody></table></div>'
