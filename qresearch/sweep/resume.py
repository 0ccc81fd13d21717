"""The config of a run that is there, so that it can go on without the file that it was made from."""

from __future__ import annotations

import json
from collections.abc import Sequence

from qresearch.config import SweepConfig, any_run, load, sweep_identity
from qresearch.errors import DataError
from qresearch.results import RunFolder
from qresearch.results.atomic import read_bytes
from qresearch.results.run_folder import run_path


def config_of(run: RunFolder, settings: Sequence[str]) -> SweepConfig:
    """The config and the settings that the run was last started with, and further ``settings`` (``key=value``).

    ``DataError`` if they would make another run: files of the run were altered, it was renamed, or a setting changes
    what trials are.
    """
    path = run.path / "settings.json"
    try:
        kept = json.loads(read_bytes(path))
        if not all(isinstance(setting, str) for setting in kept):
            raise TypeError
    except (ValueError, TypeError) as error:
        raise DataError(f"{path}: is damaged; give the config again: qresearch sweep CONFIG") from error
    output = run.path.absolute().parent
    sweep = load(run.path / "sweep.yaml", [*kept, f"output={json.dumps(str(output))}", *settings])
    if run_path(output, any_run(sweep).name, sweep_identity(sweep)) != run.path.absolute():
        raise DataError(f"{run.path}: its config and settings make another run; use 'qresearch sweep CONFIG'")
    return sweep
