"""Post-training methods, one per file. To add one: write its factory, add its line to ``PTQ``.

In a list they run in turn. The first three change the float model before its ranges are calibrated anew.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from qresearch.errors import ConfigError, did_you_mean
from qresearch.options import check_options
from qresearch.ptq.adaround import adaround
from qresearch.ptq.awq import awq
from qresearch.ptq.bias_correction import bias_correction
from qresearch.ptq.brecq import brecq
from qresearch.ptq.equalize import equalize
from qresearch.ptq.fold_batchnorm import fold_batchnorm
from qresearch.ptq.gptq import gptq
from qresearch.ptq.hadamard import hadamard
from qresearch.ptq.prune import prune
from qresearch.ptq.qdrop import qdrop
from qresearch.ptq.reestimate_batchnorm import reestimate_batchnorm
from qresearch.ptq.smoothquant import smoothquant
from qresearch.ptq.state import Method, Quantized, before_rounding
from qresearch.registry import Registry

PTQ: Registry[Callable[..., Method]] = Registry(
    "ptq",
    {
        "fold_batchnorm": before_rounding(fold_batchnorm),
        "equalize": before_rounding(equalize),
        "smoothquant": before_rounding(smoothquant),
        "awq": awq,
        "hadamard": hadamard,
        "prune": prune,
        "adaround": adaround,
        "brecq": brecq,
        "qdrop": qdrop,
        "gptq": gptq,
        "bias_correction": bias_correction,
        "reestimate_batchnorm": reestimate_batchnorm,
    },
)


def _starts_from_float(name: str) -> bool:
    """Whether it makes the ranges anew from the float model, so that nothing that has changed kernels may have run."""
    return name == "hadamard" or _changes_the_function(name)


def _changes_the_function(name: str) -> bool:
    return name in PTQ and hasattr(PTQ[name], "before_rounding")


def make_methods(listed: Sequence[tuple[str, Mapping[str, Any]]]) -> tuple[Method, ...]:
    """The methods of a list of (name, options). ConfigError for an order in which one cannot follow another."""
    for i, (name, _) in enumerate(listed):
        before = [earlier for earlier, _ in listed[:i]]
        keep = (earlier == "reestimate_batchnorm" or _changes_the_function(earlier) for earlier in before)
        late = next((earlier for earlier, kept in zip(before, keep) if not kept), None)
        if _starts_from_float(name) and late:
            raise ConfigError(f"ptq: {name} starts from the float model's weights: put it before {late}")
        if name == "reestimate_batchnorm" and "fold_batchnorm" in before:
            raise ConfigError("ptq: reestimate_batchnorm finds no BatchNorm after fold_batchnorm; keep one of the two")
    return tuple(make_method(name, **options) for name, options in listed)


def make_method(name: str, **options: Any) -> Method:
    """The post-training method of this name. ConfigError for a name or an option that does not exist."""
    if name not in PTQ:
        raise ConfigError(f"unknown post-training method '{name}'{did_you_mean(name, PTQ)}")
    check_options("ptq", f"method '{name}'", PTQ[name], options)
    return PTQ[name](**options)


__all__ = ["PTQ", "Method", "Quantized", "make_method", "make_methods"]
