"""Trackers: mirrors of a run's records in dashboards. The records are the truth; a mirror may be lost."""

from __future__ import annotations

from qresearch.registry import Registry
from qresearch.trackers.mlflow import mlflow
from qresearch.trackers.tensorboard import tensorboard
from qresearch.trackers.tracker import MakeTracker, Tracker
from qresearch.trackers.wandb import wandb

TRACKERS: Registry[MakeTracker] = Registry(
    "trackers",
    {
        "tensorboard": tensorboard,
        "mlflow": mlflow,
        "wandb": wandb,
    },
)

__all__ = ["TRACKERS", "MakeTracker", "Tracker"]
