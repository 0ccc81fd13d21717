"""Each thing that may be wrong with a machine is one line of ``qresearch doctor``, with what to do."""

from __future__ import annotations

import email
import errno
import fcntl
import importlib.metadata
import os
import shutil
import sqlite3
from pathlib import Path
from types import SimpleNamespace

import pytest

from qresearch import doctor
from qresearch.cli import main
from qresearch.doctor import Check, examine
from qresearch.errors import DataError

QUICK = 'print(\'[["cpu", "cpu"]]\')'


@pytest.fixture
def quick(monkeypatch):
    """Without JAX, which takes seconds to show its devices, without a data folder, and installed with three extras."""
    extras = "".join(f"\nProvides-Extra: {name}" for name in ("images", "peers", "cuda"))
    monkeypatch.setattr(importlib.metadata, "metadata", lambda name: email.message_from_string(f"Version: 1.0{extras}"))
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: ["numpy"])
    monkeypatch.setattr(doctor, "_DEVICES", QUICK)
    monkeypatch.setattr(doctor, "_NVIDIA", Path("/nowhere"))
    monkeypatch.setattr(doctor, "DATASETS", {})
    monkeypatch.delenv("QRESEARCH_DATA", raising=False)


def checks(output, **options):
    found = list(examine(output, **options))
    assert all("\n" not in check.line for check in found)
    return {check.what: check for check in found}


def bad(output, **options):
    return [check for check in checks(output, **options).values() if check.level != "ok"]


def test_a_machine_that_runs_the_tests_is_fit(tmp_path, capsys, monkeypatch):
    """Nothing is replaced: JAX shows its devices, the folder is written, digits are loaded; and nothing is left."""
    monkeypatch.delenv("QRESEARCH_DATA", raising=False)
    monkeypatch.setattr(doctor, "_NVIDIA", Path("/nowhere"))
    before = sorted(tmp_path.rglob("*"))
    assert main(["doctor", "--output", str(tmp_path / "not" / "there")]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert last == "everything that is needed is there"
    assert all(line.startswith(("ok    ", "warn  ")) for line in lines)
    text = "\n".join(lines)
    packages = ("jax", "numpy") if "\nwarn  qresearch: is not installed" not in text else ()
    for what in ("platform", *packages, "JAX devices", "CPU cores", "memory", "SQLite", "data digits"):
        assert f"\nok    {what}: " in f"\n{text}"
    assert f"output folder {tmp_path}/not/there: is written, flushed, renamed and locked" in text
    assert sorted(tmp_path.rglob("*")) == before


def test_what_is_in_the_output_folder_stays(tmp_path, quick):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "file").write_text("mine")
    assert bad(tmp_path) == []
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "run"]
    assert (tmp_path / "run" / "file").read_text() == "mine"


def test_what_must_be_mended_is_counted_and_is_status_2(tmp_path, quick, capsys):
    (tmp_path / "file").touch()
    assert main(["doctor", "--output", str(tmp_path / "file")]) == 2
    *lines, last = capsys.readouterr().out.splitlines()
    assert last == "1 of these must be mended"
    (line,) = (line for line in lines if line.startswith("FAIL"))
    assert line == f"FAIL  output folder {tmp_path}/file: cannot be written: File exists (name another with --output)"


def test_packages_that_are_missing_or_out_of_range(tmp_path, quick, monkeypatch):
    required = [
        "numpy>=999",
        "nosuchpackage>=1",
        "scipy>=1; python_version < '3'",
        "qwix-nosuch; extra == 'peers'",
        "numpy>=998; extra == 'images'",
    ]
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: required if name == "qresearch" else [])
    found = checks(tmp_path)
    version = importlib.metadata.version("numpy")
    wanted = f"{version} is installed, and >=999 is needed (pip install 'numpy>=999')"
    assert found["numpy"].line == f"FAIL  numpy: {wanted}"
    assert found["nosuchpackage"].line == "FAIL  nosuchpackage: is not installed (pip install 'nosuchpackage>=1')"
    assert "scipy" not in found
    assert (
        found["extra peers"].line == "ok    extra peers: qwix-nosuch is not installed (pip install 'qresearch[peers]')"
    )
    assert found["extra images"].level == "warn"


def test_an_extra_of_an_extra_is_looked_at_too(tmp_path, quick, monkeypatch):
    """``jax[cuda]``: jax is there, and its plugin is not."""
    required = {"qresearch": ["jax[cuda]; extra == 'cuda'"], "jax": ["numpy", "jax-plugin-nosuch; extra == 'cuda'"]}
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: required.get(name, []))
    line = checks(tmp_path)["extra cuda"].line
    assert line == "ok    extra cuda: jax-plugin-nosuch is not installed (pip install 'qresearch[cuda]')"


