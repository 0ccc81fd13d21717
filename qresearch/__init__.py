"""qresearch: learnable and mixed-precision quantization research in JAX.

The public names are imported on first use, so that ``import qresearch`` and ``qresearch --help`` do not import jax.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qresearch.allocation import ALLOCATORS, Problem
    from qresearch.allocation.bayes.decisions import decide
    from qresearch.allocation.bayes.posterior import fit_posterior
    from qresearch.allocation.bayes.suggest import suggest
    from qresearch.calibration import MenuQParams, calibrate, select
    from qresearch.cost import COSTS, layer_counts
    from qresearch.cost_table import read_cost_table
    from qresearch.evaluation import Batches, evaluate, make_batches
    from qresearch.export.frozen_file import load_frozen, save_frozen
    from qresearch.frozen import Frozen, FrozenLayer, freeze, run_frozen
    from qresearch.graph import Layer, find_layers
    from qresearch.latency import roofline
    from qresearch.pareto import hypervolume, pareto_front
    from qresearch.population import evaluate_population
    from qresearch.prequantized import prequantize
    from qresearch.ptq import PTQ, Quantized, make_method
    from qresearch.qmodel import QuantizedModel, quantize_model
    from qresearch.quantizers import QUANTIZERS, Quantizer, QuantSpec
    from qresearch.rules import Rule, SiteRule
    from qresearch.sensitivities import (
        Sensitivity,
        allocation_bits,
        budget_of,
        make_problem,
        measure_losses,
        sensitivity,
        tied_layers,
    )
    from qresearch.training import Program, Recipe, Trial, make_trainer

_HOME = {
    "allocation": ("ALLOCATORS", "Problem"),
    "allocation.bayes.decisions": ("decide",),
    "allocation.bayes.posterior": ("fit_posterior",),
    "allocation.bayes.suggest": ("suggest",),
    "calibration": ("MenuQParams", "calibrate", "select"),
    "cost": ("COSTS", "layer_counts"),
    "cost_table": ("read_cost_table",),
    "evaluation": ("Batches", "evaluate", "make_batches"),
    "export.frozen_file": ("load_frozen", "save_frozen"),
    "frozen": ("Frozen", "FrozenLayer", "freeze", "run_frozen"),
    "graph": ("Layer", "find_layers"),
    "latency": ("roofline",),
    "pareto": ("hypervolume", "pareto_front"),
    "population": ("evaluate_population",),
    "prequantized": ("prequantize",),
    "ptq": ("PTQ", "Quantized", "make_method"),
    "qmodel": ("QuantizedModel", "quantize_model"),
    "quantizers": ("QUANTIZERS", "QuantSpec", "Quantizer"),
    "rules": ("Rule", "SiteRule"),
    "sensitivities": (
        "Sensitivity",
        "allocation_bits",
        "budget_of",
        "make_problem",
        "measure_losses",
        "sensitivity",
        "tied_layers",
    ),
    "training": ("Program", "Recipe", "Trial", "make_trainer"),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "ALLOCATORS",
    "COSTS",
    "PTQ",
    "QUANTIZERS",
    "Batches",
    "Frozen",
    "FrozenLayer",
    "Layer",
    "MenuQParams",
    "Problem",
    "Program",
    "QuantSpec",
    "Quantized",
    "QuantizedModel",
    "Quantizer",
    "Recipe",
    "Rule",
    "Sensitivity",
    "SiteRule",
    "Trial",
    "allocation_bits",
    "budget_of",
    "calibrate",
    "decide",
    "evaluate",
    "evaluate_population",
    "find_layers",
    "fit_posterior",
    "freeze",
    "hypervolume",
    "layer_counts",
    "load_frozen",
    "make_batches",
    "make_method",
    "make_problem",
    "make_trainer",
    "measure_losses",
    "pareto_front",
    "prequantize",
    "quantize_model",
    "read_cost_table",
    "roofline",
    "run_frozen",
    "save_frozen",
    "select",
    "sensitivity",
    "suggest",
    "tied_layers",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'qresearch' has no attribute {name!r}")
    module = importlib.import_module(f"qresearch.{_MODULE_OF[name]}")
    value = getattr(module, name)
    globals()[name] = value  # found once
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
