"""Kernels: products of floats with packed integers, for GPUs, each with a plain XLA form of the same numbers."""

from __future__ import annotations

from qresearch.kernels.dot import CUSTOM_CALL, weight_only_dot, xla_dot
from qresearch.kernels.weights import KernelWeights, prepare, values

__all__ = ["CUSTOM_CALL", "KernelWeights", "prepare", "values", "weight_only_dot", "xla_dot"]
