"""Shared fixtures. Tests run in float32 on whatever device JAX finds; where data is absent they skip, with a reason."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent


def shared_path(*parts: str) -> Path:
    """The path of a development file beside the checkout (or under QRESEARCH_SHARED), or a skip that names it."""
    base = Path(os.environ.get("QRESEARCH_SHARED", ROOT.parent / "shared"))
    path = base.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"development data not present: shared/{'/'.join(parts)} (set QRESEARCH_SHARED)")
    return path


def pytest_configure(config: pytest.Config) -> None:
    """Most of the fast suite's time is the compiler's: there it does not optimize, but where a test asks (``Program``).

    The slow suite, and all tests with ``-m ''``, run what users run. XLA_FLAGS that are set stay as they are.
    """
    if config.option.markexpr == "not slow":
        flags = ["--xla_backend_optimization_level=0", "--xla_cpu_parallel_codegen_split_count=1"]
        if version("jaxlib") < "0.11":  # later ones have no other emitters, and an unknown flag ends the process
            flags.append("--xla_cpu_use_fusion_emitters=false")
        os.environ.setdefault("XLA_FLAGS", " ".join(flags))


@pytest.fixture(scope="session")
def cifar10_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CIFAR-10 in its official layout: QRESEARCH_DATA if it holds one, else unpacked from the shared sprites."""
    named = os.environ.get("QRESEARCH_DATA")
    if named and any((Path(named) / part / "test_batch.bin").is_file() for part in (".", "cifar-10-batches-bin")):
        return Path(named)
    script = shared_path("data", "unpack_cifar10.py")
    pytest.importorskip("PIL", reason="unpacking shared/data/cifar10 needs Pillow")
    folder = tmp_path_factory.mktemp("cifar10")
    subprocess.run([sys.executable, str(script), str(folder)], check=True, capture_output=True)
    return folder


def golden_cases(name: str) -> list[tuple[dict[str, Any], dict[str, np.ndarray]]]:
    """The (parameters, arrays) of every case in a golden file: what public software computed, see its README."""
    with np.load(shared_path("golden", f"{name}.npz"), allow_pickle=False) as file:
        cases = json.loads(str(file["__cases__"]))
        return [(case, {key: file[f"{case['case']}::{key}"] for key in case["arrays"]}) for case in cases]


@pytest.fixture(autouse=True)
def _strict_arrays(request: pytest.FixtureRequest) -> Iterator[None]:
    """In numerics and quantizers a dtype or a rank that would be promoted silently is an error."""
    if request.path.parent.name not in {"numerics", "quantizers"}:
        yield
        return
    import jax  # here alone: most of the suite's folders test modules that must not pay for it

    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture(scope="session")
def finished_sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of ``small_sweep.SMALL``, run without interruption. Shared: tests read it, or copy it first."""
    from small_sweep import sweep, write_small

    folder = tmp_path_factory.mktemp("finished")
    assert sweep(write_small(folder), folder / "out") == 0
    return folder / "out"


@pytest.fixture(scope="session")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the sweep of ``kills``, run without interruption, with its config and its compiled programs."""
    from kills import TRIALS, begin

    folder = tmp_path_factory.mktemp("unbroken")
    process = begin(folder, folder / "out", "--engine", "inline")
    text, _ = process.communicate(timeout=600)
    assert process.returncode == 0, text
    assert f"{TRIALS} trials run, 0 found done, 0 failed" in text
    return folder


@pytest.fixture(scope="session")
def trained_digits() -> Any:
    """An MLP trained on digits for a few epochs, quantized with LSQ and calibrated; see ``trained.Digits``."""
    from trained import train_digits

    return train_digits()


@pytest.fixture
def data_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Callable[[Any], None]:
    """QRESEARCH_DATA with what a config needs, or a skip that says what is missing."""

    def provide(config: Any) -> None:
        if config.data.name == "cifar10":
            folder = request.getfixturevalue("cifar10_folder")
            inner = folder / "cifar-10-batches-bin"
            (tmp_path / "cifar-10-batches-bin").symlink_to(inner if inner.is_dir() else folder)
        for part in {"text": ["text"], "digit_scenes": ["mnist"], "mnist": ["mnist"]}.get(config.data.name, []):
            (tmp_path / part).symlink_to(shared_path("data", part))
        if config.model.weights:
            (tmp_path / "weights").symlink_to(shared_path("data", "weights"))
        monkeypatch.setenv("QRESEARCH_DATA", str(tmp_path))

    return provide
