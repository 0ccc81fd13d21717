"""Records as a sweep would store them, for the tests of the store and of the reports."""

from __future__ import annotations

from typing import Any

import numpy as np

from qresearch.results.record import Examples, Record, content_hash

LAYERS = ["Conv_0", "Conv_1", "Dense_0"]
ENVIRONMENT = {
    "versions": {
        "python": "3.11.7",
        "jax": "0.10.2",
        "flax": "0.12.8",
        "optax": "0.2.8",
        "numpy": "2.4.6",
        "qresearch": None,
    },
    "commit": None,
    "dirty": None,
    "device": {"kind": "cpu", "count": 1},
    "platform": "Linux",
}


def make_record(
    *,
    seed: int = 0,
    flow: str = "qat",
    quantizer: str | None = "lsq",
    allocator: str | None = "uniform",
    bits: float = 4,
    budget: float | None = None,
    score: float = 0.9,
    validation: float | None = None,
    **fields: Any,
) -> Record:
    """A finished trial of a three-layer model; ``bits`` is every layer's width and the average; ``fields`` replace."""
    if flow == "float":
        quantizer, allocator, bits = None, None, 32
    limit = None if budget is None else {"average_bits": budget}
    config = {"flow": flow, "quantizer": quantizer, "allocator": allocator, "bits": bits, "budget": limit, "seed": seed}
    known: dict[str, Any] = {
        "label": f"{quantizer}-{allocator}-{bits:g}-seed{seed}",
        "status": "done",
        "config": config,
        "seed": seed,
        "task": "classification",
        "model": "cnn",
        "data": "digits",
        "flow": flow,
        "quantizer": {"weight": quantizer, "input": quantizer},
        "allocation": {
            "layers": LAYERS,
            "bits": [[bits, bits]] * len(LAYERS),
            "allocator": allocator,
            "budget": limit,
            "treatment": "no layer pinned",
        },
        "costs": {"average_bits": bits, "size": 2.5 * bits, "bops": 0.1 * bits**2, "relative_bops": bits**2 / 1024},
        "metrics": {
            "test": {"loss": 0.3, "score": score},
            "validation": {"loss": 0.25, "score": score if validation is None else validation},
            "best_epoch": 3,
            "last": {"test": {"score": score}},
        },
        "score_name": "accuracy",
        "seconds": 1.5,
        "environment": ENVIRONMENT,
        "created": "2026-01-31T12:00:00+00:00",
    }
    known.update(fields)
    known.setdefault("key", content_hash(known["config"]))
    return Record(**known)


def make_examples(score: float = 0.9, examples: int = 50, seed: int = 0) -> Examples:
    """Scores of 0 and 1 with about the given mean, and losses."""
    rng = np.random.default_rng(seed)
    return {
        "score": (rng.random(examples) < score).astype(np.float32),
        "loss": rng.exponential(size=examples).astype(np.float32),
    }
