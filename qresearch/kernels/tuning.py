"""Measures blocks on the device at hand. Ordinary programs never do: they read the table."""

from __future__ import annotations

import functools
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from qresearch.kernels.blocks import TABLE, default_blocks, measured_blocks
from qresearch.kernels.triton import Blocks, fitted, triton_dot
from qresearch.kernels.weights import KernelWeights

CHOICES = {
    "slices": (1, 2, 4, 8),
    "splits": (1, 2, 4, 8),
    "tile": (32, 64, 128),
    "warps": (2, 4, 8),
    "depth": (64, 128),
    "stages": (2, 3, 4, 5),
}
ROTATED = 400e6  # bytes of weights that take turns: no cache of a GPU holds them
PASSES = 10


def copies_of(weights: Any, bytes_of_one: int, rotated: float = ROTATED) -> list[Any]:
    """As many copies of some weights as take ``rotated`` bytes, at least one; each has its own memory."""
    count = max(1, -(-int(rotated) // bytes_of_one))
    return [jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), weights) for _ in range(count)]


def timer(product: Callable[[Array, Any], Array], x: Array, copies: Sequence[Any]) -> Callable[[], float]:
    """What runs ``product(x, weights)`` for all copies, as one program, and returns the mean seconds of one.

    A GPU gets the program several times before it is waited for, so that it never waits for the host.
    """
    program = jax.jit(lambda x, copies: [product(x, weights) for weights in copies])
    passes = PASSES if jax.default_backend() == "gpu" else 1

    def run() -> float:
        started = time.perf_counter()
        for _ in range(passes):
            products = program(x, copies)
        jax.block_until_ready(products)
        return (time.perf_counter() - started) / (passes * len(copies))

    return run


def tune(
    x: Array, weights: KernelWeights, *, repeats: int = 9, rotated: float = ROTATED, interpret: bool = False
) -> tuple[Blocks, float]:
    """The fastest blocks for x W on this device, and the seconds they take.

    From ``default_blocks`` on, one field after another takes the best of ``CHOICES``, until none changes. Blocks that
    the compiler refuses (registers, shared memory) are passed over; those by rule have to run.
    """
    copies = copies_of(weights, weights.payload.nbytes, rotated)

    @functools.cache
    def seconds(blocks: Blocks) -> float:
        run = timer(functools.partial(triton_dot, blocks=blocks, interpret=interpret), x, copies)
        run()  # compiles
        return statistics.median(run() for _ in range(repeats))

    best = fitted(default_blocks(x.shape[0], weights), weights, x.dtype)
    seconds(best)
    changed = True
    while changed:
        before = best
        for name, values in CHOICES.items():
            tried = {fitted(best._replace(**{name: value}), weights, x.dtype) for value in values}
            best = min((blocks for blocks in sorted(tried) if _runs(seconds, blocks)), key=seconds)
        changed = best != before
    return best, seconds(best)


def _runs(seconds: Callable[[Blocks], float], blocks: Blocks) -> bool:
    try:
        seconds(blocks)
    except jax.errors.JaxRuntimeError:
        return False
    return True


def save_blocks(found: Mapping[str, Blocks], path: Path = TABLE) -> None:
    """Merges the blocks of cases (``case_name``) on this device into the table."""
    table = json.loads(path.read_text()) if path.exists() else {}
    known = table.setdefault(jax.devices()[0].device_kind, {})
    known |= {case: blocks._asdict() for case, blocks in found.items()}
    path.write_text(json.dumps(table, indent=1, sort_keys=True) + "\n")
    measured_blocks.cache_clear()
