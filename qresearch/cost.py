"""Cost models: what an allocation costs in weight storage, in bit-operations, in average bits and in time.

A width of 0 bits means pruned and costs nothing; 32 bits and above mean float and are charged as 32. Not counted:
biases, batch-norm parameters, and everything that is no layer (additions, activations, pooling).

Allocators work on integer tables, since a budget that equals the cost of an allocation must admit that allocation.

Conventions differ. Bayesian Bits (van Baalen et al., https://arxiv.org/abs/2005.07093, 2020) reports bops relative to
32 x 32 bits: ``relative_bops``. NNCF reports them relative to INT8. HAWQ-V3 (Yao et al.,
https://arxiv.org/abs/2011.10680, 2021) publishes macs * bits^2 for its uniform rows, but its notebook charges macs / 16
at 8 bits and macs / 64 at 4 bits, so that its mixed rows are macs * bits^2 / 1024. Papers' sizes are mostly those of
the weights alone: ``average_bits`` times their number; ``size`` has scales and zero-points in it. Some papers average
bits over layers; here every weight counts once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import ArrayLike

from qresearch.errors import ConfigError, did_you_mean
from qresearch.registry import Registry

FLOAT_BITS = 32  # what a float tensor is charged for
SCALE_BITS = 32  # of a stored scale


class LayerCounts(NamedTuple):
    """What costs are computed from, one entry per layer. Build with ``layer_counts``.

    elements: weights. macs: multiply-accumulates per example. inputs: elements of its input per example. scales,
    zero_points: those stored for its weights; input_scales, input_zero_points: those stored for its input.
    """

    names: np.ndarray
    elements: Int[np.ndarray, "layer"]
    macs: Int[np.ndarray, "layer"]
    inputs: Int[np.ndarray, "layer"]
    scales: Int[np.ndarray, "layer"]
    zero_points: Int[np.ndarray, "layer"]
    input_scales: Int[np.ndarray, "layer"]
    input_zero_points: Int[np.ndarray, "layer"]


class LayerCostFn(Protocol):
    """``layer_cost(layers, weight_bits, input_bits)``: elementwise, broadcasting, integer for integers."""

    def __call__(self, layers: LayerCounts, weight_bits: np.ndarray, input_bits: np.ndarray, /) -> np.ndarray: ...


class TotalFn(Protocol):
    """``total(layers)``: a sum of layer costs divided by this is in the unit users read."""

    def __call__(self, layers: LayerCounts, /) -> float: ...


class Cost(NamedTuple):
    """A cost that is a sum over layers. ``unit``: of that sum divided by ``total``. ``describe``: one line for
    users.
    """

    layer_cost: LayerCostFn
    total: TotalFn
    unit: str
    describe: str

    def table(self, layers: LayerCounts, options: ArrayLike) -> Int[np.ndarray, "layer option"]:
        """The integer cost of every layer under every option. options: [option, 2]."""
        bits = _widths(options)
        if bits.ndim != 2 or np.any(bits != np.round(bits)):
            raise ConfigError(f"options must be whole bits of shape [option, 2], got {np.asarray(options).tolist()}")
        whole = bits.astype(np.int64)
        return self.layer_cost(LayerCounts(*(field[:, None] for field in layers)), whole[:, 0], whole[:, 1])

    def of(self, layers: LayerCounts, bits: ArrayLike) -> Float[np.ndarray, "..."]:
        """The cost, in its unit, of given widths: a float, or an array over the leading axes of ``bits``.

        bits: [..., layer, 2], (weight_bits, input_bits), as learned: fractions are charged as such.
        """
        widths = _widths(bits)
        if widths.shape[-2] != len(layers.names):
            raise ConfigError(f"bits of {widths.shape[-2]} layers for a model of {len(layers.names)} layers")
        return self.layer_cost(layers, widths[..., 0], widths[..., 1]).sum(-1) / self.total(layers)


def _weights(layers: LayerCounts, weight_bits: np.ndarray, input_bits: np.ndarray) -> np.ndarray:
    """Bits of the weights. Inputs are free: activations are not stored."""
    return layers.elements * weight_bits


def _size(layers: LayerCounts, weight_bits: np.ndarray, input_bits: np.ndarray) -> np.ndarray:
    """Bits of all that is stored: a zero-point has the width of what it belongs to."""
    own = layers.scales * SCALE_BITS + layers.zero_points * weight_bits
    of_inputs = layers.input_scales * SCALE_BITS + layers.input_zero_points * input_bits
    return layers.elements * weight_bits + own * _quantized(weight_bits) + of_inputs * _quantized(input_bits)


def _quantized(bits: np.ndarray) -> np.ndarray:
    return (bits > 0) & (bits < FLOAT_BITS)


def _bops(layers: LayerCounts, weight_bits: np.ndarray, input_bits: np.ndarray) -> np.ndarray:
    """Bit-operations per example."""
    return layers.macs * weight_bits * input_bits


COSTS: Registry[Cost] = Registry(
    "costs",
    {
        "size": Cost(
            _size, lambda layers: 8000.0, "kB", "storage of weights, scales and zero-points; 1 kB is 8000 bits"
        ),
        "bops": Cost(_bops, lambda layers: 1e6, "Mbops", "bit-operations per example, in millions"),
        "relative_bops": Cost(
            _bops,
            lambda layers: max(float(np.sum(layers.macs)), 1.0) * FLOAT_BITS**2,
            "of float",
            "bit-operations as a share of those at 32 x 32 bits; W8A8 is 0.0625",
        ),
        "average_bits": Cost(
            # At least 1: products of data store no weights, and cost none.
            _weights,
            lambda layers: max(float(np.sum(layers.elements)), 1.0),
            "bits",
            "weight bits, averaged over all weights",
        ),
    },
)


def layer_counts(elements: ArrayLike, macs: ArrayLike, names: Sequence[str] = (), **others: ArrayLike) -> LayerCounts:
    """The counts of some layers, from their weights and multiply-accumulates; ``others``: further fields of
    ``LayerCounts``, 0 unless given. ConfigError for counts that are no whole numbers or of several lengths.
    """
    fields = dict.fromkeys(LayerCounts._fields[1:], np.zeros(np.shape(elements), np.int64))
    fields |= {name: _counts(name, values) for name, values in {"elements": elements, "macs": macs, **others}.items()}
    labels = np.array(tuple(names) or [f"layer {i}" for i in range(len(fields["elements"]))], object)
    if {len(labels)} != {len(field) for field in fields.values()}:
        raise ConfigError(f"counts of different numbers of layers: {sorted({len(f) for f in fields.values()})}")
    return LayerCounts(labels, **fields)


def cost_named(name: str) -> Cost:
    """The entry of ``COSTS``. ConfigError for a name that it has not."""
    if name not in COSTS:
        raise ConfigError(f"cost '{name}' is not known{did_you_mean(name, COSTS)}")
    return COSTS[name]


def _counts(name: str, values: ArrayLike) -> Int[np.ndarray, "layer"]:
    counts = np.asarray(values)
    if counts.ndim != 1 or np.any(counts < 0) or np.any(counts != np.round(counts)):
        raise ConfigError(f"{name} must be one non-negative whole number per layer, got {counts.tolist()}")
    return counts.astype(np.int64)


def _widths(bits: ArrayLike) -> Float[np.ndarray, "... 2"]:
    widths = np.asarray(bits, np.float64)
    if widths.ndim < 2 or widths.shape[-1] != 2 or not np.all(widths >= 0):
        raise ConfigError(
            f"bits must be non-negative (weight_bits, input_bits) pairs, got shape {widths.shape}"
            f" with smallest {np.min(widths, initial=np.inf)}"
        )
    return np.minimum(widths, FLOAT_BITS)
