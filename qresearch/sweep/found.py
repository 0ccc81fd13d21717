"""What the search of a trial found, and its place in the run folder: what was stopped need not search again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from qresearch.checkpoint import load_checkpoint, save_checkpoint
from qresearch.config import RunConfig, config_hash
from qresearch.devices import is_first
from qresearch.errors import DataError
from qresearch.models import Variables
from qresearch.qmodel import QParams, QuantizedModel
from qresearch.results.atomic import make_folder
from qresearch.results.draws import Groups, save_draws
from qresearch.results.sealed import read_sealed, write_sealed


class Start(NamedTuple):
    """What a search trained, for QAT to go on from. kept: [layer], the share of output channels that are not pruned."""

    variables: Variables
    qparams: QParams
    kept: np.ndarray


class Found(NamedTuple):
    """bits: [layer, 2]. taken: what it took to find them, and how sure the search is, as the trial's record has it.
    draws: of a posterior, as ArviZ takes them; stored, and not loaded again.
    """

    bits: np.ndarray
    taken: dict[str, Any]
    start: Start | None = None
    draws: Groups | None = None


def save_found(folder: Path, config: RunConfig, found: Found) -> None:
    """Writes ``<hash of the config>.json`` and, where there is a start, a checkpoint beside it, which comes first."""
    if not is_first():
        return
    make_folder(folder)
    content: dict[str, Any] = {"bits": found.bits.tolist(), "taken": found.taken}
    if found.start is not None:
        content["kept"] = found.start.kept.tolist()
        save_checkpoint(_path(folder, config), {"variables": found.start.variables, "qparams": found.start.qparams})
    if found.draws is not None:
        save_draws(_path(folder, config).with_suffix(".npz"), found.draws)
    write_sealed(_path(folder, config).with_suffix(".json"), content)


def load_found(
    folder: Path, config: RunConfig, model: QuantizedModel, variables: Variables, x: Any, report: Callable[[str], None]
) -> Found | None:
    """What is stored for this config; None, with a line to ``report`` where files are damaged, if it is not whole."""
    path = _path(folder, config)
    facts = path.with_suffix(".json")
    if not facts.is_file():
        return None
    try:
        content = read_sealed(facts)
        bits, taken, kept = np.asarray(content["bits"], np.float32), dict(content["taken"]), content.get("kept")
        if bits.shape != (len(model.layers), 2):
            raise DataError(f"{facts}: is of another model")
        if kept is None:
            return Found(bits, taken)
        kept = np.asarray(kept, np.float64)
        if kept.shape != bits.shape[:1]:
            raise DataError(f"{facts}: is of another model")
        template = {"variables": variables, "qparams": jax.eval_shape(model.init, variables, x, bits)}
        return Found(bits, taken, Start(**load_checkpoint(path, template), kept=kept))
    except DataError as error:
        report(f"{error}; the search is run again")
    except (ValueError, KeyError, TypeError):
        report(f"{facts}: is damaged; the search is run again")
    return None


def _path(folder: Path, config: RunConfig) -> Path:
    return folder / config_hash(config)[:16]
