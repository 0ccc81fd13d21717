"""Where and how trials run. None of these settings changes a result, so none is part of what a trial is."""

from __future__ import annotations

from qresearch.config.fields import Count, Name, Options, Positive, Section


class EngineConfig(Section):
    """Who runs the trials: see ``qresearch list engines``. ``workers`` None: one for each accelerator, or one.

    ``attempts``: how often a trial may lose its worker before it is recorded as failed. ``timeout``: seconds without
    any sign of progress after which a worker is stopped. ``options``: the engine's own.
    """

    name: Name = "local"
    workers: Count | None = None
    attempts: Count = 3
    timeout: Positive | None = None
    options: Options = ()


class CheckpointsConfig(Section):
    """Checkpoints inside a training: one ``every`` so many steps (None: none), of which the last ``keep`` are kept."""

    every: Count | None = 1000
    keep: Count = 2
