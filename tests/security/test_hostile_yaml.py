"""Files that are made to run code, to fill memory or to take for ever are refused in a few lines."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from qresearch.cli import main
from qresearch.config.yaml_loader import MAX_BYTES, MAX_VALUES

NEARLY = MAX_BYTES - 1_000
BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 10)
)
GRID = "name: a\nflow: float\nsweep: {grid: {" + ", ".join(f"seed.{i}: [1, 2]" for i in range(20_000)) + "}}"


def repeated(piece: str, size: int = NEARLY) -> str:
    return piece * (size // len(piece))


# (the text, what the first line of the answer says)
CODE = {
    "apply": ("a: !!python/object/apply:os.system ['touch up']", "tags (!) are not used here"),
    "new": ("!!python/object/new:os.system ['touch up']", "tags (!) are not used here"),
    "name": ("a: !!python/name:os.system", "tags (!) are not used here"),
    "module": ("a: !!python/module:os", "tags (!) are not used here"),
    "own tag": ("%TAG ! tag:yaml.org,2002:python/\n---\na: !object/apply:os.system ['touch up']", "tags (!)"),
    "verbatim tag": ("a: !<tag:yaml.org,2002:python/object/apply:os.system> ['touch up']", "tags (!)"),
    "merge": ("a: &a {b: 1}\nc: {<<: *a}", "anchors (&) and aliases (*) are not used here"),
    "alias of itself": ("a: &a [*a]", "anchors (&) and aliases (*) are not used here"),
    "interpolation": ("name: '${oc.env:HOME}'", 'got "${oc.env:HOME}"'),
}
LARGE = {
    "alias bomb": (BOMB, "anchors (&) and aliases (*) are not used here"),
    "10 MB": (repeated("a: 1\n", 10_000_000), f"larger than {MAX_BYTES} bytes"),
    "10 MB of nothing": (repeated("#" * 79 + "\n", 10_000_000), f"larger than {MAX_BYTES} bytes"),
    "deep list": ("[" * NEARLY, "nested more than"),
    "deep mapping": (repeated("{a: "), "nested more than"),
    "deep block": ("\n".join(" " * i + "a:" for i in range(1300)), "nested more than"),
    "deep keys": (repeated("? "), "nested more than"),
    "one list": ("a: [" + repeated("1,", NEARLY - 9) + "1]", f"more than {MAX_VALUES} values"),
    "empty lists": ("a: [" + repeated("[],", NEARLY - 9) + "1]", f"more than {MAX_VALUES} values"),
    "keys": ("".join(f"k{i}: 1\n" for i in range(90_000)), f"more than {MAX_VALUES} values"),
    "duplicate keys": (repeated("a: 1\n"), "duplicate key"),
    "anchors": ("a: [" + repeated("&a 1,", NEARLY - 9) + "1]", "anchors (&)"),
    "rules": ("quantize: {rules: [" + repeated("{pattern: a},", NEARLY - 30) + "]}", f"more than {MAX_VALUES} values"),
    "one text": (f"name: '{'x' * NEARLY}'", "name: expected up to 64 of a-z"),
    "one number": ("seed: " + "9" * NEARLY, "a number of"),
    "one line of quotes": ("a: " + repeated("'", NEARLY - 1) + "x", "not valid YAML"),
    "one escape": ('a: "' + repeated("\\x41", NEARLY), "not valid YAML"),
    "documents": (repeated("---\n"), "a second document"),
    "the largest grid": (GRID, "expected at most 10000 runs"),
}


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", CODE)
def test_nothing_in_a_file_or_a_setting_is_run(work: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    text, expected = CODE[name]
    (work / "my.yaml").write_text(text)
    assert main(["check", "my.yaml"]) == 2
    first, *rest = capsys.readouterr().err.splitlines()
    assert first.startswith("error: my.yaml:")
    assert expected in first
    assert rest[-1].endswith("nothing started")
    (work / "my.yaml").write_text("name: a\nflow: float\n")
    assert main(["check", "my.yaml", "--set", f"data.name={text}"]) == 2
    assert capsys.readouterr().err.startswith("error: --set  data.name: ")
    assert sorted(path.name for path in work.iterdir()) == ["my.yaml"]


# One process for all: what the largest took is what is left at the end.
SCRIPT = """
import contextlib, io, json, sys
from qresearch.cli import main
peak = lambda: int(open("/proc/self/status").read().partition("VmHWM:")[2].split()[0])
seen = {}
for path in sys.argv[1:]:
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors):
        status = main(["check", path])
    seen[path] = [status, errors.getvalue(), peak()]
print(json.dumps(seen))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not report the largest memory")
def test_large_files_cost_little_memory_and_a_few_lines(work: Path) -> None:
    """Less than 100 MB more than a file of one wrong key. All of them took 24 s (2 CPU cores)."""
    names = ["small.yaml", *(f"{name.replace(' ', '-')}.yaml" for name in LARGE)]
    for name, text in zip(names, ["nam: a\n", *(text for text, _ in LARGE.values())]):
        (work / name).write_text(text)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *names], capture_output=True, text=True, env=environment, timeout=300, check=True
    )
    seen = json.loads(done.stdout)
    for name, (_, expected) in zip(names[1:], LARGE.values()):
        status, errors, memory = seen[name]
        lines = errors.splitlines()
        assert status == 2, name
        assert expected in lines[0], (name, lines[0][:300])
        assert len(lines) <= 102
        assert max(map(len, lines)) < 500
        assert memory - seen["small.yaml"][2] < 100_000, name  # KiB
