from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qresearch.config import yaml_loader
from qresearch.config.yaml_loader import MAX_BYTES, MAX_DEPTH, parse_yaml, read_document
from qresearch.errors import ConfigError

SCALARS = {
    "1e-3": 1e-3,
    "1E3": 1e3,
    "-.5": -0.5,
    "1.": 1.0,
    "3": 3,
    "-0": 0,
    "+12": 12,
    "010": 10,
    "0o17": 15,
    "0xff": 255,
    ".inf": math.inf,
    "-.Inf": -math.inf,
    "true": True,
    "False": False,
    "null": None,
    "~": None,
    "": None,
    "no": "no",
    "yes": "yes",
    "on": "on",
    "off": "off",
    "y": "y",
    "1_000": "1_000",
    "0b11": "0b11",
    "1:30": "1:30",
    "2001-12-14": "2001-12-14",
    "<<": "<<",
    "=": "=",
    "e3": "e3",
    ".": ".",
    "'1e-3'": "1e-3",
    '"true"': "true",
    "'~'": "~",
    "|-\n  12": "12",
}


def problems_of(text: str) -> list[tuple[int | None, str, str]]:
    return [(line, ".".join(path), message) for line, path, message in parse_yaml(text)[2]]


def refusal(path: object) -> str:
    with pytest.raises(ConfigError) as caught:
        read_document(path)  # type: ignore[arg-type]
    return str(caught.value)


@pytest.mark.parametrize("text", SCALARS)
def test_scalars_are_those_of_yaml_1_2(text: str) -> None:
    value, _, problems = parse_yaml(f"key: {text}")
    assert problems == []
    assert type(value["key"]) is type(SCALARS[text])
    assert value["key"] == SCALARS[text]


