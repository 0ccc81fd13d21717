"""The benchmarks' models in PyTorch, with Brevitas's layers where they are quantized. Extra: ``peers``.

options: (weight_bits, input_bits) of every layer in turn; None for a float model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

Options = Iterator[tuple[int, int]] | None


def dense(options: Options) -> Any:
    return _layers(options)[1](1024, 1024)


def mlp(options: Options, width: int = 256, layers: int = 8) -> Any:
    from torch import nn

    linear = _layers(options)[1]
    return nn.Sequential(*[part for _ in range(layers) for part in (linear(width, width), nn.ReLU())])


def resnet20(options: Options) -> Any:
    import torch
    from torch import nn

    convolution, linear = _layers(options)

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

    widths = [(16, 16, 1)] * 3 + [(16, 32, 2), (32, 32, 1), (32, 32, 1), (32, 64, 2), (64, 64, 1), (64, 64, 1)]
    stem = [convolution(3, 16, 1), nn.BatchNorm2d(16), nn.ReLU()]
    blocks = [Block(*width) for width in widths]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear(64, 10))


def _layers(options: Options) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Constructors (convolution, linear) without a bias; quantized ones quantize their input first.

    Signed integers with learned scales: per channel for weights, per tensor for inputs.
    """
    from torch import nn

    if options is None:
        return (
            lambda i, o, stride: nn.Conv2d(i, o, 3, stride, 1, bias=False),
            lambda i, o: nn.Linear(i, o, bias=False),
        )
    from brevitas import nn as qnn
    from brevitas.inject.enum import ScalingImplType
    from brevitas.quant import Int8ActPerTensorFloat, Int8WeightPerChannelFloat

    def quantized(layer: Callable[..., Any], *sizes: int, **others: int) -> Any:
        weight_bits, input_bits = next(options)
        identity = qnn.QuantIdentity(act_quant=Int8ActPerTensorFloat, bit_width=input_bits, collect_stats_steps=1)
        weight = {"weight_quant": Int8WeightPerChannelFloat, "weight_bit_width": weight_bits, "bias": False}
        scaling = ScalingImplType.PARAMETER_FROM_STATS
        return nn.Sequential(identity, layer(*sizes, **others, **weight, weight_scaling_impl_type=scaling))

    return (
        lambda i, o, stride: quantized(qnn.QuantConv2d, i, o, 3, stride=stride, padding=1),
        lambda i, o: quantized(qnn.QuantLinear, i, o),
    )
