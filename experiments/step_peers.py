"""Training steps of other frameworks, for ``bench_step.py``: Qwix in JAX, Brevitas in PyTorch. Extra: ``peers``.

Each entry is built only if its package is installed, and gives its own float step and its quantized one, so that a
ratio compares a framework with itself. Brevitas has learned scales; Qwix has none: its scales follow the tensors.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

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
    build = _torch_dense if case == "dense" else _torch_resnet20
    return step(build(False)), step(build(True))


def _layers(quantized: bool) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Constructors (convolution, linear) without a bias; quantized ones quantize their input first."""
    from torch import nn

    if not quantized:
        return (
            lambda i, o, stride: nn.Conv2d(i, o, 3, stride, 1, bias=False),
            lambda i, o: nn.Linear(i, o, bias=False),
        )
    from brevitas import nn as qnn
    from brevitas.inject.enum import ScalingImplType
    from brevitas.quant import Int8ActPerTensorFloat, Int8WeightPerChannelFloat

    weight = {
        "weight_quant": Int8WeightPerChannelFloat,
        "weight_bit_width": 4,
        "weight_scaling_impl_type": ScalingImplType.PARAMETER_FROM_STATS,
        "bias": False,
    }
    act = {"act_quant": Int8ActPerTensorFloat, "bit_width": 4, "collect_stats_steps": 1}
    return (
        lambda i, o, stride: nn.Sequential(
            qnn.QuantIdentity(**act), qnn.QuantConv2d(i, o, 3, stride=stride, padding=1, **weight)
        ),
        lambda i, o: nn.Sequential(qnn.QuantIdentity(**act), qnn.QuantLinear(i, o, **weight)),
    )


def _torch_dense(quantized: bool) -> Any:
    return _layers(quantized)[1](1024, 1024)


def _torch_resnet20(quantized: bool) -> Any:
    import torch
    from torch import nn

    convolution, linear = _layers(quantized)

    class Block(nn.Module):
        def __init__(self, i: int, o: int, stride: int) -> None:
            super().__init__()
            self.first, self.second = convolution(i, o, stride), convolution(o, o, 1)
            self.norms = nn.ModuleList([nn.BatchNorm2d(o), nn.BatchNorm2d(o)])
            self.stride, self.added = stride, o - i

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.norms[1](self.second(torch.relu(self.norms[0](self.first(x)))))
            half = self.added // 2
            skip = (
                x if self.stride == 1 else nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, half, self.added - half))
            )
            return torch.relu(y + skip)

    blocks = [Block(16, 16, 1) for _ in range(3)]
    blocks += [
        Block(16, 32, 2),
        Block(32, 32, 1),
        Block(32, 32, 1),
        Block(32, 64, 2),
        Block(64, 64, 1),
        Block(64, 64, 1),
    ]
    stem = [convolution(3, 16, 1), nn.BatchNorm2d(16), nn.ReLU()]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear(64, 10))
