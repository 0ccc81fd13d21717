from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys

import pytest
from small_sweep import ONE, SMALL, one_line, settings, stored, write_small

from qresearch.allocation import ALLOCATORS
from qresearch.cli import main
from qresearch.cost import COSTS
from qresearch.data import DATASETS
from qresearch.models import MODELS
from qresearch.numerics.ranges import RANGES
from qresearch.ptq import PTQ
from qresearch.quantizers import QUANTIZERS
from qresearch.tasks import TASKS

COMMANDS = (
    "sweep",
    "run",
    "search",
    "benchmark",
    "check",
    "plan",
    "resume",
    "report",
    "show",
    "status",
    "runs",
    "compare",
    "export",
    "verify",
    "figure",
    "import-weights",
    "list",
    "doctor",
)
REGISTRIES = {
    "quantizers": QUANTIZERS,
    "ptq": PTQ,
    "allocators": ALLOCATORS,
    "models": MODELS,
    "data": DATASETS,
    "tasks": TASKS,
    "costs": COSTS,
    "ranges": RANGES,
}
WORDS = {"ranges": ("auto", "own")}  # which a config may say too


def helped(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        main([*arguments, "--help"])
    assert stop.value.code == 0
    return capsys.readouterr().out


def test_help_names_every_command(capsys):
    text = helped(capsys)
    assert re.findall(r"^    ([\w-]+)(?: |$)", text, re.MULTILINE) == list(COMMANDS)
    assert "130 interrupted" in " ".join(text.split())


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command(capsys, command):
    text = " ".join(helped(capsys, command).split())
    assert text.startswith(f"usage: qresearch {command}")
    for status in (
        "0 done",
        "2 bad input, nothing started",
        "3 some trials failed",
        "4 a drop above --max-drop",
        "5 models",
    ):
        assert status in text


@pytest.mark.parametrize("arguments", [[], ["sweeep"], ["sweep"], ["search"], ["check", "a", "b"], ["runs", "--nope"]])
def test_wrong_usage_is_exit_2(capsys, arguments):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert "usage: qresearch" in capsys.readouterr().err


# What must answer at once: help, mistakes of form, and what only reads records.
WITHOUT_JAX = """
import contextlib, io, json, sys
from qresearch.cli import main
seen = {}
for arguments in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            status = main(arguments)
        except SystemExit as stop:
            status = stop.code
    heavy = {"jax", "flax", "optax", "orbax", "numpyro", "sklearn", "matplotlib"} & set(sys.modules)
    seen[" ".join(arguments)] = [status, sorted(heavy)]
print(json.dumps(seen))
"""


def test_help_and_mistakes_of_form_import_no_jax(tmp_path):
    bad = write_small(tmp_path, SMALL.replace("epochs", "epohcs"))
    commands = [["--help"], *([command, "--help"] for command in COMMANDS)]
    commands += [[command, str(bad)] for command in ("check", "sweep", "run")]
    commands += [["sweep", str(tmp_path / "gone.yaml")], ["search", str(bad), "--budgets", "3"]]
    commands += [["runs", "--output", str(tmp_path / "none")], ["show", "x", "--output", str(tmp_path / "none")]]
    process = subprocess.run(
        [sys.executable, "-c", WITHOUT_JAX, json.dumps(commands)], capture_output=True, text=True, check=True
    )
    seen = json.loads(process.stdout)
    assert all(heavy == [] for _, heavy in seen.values()), seen
    assert {status for command, (status, _) in seen.items() if "--help" in command} == {0}
    assert [seen[" ".join(command)][0] for command in commands[1 + len(COMMANDS) :]] == [2, 2, 2, 2, 2, 0, 2]


def test_python_dash_m_and_the_program_are_the_same(tmp_path):
    """Both end with main's exit status, also where output cannot show every letter."""
    bad = str(tmp_path / "gone.yaml")
    for start in (
        [sys.executable, "-m", "qresearch.cli"],
        [sys.executable, "-c", "import qresearch.cli as c; c.entry()"],
    ):
        process = subprocess.run([*start, "check", bad], capture_output=True, text=True)
        assert process.returncode == 2
        assert process.stderr.splitlines() == [f"error: {bad}  no such file", "1 problem, nothing started"]


def test_output_that_cannot_show_a_letter_is_no_traceback():
    process = subprocess.run(
        [sys.executable, "-m", "qresearch.cli", "list", "quantizers"],
        capture_output=True,
        env={"PYTHONIOENCODING": "ascii", "JAX_PLATFORMS": "cpu", "PATH": ""},
    )
    assert (process.returncode, process.stderr) == (0, b"")
    assert b"lsq" in process.stdout


# ---- list


def test_list_shows_everything_a_config_can_name(capsys):
    assert main(["list"]) == 0
    text = capsys.readouterr().out
    for kind, registry in REGISTRIES.items():
        block = text.split(f"{kind}\n", 1)[1].split("\n\n")[0]
        shown = re.findall(r"^  (\S+)  +(\S.*)$", block, re.MULTILINE)
        assert [name for name, _ in shown] == sorted([*registry, *WORDS.get(kind, ())])


@pytest.mark.parametrize("kind", REGISTRIES)
def test_list_of_one_kind(capsys, kind):
    assert main(["list", kind]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == kind
    entries = [line for line in lines[1:] if not line.startswith("   ")]
    assert [line.split()[0] for line in entries] == sorted([*REGISTRIES[kind], *WORDS.get(kind, ())])
    assert all(len(line.split()) > 2 for line in entries), "every entry has a description"


def test_list_of_quantizers_says_what_each_is(capsys):
    assert main(["list", "quantizers"]) == 0
    blocks = re.split(r"^  (?=\S)", capsys.readouterr().out, flags=re.MULTILINE)[1:]
    for block in blocks:
        shown = dict(re.findall(r"^ {6}(\w+) +(\S.*)$", block, re.MULTILINE))
        assert {"paper", "learns", "stores", "grids", "granularity"} <= set(shown), block
        assert re.search(r"[A-Z].*\b(19|20)\d\d\b.*https?://", shown["paper"]), block
    of_binary = next(block for block in blocks if block.startswith("binary"))
    assert "XNOR-Net: ImageNet Classification" in of_binary
    assert re.search(r"stores +1-bit codes of a codebook", of_binary)
    assert re.search(r"learns +scale$", next(block for block in blocks if block.startswith("lsq ")), re.MULTILINE)


@pytest.mark.parametrize(("kind", "hint"), [("quantizer", "'quantizers'"), ("nothing", "allocators, costs, data")])
def test_list_of_an_unknown_kind(capsys, kind, hint):
    assert main(["list", kind]) == 2
    error = capsys.readouterr().err.splitlines()[0]
    assert error.startswith(f"error: '{kind}' cannot be listed; ")
    assert hint in error


# ---- check


def test_check_counts_the_trials_and_starts_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = write_small(tmp_path)
    assert main(["check", str(config)]) == 0
    assert one_line(capsys.readouterr().out) == f"{config}: fine, 7 trials (1 float, 3 ptq, 3 qat)"
    assert main(["check", str(config), *settings("sweep.grid={seed: [0, 1]}")]) == 0
    assert "fine, 14 trials" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["small.yaml"]


# ---- run


def test_run_is_for_one_trial(tmp_path, capsys):
    config = write_small(tmp_path)
    assert main(["run", str(config), *settings(f"output={tmp_path / 'out'}")]) == 2
    error = capsys.readouterr().err.splitlines()[0]
    assert error == f"error: {config}: describes 7 trials; use 'qresearch sweep', or set 'sweep: null'"
    assert not (tmp_path / "out").exists()
    assert main(["run", str(config), *settings(f"output={tmp_path / 'out'}", *ONE)]) == 0
    assert list(stored(tmp_path / "out")) == ["ptq-lsq-w8a8-seed0"]


# ---- What a sweep prints


def test_a_sweep_prints_its_folder_first_and_its_files_last(finished_sweep, tmp_path, capsys):
    output = shutil.copytree(finished_sweep, tmp_path / "out")
    (folder,) = output.iterdir()
    assert main(["sweep", str(write_small(tmp_path)), *settings(f"output={output}")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"folder  {folder}"
    names = ("front.csv", "allocations.csv", "front.png", "report.html", "searches.csv", "searches.png")
    files = [folder / name for name in names]
    assert lines[-6:] == [str(path) for path in files]
    assert all(path.stat().st_size for path in files)
    table = "\n".join(lines)
    assert "front (*: on it by validation score; scores: test)" in table
    for label in ("uniform W4A4", "uniform W2A2", "exact average_bits 4", "random average_bits 3"):
        assert label in table
    assert "mixed against uniform" in table


# ---- runs, show, report


def test_runs(finished_sweep, capsys):
    (folder,) = finished_sweep.iterdir()
    assert main(["runs", "--output", str(finished_sweep)]) == 0
    header, row = capsys.readouterr().out.strip().splitlines()
    assert header.split()[:4] == ["run", "done", "failed", "invalid"]
    assert row.split()[:4] == [folder.name, "7", "0", "0"]
    assert row.split()[-1] == "top1"


def test_runs_of_a_folder_without_any(tmp_path, capsys):
    assert main(["runs", "--output", str(tmp_path / "none")]) == 0
    assert one_line(capsys.readouterr().out) == f"no runs in {tmp_path / 'none'}"


@pytest.mark.parametrize("by", ["name", "beginning", "path"])
def test_show_prints_the_front_and_writes_nothing(finished_sweep, capsys, by):
    (folder,) = finished_sweep.iterdir()
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    named = {"name": folder.name, "beginning": "smal", "path": str(folder)}[by]
    assert main(["show", named, "--output", str(finished_sweep)]) == 0
    text = capsys.readouterr().out
    assert "front (*" in text
    assert text.endswith("\n\n")
    assert "\n\n\n" not in text
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


@pytest.mark.parametrize("command", ["show", "report"])
def test_a_run_that_is_not_there(finished_sweep, tmp_path, capsys, command):
    assert main([command, "smalll", "--output", str(finished_sweep)]) == 2
    assert re.match(r"error: no run 'smalll' in .*small-", one_line(capsys.readouterr().err))
    assert main([command, "x", "--output", str(tmp_path)]) == 2
    assert "it holds no runs" in one_line(capsys.readouterr().err)


def test_show_names_damaged_files(finished_sweep, tmp_path, capsys):
    output = shutil.copytree(finished_sweep, tmp_path / "out")
    (victim,) = output.glob("*/trials/*w2a2*/result.json")
    victim.write_text(victim.read_text()[:100])
    assert main(["show", "small", "--output", str(output)]) == 0
    text = capsys.readouterr().out
    assert "invalid records, left out" in text
    assert victim.relative_to(next(output.iterdir())).as_posix() in text


def test_report_writes_the_files_again(finished_sweep, tmp_path, capsys):
    pytest.importorskip("plotly", reason="needs Plotly: pip install 'qresearch[report]'")
    output = shutil.copytree(finished_sweep, tmp_path / "out")
    (folder,) = output.iterdir()
    names = ("front.csv", "allocations.csv", "front.png", "report.html", "searches.csv", "searches.png")
    before = {name: (folder / name).read_bytes() for name in names}
    for name in names:
        (folder / name).unlink()
    assert main(["report", "small", "--output", str(output)]) == 0
    assert capsys.readouterr().out.splitlines()[-7:] == [str(folder / name) for name in (*names, "explorer.html")]
    assert {name: (folder / name).read_bytes() for name in names[:3]} == {name: before[name] for name in names[:3]}
