"""Tasks. ``TASKS[name]`` is the loss and the score of one."""

from __future__ import annotations

from qresearch.tasks.classification import classification
from qresearch.tasks.task import Task

TASKS: dict[str, Task] = {
    "classification": classification,
}

__all__ = ["TASKS", "Task"]
