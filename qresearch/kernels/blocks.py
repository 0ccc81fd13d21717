"""Which blocks the kernel runs with: measured ones where there are any, else by rule."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import jax
from jax.experimental import pallas as pl

from qresearch.kernels.triton import Blocks
from qresearch.kernels.weights import KernelWeights

# What experiments/bench_integer.py --tune measured: {device kind: {case: blocks}}. No device is in it by assumption.
TABLE = Path(__file__).with_name("blocks.json")
PROGRAMS = 256  # about two for each multiprocessor of a large GPU: fewer do not keep its memory busy


def chosen_blocks(rows: int, weights: KernelWeights) -> Blocks:
    """The blocks for this product on the default device: from the table, else ``default_blocks``."""
    known = measured_blocks().get(jax.devices()[0].device_kind, {})
    return known.get(case_name(rows, weights)) or default_blocks(rows, weights)


@functools.cache
def measured_blocks() -> dict[str, dict[str, Blocks]]:
    """The table."""
    table = json.loads(TABLE.read_text())
    return {device: {case: Blocks(**blocks) for case, blocks in cases.items()} for device, cases in table.items()}


def case_name(rows: int, weights: KernelWeights) -> str:
    """The key of a product in the table. Rows count in powers of two, as the kernel pads them."""
    (depth, features), groups = weights.shape, weights.scale.shape[2]
    scaling = "channel" if groups == 1 else f"group{weights.chunk}"
    return f"{pl.next_power_of_2(rows)}x{depth}x{features} int{weights.bits} {scaling}"


def default_blocks(rows: int, weights: KernelWeights) -> Blocks:
    """Slices until 32 rows of the tensor cores' operand are in use, then splits until enough programs run."""
    columns, depth = weights.payload.shape
    padded = min(pl.next_power_of_2(rows), 32)
    slices = min(8, 32 // padded)
    blocks = Blocks(slices, tile=64, depth=128, splits=1, warps=4, stages=4)
    programs = columns * slices // blocks.tile * pl.cdiv(rows, 64)
    steps = depth // slices // blocks.depth
    splits = max(1, min(pl.next_power_of_2(pl.cdiv(PROGRAMS, programs)), steps // 2))
    return blocks._replace(splits=splits)
