"""Handlers that need nothing but the graph. Fake quantization is one too: see ``qresearch.qmodel``."""

from __future__ import annotations

import jax

from qresearch.graph.interpreter import Call


def identity(call: Call) -> tuple[jax.Array, None]:
    """Computes the layer as the model does."""
    return call.contract(call.weight, call.input), None


def record(call: Call) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Computes the layer as the model does; aux holds its ``weight`` and ``input``."""
    return call.contract(call.weight, call.input), {"weight": call.weight, "input": call.input}
