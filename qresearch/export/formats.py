"""The formats that a restored trial leaves in, and all the ways to run it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from qresearch.errors import ConfigError, QResearchError
from qresearch.export.allocation_files import allocation_csv, allocation_json
from qresearch.export.frozen_file import load_frozen, save_frozen
from qresearch.export.onnx import SESSION_OPTIONS, export_onnx, run_onnx, session, write_onnx
from qresearch.export.qwix_rules import qwix_json, qwix_rules
from qresearch.export.stablehlo import export_model, load_program, run_model, save_program
from qresearch.export.verify import REFERENCE, Execution
from qresearch.frozen import EXECUTIONS, Frozen, freeze
from qresearch.results.atomic import make_folder, write_text
from qresearch.sweep.restore import Restored


class Deployed(NamedTuple):
    """A trial as it is deployed. facts: what its files say of it. batch: of programs; None for any."""

    restored: Restored
    frozen: Frozen
    facts: dict[str, Any]
    batch: int | None = None

    @property
    def x(self) -> Any:
        """The shapes of a batch of prepared inputs."""
        shape, dtype = self.restored.bench.calibration_inputs.shape, self.restored.bench.calibration_inputs.dtype
        return jax.ShapeDtypeStruct((self.batch or shape[0], *shape[1:]), dtype)


class Format(NamedTuple):
    """write(deployed, path) -> what is to be said of the file. programs: whether it has a batch size."""

    suffix: str
    write: Callable[[Deployed, Path], list[str]]
    programs: bool = False


def deployed(restored: Restored, batch: int | None = None, requantize: str = "float") -> Deployed:
    """The trial, frozen. GraphError for an allocation that cannot be stored. requantize: one of ``RESCALES``."""
    record, facts = restored.record, {}
    for name in ("key", "label", "model", "data", "task", "flow", "costs"):
        facts["trial" if name == "key" else name] = getattr(record, name)
    facts["requantize"] = requantize
    facts["score"] = {"name": record.score_name, "test": record.metrics["test"]["score"]}
    frozen = freeze(restored.model, restored.params, restored.qparams, restored.bits, requantize=requantize)
    return Deployed(restored, frozen, facts, batch)


def write(made: Deployed, format: str, path: Path) -> list[str]:
    """Writes one file (StableHLO: two) and says what its user must know. ConfigError where the format has no batch."""
    chosen = FORMATS[format]
    if made.batch is not None and not chosen.programs:
        raise ConfigError(f"--batch: a file of format '{format}' is of no batch size")
    make_folder(path.parent)
    return chosen.write(made, path)


def _onnx(made: Deployed, path: Path) -> list[str]:
    exported = export_onnx(made.frozen, made.x, made.batch)
    write_onnx(path, exported.model)
    options = ", ".join(f"{name}={value}" for name, value in SESSION_OPTIONS.items())
    notes = [f"batch: {exported.batch}", f"set these session options of ONNX Runtime on x86 CPUs: {options}"]
    for layer in exported.layers:
        for operand, own in (("weight", layer.weight), ("input", layer.input)):
            notes += [f"{layer.name} {operand}: {own.container}, {own.note}"] if own.note else []
    return notes


def _stablehlo(made: Deployed, path: Path) -> list[str]:
    program = export_model(functools.partial(integer_forward, made.frozen), made.x, made.batch)
    save_program(path, program, made.facts)
    why = f"; {program.facts['why']}" if "why" in program.facts else ""
    platforms = ", ".join(program.facts["platforms"])
    return [f"platforms: {platforms}; batch: {program.facts['batch']}{why}", f"its sha256: {path.name}.json"]


def integer_forward(frozen: Frozen, x: Any) -> Any:
    """The integer execution with the arrays inside, equal bit for bit to the one that is given them."""
    # Without the barrier the compiler computes ahead what depends on constants only, such as BatchNorm's 1 / sqrt(var),
    # and rounds it otherwise: of ResNet-20 no output stays the same.
    return frozen.forward(jax.lax.optimization_barrier(frozen.arrays), x, "integer")


def _safetensors(made: Deployed, path: Path) -> list[str]:
    save_frozen(path, made.frozen, made.facts)
    return []


def _qwix(made: Deployed, path: Path) -> list[str]:
    found = made.restored
    arguments = (found.model, found.params, found.qparams, jnp.asarray(found.bits))
    write_text(path, qwix_json(*arguments, made.facts))
    return [f"{one.layer} {one.operand}: {one.what}" for one in qwix_rules(*arguments)[1]]


def _json(made: Deployed, path: Path) -> list[str]:
    write_text(path, allocation_json(made.frozen, made.facts))
    return []


def _csv(made: Deployed, path: Path) -> list[str]:
    write_text(path, allocation_csv(made.frozen))
    return []


FORMATS: dict[str, Format] = {
    "onnx": Format(".onnx", _onnx, programs=True),
    "stablehlo": Format(".stablehlo", _stablehlo, programs=True),
    "safetensors": Format(".safetensors", _safetensors),
    "qwix": Format(".qwix.json", _qwix),
    "json": Format(".allocation.json", _json),
    "csv": Format(".allocation.csv", _csv),
}


def executions(made: Deployed, folder: Path) -> tuple[dict[str, Execution], list[str]]:
    """All the ways to run a trial, the simulation first, those of files from files in ``folder``; and what is missing.

    ``EXECUTIONS`` share one file, from which they are loaded; the simulation has the float parameters.
    """
    found, frozen, missing = made.restored, made.frozen, list[str]()

    def written(format: str) -> Path | None:
        path = folder / f"model{FORMATS[format].suffix}"
        try:
            write(made, format, path)
        except QResearchError as error:
            missing.append(f"{format}: {error}")
            return None
        return path

    model, bits = jax.jit(found.model.apply), jnp.asarray(found.bits)
    run = {REFERENCE: Execution(functools.partial(_simulated, model, found, bits), _nbytes(found.params))}
    path, size = written("safetensors"), None
    if path is not None:  # what is run is what was stored
        frozen, size = load_frozen(path, found.model.fn, found.params, made.x), path.stat().st_size
    for name in EXECUTIONS:
        run[name] = Execution(functools.partial(frozen.apply, execution=name), size)
    path = written("stablehlo")
    if path is not None:
        run["stablehlo"] = Execution(functools.partial(run_model, load_program(path)), path.stat().st_size)
    path = written("onnx")
    if path is not None:
        for name, optimized in (("onnx, not optimized", False), ("onnx, optimized", True)):
            run[name] = Execution(functools.partial(_onnx_output, session(path, optimized)), path.stat().st_size)
    return run, missing


def _simulated(model: Callable[..., Any], found: Restored, bits: Any, x: Any) -> Any:
    return model(found.params, found.qparams, x, bits)


def _onnx_output(running: Any, x: Any) -> Any:
    return run_onnx(running, x)[0]


def _nbytes(tree: Any) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
