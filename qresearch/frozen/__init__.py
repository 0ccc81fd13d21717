"""Frozen models: what an allocation stores, and how it is computed from that, in integers where a layer allows it."""

from qresearch.frozen.execute import EXECUTIONS
from qresearch.frozen.freeze import freeze
from qresearch.frozen.layer import PATHS, FrozenLayer
from qresearch.frozen.model import Frozen, run_frozen

__all__ = ["EXECUTIONS", "PATHS", "Frozen", "FrozenLayer", "freeze", "run_frozen"]