def test_a_checkout_that_is_not_installed(tmp_path, quick, monkeypatch):
    def absent(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "metadata", absent)
    (check,) = bad(tmp_path)
    assert check.line == "warn  qresearch: is not installed, so that no versions are checked (pip install -e .)"


@pytest.mark.parametrize(
    ("script", "found"),
    [
        ("raise ImportError('libcuda.so.1 is missing')", "ImportError: libcuda.so.1 is missing (exit status 1)"),
        ("import os; os.abort()", " (exit status -6)"),
        ("import time; time.sleep(600)", "no answer in 0.5 s"),
    ],
)
def test_devices_that_fail_crash_or_hang(tmp_path, quick, monkeypatch, script, found):
    monkeypatch.setattr(doctor, "_DEVICES", script)
    (check,) = bad(tmp_path, timeout=0.5 if "sleep" in script else 60)
    assert (check.level, check.what, check.found) == ("FAIL", "JAX devices", found)
    assert "JAX_PLATFORMS=cpu" in check.to_do


def test_devices_are_counted_by_kind(tmp_path, quick, monkeypatch):
    monkeypatch.setattr(doctor, "_DEVICES", 'print(\'[["cuda", "H100"], ["cuda", "H100"]]\')')
    assert checks(tmp_path)["JAX devices"].line == "ok    JAX devices: 2 x H100"


def test_a_gpu_that_jax_does_not_use(tmp_path, quick, monkeypatch):
    monkeypatch.setattr(doctor, "_NVIDIA", tmp_path)
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    (check,) = bad(tmp_path)
    assert check.line == "warn  JAX devices: 1 x cpu, and not the NVIDIA GPU (pip install 'qresearch[cuda]')"
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")  # it was asked for
    assert bad(tmp_path) == []


def test_a_file_system_without_locks(tmp_path, quick, monkeypatch):
    def refuse(file, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    (check,) = bad(tmp_path)
    assert check.level == "FAIL"
    assert "No locks available" in check.found
    assert "another file system" in check.to_do


def test_a_file_system_whose_locks_hold_nobody_off(tmp_path, quick, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", lambda file, operation: None)
    (check,) = bad(tmp_path)
    assert (check.level, check.found) == ("FAIL", "a lock that is held is not seen; two sweeps could write one run")


def test_a_disk_that_is_full(tmp_path, quick, monkeypatch):
    def full(path, data):
        raise DataError(f"cannot write {path}: No space left on device")

    monkeypatch.setattr(doctor, "write_bytes", full)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1))
    assert [(check.level, check.what.split()[0]) for check in bad(tmp_path)] == [("FAIL", "output"), ("warn", "free")]
    assert list(tmp_path.iterdir()) == []


def test_an_old_sqlite(tmp_path, quick, monkeypatch):
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 36, 9))
    (check,) = bad(tmp_path)
    assert (check.level, check.to_do) == ("FAIL", "the ledger of a run needs 3.37 or newer")


def test_a_data_folder_that_is_not_there(tmp_path, quick, monkeypatch):
    monkeypatch.setenv("QRESEARCH_DATA", str(tmp_path / "none"))
    (check,) = bad(tmp_path)
    assert check.line.startswith(f"FAIL  data folder {tmp_path}/none: cannot be read: No such file or directory (")


def test_data_sets_that_are_there_and_not(tmp_path, quick, data_folder, monkeypatch):
    """A file that is truncated is not there."""
    from qresearch.data import DATASETS

    data_folder(SimpleNamespace(data=SimpleNamespace(name="mnist"), model=SimpleNamespace(weights=None)))
    folder = tmp_path / "data"
    shutil.copytree(tmp_path / "mnist", folder / "mnist")
    monkeypatch.setattr(doctor, "DATASETS", {name: DATASETS[name] for name in ("digits", "mnist", "cifar10")})
    monkeypatch.setenv("QRESEARCH_DATA", str(folder))
    found = checks(tmp_path / "out")
    assert found["data digits"].line == "ok    data digits: 1097 training examples"
    assert found["data mnist"].line == "ok    data mnist: 55000 training examples"
    assert found["data cifar10"].line.startswith(f"warn  data cifar10: no test_batch.bin in {folder}")
    assert "https://" in found["data cifar10"].to_do
    victim = next((folder / "mnist").glob("train-images*"))
    victim.write_bytes(victim.read_bytes()[:1000])
    assert isinstance(found := checks(tmp_path / "out")["data mnist"], Check)
    assert (found.level, victim.name in found.found) == ("warn", True)
