"""A small convolutional network written in flax.nnx: nothing above this folder may depend on the style."""

from __future__ import annotations

import functools
from typing import Any

from flax import nnx
from jaxtyping import Array, Float

from qresearch.models.model import Model, State, Variables


class NNXCNN(nnx.Module):
    """Three 3x3 convolutions, the mean over space, one dense; inputs [batch, h, w, c], outputs [batch, classes]."""

    def __init__(self, channels: int, classes: int, rngs: nnx.Rngs) -> None:
        self.conv1 = nnx.Conv(channels, 16, (3, 3), padding=1, use_bias=False, rngs=rngs)
        self.bn1 = nnx.BatchNorm(16, momentum=0.9, rngs=rngs)
        self.conv2 = nnx.Conv(16, 32, (3, 3), strides=2, padding=1, use_bias=False, rngs=rngs)
        self.bn2 = nnx.BatchNorm(32, momentum=0.9, rngs=rngs)
        self.conv3 = nnx.Conv(32, 32, (3, 3), padding=1, use_bias=False, rngs=rngs)
        self.bn3 = nnx.BatchNorm(32, momentum=0.9, rngs=rngs)
        self.linear = nnx.Linear(32, classes, rngs=rngs)

    def __call__(self, inputs: Float[Array, "batch h w c"], train: bool) -> Float[Array, "batch classes"]:
        x = nnx.relu(self.bn1(self.conv1(inputs), use_running_average=not train))
        x = nnx.relu(self.bn2(self.conv2(x), use_running_average=not train))
        x = nnx.relu(self.bn3(self.conv3(x), use_running_average=not train))
        return self.linear(x.mean(axis=(1, 2)))


def _variables(module: nnx.Module) -> Variables:
    _, params, batch_stats = nnx.split(module, nnx.Param, nnx.BatchStat)
    return {"params": nnx.to_pure_dict(params), "batch_stats": nnx.to_pure_dict(batch_stats)}


@functools.cache
def _graphdef(channels: int, classes: int) -> Any:
    """The static half of the module; nnx fixes the input channels at construction: callers read them off."""
    return nnx.split(nnx.eval_shape(lambda: NNXCNN(channels, classes, nnx.Rngs(0))))[0]


@functools.cache
def _nnx_cnn(classes: int) -> Model:
    def merge(variables: Variables, inputs: Array) -> NNXCNN:
        return nnx.merge(_graphdef(inputs.shape[-1], classes), variables["params"], variables["batch_stats"])

    def init(key: Array, inputs: Array) -> Variables:
        return _variables(NNXCNN(inputs.shape[-1], classes, nnx.Rngs(params=key)))

    def apply(variables: Variables, inputs: Array) -> Array:
        return merge(variables, inputs)(inputs, False)

    def apply_train(variables: Variables, inputs_key: tuple[Array, Array]) -> tuple[Array, State]:
        inputs, _ = inputs_key  # no dropout: the key is not used
        module = merge(variables, inputs)
        outputs = module(inputs, True)
        return outputs, {"batch_stats": _variables(module)["batch_stats"]}

    return Model(init, apply, apply_train)


def nnx_cnn(classes: int) -> Model:
    """Returns layers conv1, conv2, conv3, linear: 14,458 parameters on one channel and 10 classes."""
    return _nnx_cnn(classes)
