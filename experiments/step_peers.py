"""Training steps of other frameworks, for ``bench_step.py``: Qwix in JAX, Brevitas in PyTorch. Extra: ``peers``.

Each entry is built only if its package is installed, and gives its own float step and its quantized one, so that a
ratio compares a framework with itself. Brevitas has learned scales; Qwix has none: its scales follow the tensors.
"""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import torch_models

Step = Callable[[], Any]
Steps = Callable[[], tuple[Step, Step]]  # (float, quantized)
QWIX_TYPES = (
    ("int4", "int4"),
    ("int4", "int8"),
    ("int8", "int8"),
)  # (weight, input); not every pair runs on every device


def peer_steps(
    case: str, module: Any, variables: Any, x: jax.Array, loss: Callable[..., Any]
) -> Iterator[tuple[str, Steps]]:
    """(label, builder) of every installed peer. module: the case's flax module, called as module(x)."""
    if importlib.util.find_spec("qwix"):
        for weight, act in QWIX_TYPES:
            yield f"qwix {weight}/{act}", lambda w=weight, a=act: _qwix(module, variables, x, loss, w, a)
    if importlib.util.find_spec("brevitas"):
        yield "brevitas 4/4", lambda: _brevitas(case, np.array(x))


def _qwix(
    module: Any, variables: Any, x: jax.Array, loss: Callable[..., Any], weight: str, act: str
) -> tuple[Step, Step]:
    import qwix

    rule = qwix.QtRule(module_path=".*", weight_qtype=weight, act_qtype=act)
    quantized = qwix.quantize_model(module, qwix.QtProvider([rule]))

    def step(model: Any) -> Step:
        def outputs(variables: Any, x: jax.Array) -> jax.Array:
            return model.apply(variables, x, mutable=[name for name in variables if name != "params"])[0]

        run = jax.jit(jax.grad(lambda own: loss(outputs(*own))))
        return lambda: run((variables, x))

    return step(module), step(quantized)


def _brevitas(case: str, x: np.ndarray) -> tuple[Step, Step]:
    """Signed 4-bit weights per channel and 4-bit inputs, both with learned scales. On the CPU, whatever JAX runs on."""
    import torch

    inputs = torch.from_numpy(x if x.ndim == 2 else x.transpose(0, 3, 1, 2).copy()).requires_grad_()

    def step(model: torch.nn.Module) -> Step:
        def run() -> None:
            model.zero_grad()
            (-torch.log_softmax(model(inputs), 1)[:, 0].mean()).backward()

        for _ in range(3):  # the first batches initialise the scales
            run()
        return run

    torch.manual_seed(0)
    build = {"dense": torch_models.dense, "resnet20": torch_models.resnet20}[case]
    return step(build(None)), step(build(itertools.repeat((4, 4))))
