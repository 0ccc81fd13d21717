"""Selective quantization: which layers keep more bits than the others."""

from __future__ import annotations

import dataclasses
import glob
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from qresearch.config import KeepConfig
from qresearch.errors import ConfigError
from qresearch.qmodel import QuantizedModel
from qresearch.rules import Option, Rule
from qresearch.sensitivities import Sensitivity


def pin_ends(rules: Sequence[Rule], model: QuantizedModel, keep: KeepConfig) -> tuple[Rule, ...]:
    """The rules, after ones that pin the first and the last layer of the model, which was built with them."""
    ends = [unit for unit, wanted in zip((model.units[:1], model.units[-1:]), (keep.first, keep.last)) if wanted]
    pinned = [
        dataclasses.replace(unit.rule, pattern=glob.escape(unit.layer.name), menu=(keep.option,))
        for units in ends
        for unit in units
    ]
    return (*dict.fromkeys(pinned), *rules)


def keep_sensitive(
    bits: Float[np.ndarray, "layer 2"], table: Sensitivity, option: Option, keep: KeepConfig
) -> Float[np.ndarray, "layer 2"]:
    """The bits of all layers, with ``keep.option`` for those whose ``option`` alone would raise the loss most. Pinned
    layers are not counted.
    """
    if option not in table.options:
        raise ConfigError(
            f"quantize.keep.most_sensitive: allocation.bits {list(option)} is not in the menu"
            f" {[list(known) for known in table.options]}, whose options are what sensitivities are measured for"
        )
    loss = table.loss[:, table.options.index(option)]
    free = np.isfinite(loss) & (np.isfinite(table.loss).sum(axis=1) > 1)
    ranked = np.argsort(np.where(free, -loss, np.inf), kind="stable")[: min(keep.most_sensitive, int(free.sum()))]
    kept = bits.copy()
    kept[ranked] = keep.option
    return kept
