"""Costs read from a CSV file: measured latencies, energies, whatever a layer costs at an option."""

from __future__ import annotations

import csv
from decimal import Decimal, InvalidOperation
from os import PathLike
from pathlib import Path

import numpy as np

from qresearch.cost import Cost, LayerCounts
from qresearch.errors import ConfigError

COLUMNS = ("layer", "weight_bits", "input_bits", "cost")
DIGITS = 9  # after the point; costs become integers, so that budgets are met exactly


def read_cost_table(path: str | PathLike[str], unit: str = "") -> Cost:
    """The cost of a CSV with the columns layer, weight_bits, input_bits and cost; others are ignored.

    layer: a layer's name, or ``*`` for every layer that has no row of its own at this option. cost: a non-negative
    decimal number, in ``unit``. Looked up when it is asked for: a layer and option without a row is a ConfigError that
    names them (pruned ones cost 0 without a row). ConfigError, with the line, for a file that is missing or not of this
    form.
    """
    file, prices = Path(path), dict[tuple[str, float, float], Decimal]()
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: cannot be read as a table of costs ({error})") from None
    rows = csv.DictReader(text.splitlines())
    missing = [column for column in COLUMNS if column not in (rows.fieldnames or ())]
    if missing:
        raise ConfigError(f"{file}: has no column '{missing[0]}'; expected {','.join(COLUMNS)}")
    for row in rows:
        key, price = _row(row, f"{file}, line {rows.line_num}")
        if key in prices:
            raise ConfigError(f"{file}, line {rows.line_num}: {_text(*key)} is there twice; keep one row")
        prices[key] = price
    digits = max((max(-int(price.normalize().as_tuple().exponent), 0) for price in prices.values()), default=0)
    scale = 10**digits

    def price_of(name: str, weight_bits: float, input_bits: float) -> int:
        found = prices.get((name, weight_bits, input_bits), prices.get(("*", weight_bits, input_bits)))
        if found is None and 0 in (weight_bits, input_bits):
            return 0  # pruned
        if found is None:
            raise ConfigError(f"{file}: has no row for {_text(name, weight_bits, input_bits)}; add it")
        return int(found * scale)

    def layer_cost(layers: LayerCounts, weight_bits: np.ndarray, input_bits: np.ndarray) -> np.ndarray:
        return np.frompyfunc(price_of, 3, 1)(layers.names, weight_bits, input_bits).astype(np.int64)

    return Cost(layer_cost, lambda layers: float(scale), unit, f"from {file.name}")


def _row(row: dict[str, str | None], where: str) -> tuple[tuple[str, int, int], Decimal]:
    try:
        name, bits = (row["layer"] or "").strip(), [int(row[column] or "") for column in COLUMNS[1:3]]
        price = Decimal((row["cost"] or "").strip())
    except (ValueError, InvalidOperation):
        price = Decimal("NaN")
    if not price.is_finite() or price < 0 or not name or min(bits) < 0 or max(bits) > 32:
        shown = ",".join(str(row[column]) for column in COLUMNS)
        raise ConfigError(f"{where}: expected a layer, two whole numbers of bits and a cost >= 0, got {shown}")
    if -int(price.normalize().as_tuple().exponent) > DIGITS:
        raise ConfigError(f"{where}: cost {price} has more than {DIGITS} digits after the point; use another unit")
    return (name, bits[0], bits[1]), price


def _text(name: str, weight_bits: float, input_bits: float) -> str:
    return f"layer '{name}' at W{weight_bits:g}A{input_bits:g}"
