"""Tasks. ``TASKS[name]`` is the loss and the score of one."""

from __future__ import annotations

from qresearch.registry import Registry
from qresearch.tasks.classification import classification
from qresearch.tasks.detection import detection
from qresearch.tasks.language_modelling import language_modelling
from qresearch.tasks.task import Task

TASKS: Registry[Task] = Registry(
    "tasks",
    {
        "classification": classification,
        "detection": detection,
        "language_modelling": language_modelling,
    },
)

__all__ = ["TASKS", "Task"]
