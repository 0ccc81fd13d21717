"""Evaluation of allocations in other frameworks, for ``bench_population.py``. Extra: ``peers``.

Each runs allocations of {4, 8} x 8 bits in the ways that its users have. Qwix gives every layer a rule: a model for
each allocation, jitted or eager; or, written by hand for the MLP, all of Qwix's types in one program, of which
``lax.switch`` takes one. Brevitas, in PyTorch on the CPU, builds a model for each allocation, whose first batch sets
its scales.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch_models

import qresearch as qr

TYPES = {4: "int4", 8: "int8"}


def peers(case: Any, task: Any) -> dict[str, Callable[[], Callable[[np.ndarray], None]]]:
    """Of every installed peer: label -> builder of a run over allocations [n, layer, 2]."""
    found: dict[str, Any] = {}
    if importlib.util.find_spec("qwix"):
        found["qwix, jit"] = lambda: _qwix(case, task, jax.jit)
        found["qwix, eager"] = lambda: _qwix(case, task, lambda step: step)
        if case.name == "mlp":
            found["qwix types in lax.switch"] = lambda: _qwix_switch(case, task)
    if importlib.util.find_spec("brevitas"):
        found["brevitas"] = lambda: _brevitas(case)
    return found


def _qwix(case: Any, task: Any, compiled: Callable[..., Any]) -> Callable[[np.ndarray], None]:
    import qwix

    paths = [layer.name.removeprefix("params/").removesuffix("/kernel") for layer in _layers(case)]

    def run(allocations: np.ndarray) -> None:
        for bits in allocations:
            rules = [
                qwix.QtRule(module_path=f"(.*/)?{re.escape(path)}", weight_qtype=TYPES[int(w)], act_qtype=TYPES[int(a)])
                for path, (w, a) in zip(paths, bits)
            ]
            model = qwix.quantize_model(case.module, qwix.QtProvider(rules))
            step = compiled(lambda variables, x, y, model=model: task.loss(model.apply(variables, x), y))
            batches = zip(case.batches.inputs, case.batches.targets)
            jax.block_until_ready([step(case.variables, x, y) for x, y in batches])

    return run


def _qwix_switch(case: Any, task: Any) -> Callable[[np.ndarray], None]:
    import qwix

    names, widths = list(TYPES.values()), list(TYPES)

    def fake_quantize(x: jax.Array, index: jax.Array, axes: tuple[int, ...]) -> jax.Array:
        def at(name: str) -> Callable[[jax.Array], jax.Array]:
            return lambda x: qwix.dequantize(qwix.quantize(x, name, channelwise_axes=axes)).astype(x.dtype)

        return jax.lax.switch(index, [at(name) for name in names], x)

    def losses(variables: Any, index: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
        for i in range(len(index)):
            kernel = variables["params"][f"Dense_{i}"]["kernel"]
            x = jax.nn.relu(fake_quantize(x, index[i, 1], ()) @ fake_quantize(kernel, index[i, 0], (1,)))
        return task.loss(x, y)

    step = jax.jit(jax.vmap(losses, in_axes=(None, 0, None, None)))

    def run(allocations: np.ndarray) -> None:
        index = jnp.asarray(np.searchsorted(widths, allocations), jnp.int32)
        batches = zip(case.batches.inputs, case.batches.targets)
        jax.block_until_ready([step(case.variables, index, x, y) for x, y in batches])

    return run


def _brevitas(case: Any) -> Callable[[np.ndarray], None]:
    import torch

    inputs = np.concatenate([np.asarray(x) for x in case.batches.inputs])
    x = torch.from_numpy(inputs if inputs.ndim == 2 else inputs.transpose(0, 3, 1, 2).copy())
    y = torch.from_numpy(np.concatenate([np.asarray(y) for y in case.batches.targets]).astype(np.int64))
    build = {"mlp": torch_models.mlp, "resnet20": torch_models.resnet20}[case.name]
    size = case.batches.inputs.shape[1]

    def run(allocations: np.ndarray) -> None:
        with torch.no_grad():
            for bits in allocations:
                model = build(iter([(int(w), int(a)) for w, a in bits])).train()
                model(x[:100])
                model.eval()
                for start in range(0, len(x), size):
                    outputs = model(x[start : start + size])
                    torch.nn.functional.cross_entropy(outputs, y[start : start + size], reduction="none")

    return run


def _layers(case: Any) -> tuple[Any, ...]:
    return qr.find_layers(case.module.apply, case.variables, case.batches.inputs[0])
