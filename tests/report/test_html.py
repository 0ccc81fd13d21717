from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from qresearch.report.html import Section, report_html

NASTY = "<script>alert('x')</script>&\"'<img src=http://x.example/a.png onerror=1>"
VOID = {"meta", "img", "br"}


class Reader(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.tags, self.text = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture
def page():
    sections = [
        Section(NASTY, NASTY, ("", NASTY), [("*", NASTY), ("", NASTY)]),
        Section("Config", "", preformatted=NASTY),
    ]
    return report_html(NASTY, b"\x89PNG", NASTY, sections)


def test_everything_is_escaped_and_well_formed(page):
    reader = Reader()
    reader.feed(page)
    assert reader.open == []
    page_tags = {"html", "head", "meta", "title", "style", "body", "h1", "h2", "img", "p", "div", "pre"}
    assert {tag for tag, _ in reader.tags} == page_tags | {"table", "thead", "tbody", "tr", "th", "td"}
    assert sum(tag == "img" for tag, _ in reader.tags) == 1
    assert "".join(reader.text).count(NASTY) == 8  # title, h1, h2, p, th, two td, pre
    assert not any(name.startswith("on") for _, attributes in reader.tags for name in attributes)


def test_nothing_outside_the_file_is_referred_to(page):
    reader = Reader()
    reader.feed(page)
    for _, attributes in reader.tags:
        for name in ("src", "href", "srcset", "action", "data"):
            assert attributes.get(name, "data:").startswith("data:")
    style = re.search(r"<style>(.*?)</style>", page, re.S).group(1)
    assert "url(" not in style
    assert "@import" not in style
    assert "default-src &#x27;none&#x27;" in page


def test_reads_on_phones_and_in_the_dark(page):
    assert 'name="viewport" content="width=device-width' in page
    assert "prefers-color-scheme: dark" in page
    assert '<div class="scroll" tabindex="0"><table>' in page
    assert 'lang="en"' in page
    # No fixed width that a 400 px screen lacks: the only lengths in px are small.
    assert all(int(width) < 100 for width in re.findall(r"width:\s*(\d+)px", page))