def test_nan_is_a_number() -> None:
    assert math.isnan(parse_yaml(".nan")[0])


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False)
    | st.text("ab1e-.#:'\"{[ é,&*!~", max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abé 1", max_size=3), inner, max_size=3),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(PLAIN)
def test_reads_back_what_json_wrote(value: object) -> None:
    # JSON is a subset of YAML 1.2 but for the spelling of infinities.
    text = json.dumps(value, ensure_ascii=False).replace("Infinity", ".inf")
    assert parse_yaml(text)[::2] == (value, [])


def test_every_key_and_item_has_its_line() -> None:
    text = "# note\na: 1\nb:\n  c: [1,\n      2]\n  d:\n    - e: 1\n    -\n      f: 2\n"
    lines = {".".join(path): line for path, line in parse_yaml(text)[1].items()}
    expected = {"a": 2, "b": 3, "b.c": 4, "b.c.0": 4, "b.c.1": 5, "b.d": 6, "b.d.0": 7, "b.d.0.e": 7, "b.d.1.f": 9}
    assert {key: lines[key] for key in expected} == expected


@pytest.mark.parametrize(
    ("text", "line", "path", "message"),
    [
        ("a: 1\nb: 2\na: 3", 3, "a", "duplicate key; first given on line 1"),
        ("x:\n  a: 1\n  a: 1", 3, "x.a", "duplicate key; first given on line 2"),
        ("a: &x 1", 1, "a", "anchors (&) and aliases (*) are not used here; write the value out"),
        ("a: 1\nb: *x", 2, "b", "anchors (&) and aliases (*) are not used here; write the value out"),
        ("a: !!python/object/apply:os.system [ls]", 1, "a", "tags (!) are not used here; write the value plainly"),
        ("a: !!str 1", 1, "a", "tags (!) are not used here; write the value plainly"),
        ("a: ! b", 1, "a", "tags (!) are not used here; write the value plainly"),
        ("1: a", 1, "", "expected a name as key, got 1"),
        ("a:\n  ? [b]\n  : c", 2, "a", 'expected a name as key, got ["b"]'),
        ('a: "\\0"', 1, "a", "text with control characters or line breaks; expected one printable line"),
        ('a: "\\ud800"', 1, "a", "text with control characters or line breaks; expected one printable line"),
        ("a: |\n  b\n", 1, "a", "text with control characters or line breaks; expected one printable line"),
        ("a: " + "9" * 5000, 1, "a", "a number of 5000 digits; at most 80 are read"),
        ("a: 0x" + "f" * 5000, 1, "a", "a number of 5002 digits; at most 80 are read"),
        ("a: 1\n---\nb: 1", 2, "", "a second document ('---'); expected one per file"),
        ("a: b: c", 1, "", "not valid YAML: mapping values are not allowed here"),
        ("a: 1\n\tb: 2", 2, "", "not valid YAML: found character '\\t' that cannot start any token"),
        ('a: 1\nb: "\\UFFFFFFFF"', 2, "", "not valid YAML: a number or character code is out of range"),
        ("a: 1\nb: \x07", 2, "", "character U+0007 may not stand in a YAML file"),
    ],
)
def test_refusals_name_line_and_key(text: str, line: int, path: str, message: str) -> None:
    assert problems_of(text) == [(line, path, message)]


def test_all_problems_of_form_are_listed() -> None:
    assert [line for line, _, _ in problems_of("a: &x 1\nb: !!int 2\na: 3\n7: 1\nc: *x")] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("opening", ["[", "{a: ", "- ", "? "])
def test_depth_is_bounded(opening: str) -> None:
    (_, _, message), *rest = problems_of(opening * 100_000)
    assert (message, rest) == (f"nested more than {MAX_DEPTH} deep", [])


def test_depth_within_the_bound_is_read() -> None:
    assert problems_of("[" * MAX_DEPTH + "]" * MAX_DEPTH) == []
    assert len(problems_of("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1))) == 1


def test_the_number_of_values_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(yaml_loader, "MAX_VALUES", 10)
    refused = [(2, "", "more than 10 values; expected a configuration, not data")]
    assert problems_of("[1, 1, 1, 1,\n1, 1, 1, 1, 1]") == []  # and the list itself
    assert problems_of("[1, 1, 1, 1,\n1, 1, 1, 1, 1, 1]") == refused
    assert problems_of("{a: 1, b: {c: {}, d: []},\n}") == []
    assert problems_of("{a: 1, b: {c: {}, d: []},\ne: 1}") == refused


def test_long_numbers_are_read_up_to_the_bound() -> None:
    assert parse_yaml("9" * 80)[::2] == (10**80 - 1, [])
    assert len(problems_of("9" * 81)) == 1


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    assert refusal(path) == f"{path}  no such file"
    assert refusal(tmp_path) == f"{tmp_path}  this is a folder; expected a YAML file"
    assert refusal("my\0.yaml") == "my\\x00.yaml  cannot be read: embedded null byte"
    path.write_bytes(b"name: a\nflow: \xff\n")
    assert refusal(path) == f"{path}:2  byte 0xff is not UTF-8 text; save the file as UTF-8"
    path.write_bytes(b"name: a\n" + b"#" * 2_000_000)
    assert refusal(path) == f"{path}  larger than 1000000 bytes; expected a configuration, not data"
    path.write_bytes(b"# note\n" + b"#" * (MAX_BYTES - 7))
    assert refusal(path) == f"{path}:1  the file is empty; expected keys such as 'name: my_run'"
    path.write_text("- a\n- b\n")
    assert refusal(path) == f'{path}:1  the file holds ["a", "b"]; expected keys such as \'name: my_run\''


def test_the_reason_of_the_system_is_given() -> None:
    assert refusal("a" * 5000).endswith("  cannot be read: File name too long")


def test_byte_order_mark_and_windows_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    path.write_bytes(b"\xef\xbb\xbfname: a\r\nseed: 1\r\n")
    document = read_document(path)
    assert document.values == {"name": "a", "seed": 1}
    assert document.lines[("seed",)] == 2


def test_message_for_a_file_name_with_a_line_break_is_one_line() -> None:
    assert refusal("my\nfile.yaml") == r"my\nfile.yaml  no such file"


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 10)
)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not report the largest memory")
def test_hostile_files_cost_little_memory(tmp_path: Path) -> None:
    """The largest resident set of a process that reads an alias bomb, a large file and a deep one: under 100 MB."""
    (tmp_path / "bomb.yaml").write_text(BOMB)
    (tmp_path / "large.yaml").write_bytes(b"a: [" + b"1," * 5_000_000 + b"]")
    (tmp_path / "deep.yaml").write_bytes(b"[" * 900_000)
    script = (
        "import sys\nfrom qresearch.config import load\nfrom qresearch.errors import ConfigError\n"
        "for path in sys.argv[1:]:\n    try:\n        load(path)\n    except ConfigError:\n        pass\n"
        "    else:\n        sys.exit('accepted ' + path)\n"
        "print(open('/proc/self/status').read().partition('VmHWM:')[2].split()[0])"
    )
    files = [str(path) for path in sorted(tmp_path.iterdir())]
    done = subprocess.run([sys.executable, "-c", script, *files], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 100_000  # KiB
