"""Cost models: what an allocation costs in weight storage, in bit-operations and in average bits.

Counted: the weights of every layer (size, average_bits) and its multiply-accumulates (bops). Not counted: scales, zero
points, biases, batch-norm parameters, and everything that is no layer (additions, activations, pooling).
A width of 0 bits means pruned and costs nothing; 32 bits and above mean float and are charged as 32.

Allocators work on integer tables, since a budget that equals the cost of an allocation must admit that allocation.

Conventions differ. Bayesian Bits (van Baalen et al., https://arxiv.org/abs/2005.07093, 2020) reports bops relative to
32 x 32 bits: ``relative_bops``. NNCF reports them relative to INT8. HAWQ-V3 (Yao et al.,
https://arxiv.org/abs/2011.10680, 2021) publishes macs * bits^2 for its uniform rows, but its notebook charges macs / 16
at 8 bits and macs / 64 at 4 bits, so that its mixed rows are macs * bits^2 / 1024. Some papers average bits over
layers; here every weight counts once.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import ArrayLike

from qresearch.errors import ConfigError, did_you_mean

FLOAT_BITS = 32  # what a float tensor is charged for


class LayerCostFn(Protocol):
    """``layer_cost(elements, macs, weight_bits, input_bits)``: elementwise, broadcasting, integer for integers."""

    def __call__(
        self, elements: np.ndarray, macs: np.ndarray, weight_bits: np.ndarray, input_bits: np.ndarray
    ) -> np.ndarray: ...


class TotalFn(Protocol):
    """``total(elements[layer], macs[layer])``: a sum of layer costs divided by this is in the unit users read."""

    def __call__(self, elements: ArrayLike, macs: ArrayLike) -> float: ...


class Cost(NamedTuple):
    """A cost that is a sum over layers. ``unit``: of that sum divided by ``total``. ``describe``: one line for
    users.
    """

    layer_cost: LayerCostFn
    total: TotalFn
    unit: str
    describe: str

    def table(self, elements: ArrayLike, macs: ArrayLike, options: ArrayLike) -> Int[np.ndarray, "layer option"]:
        """The integer cost of every layer under every option. elements, macs: [layer]. options: [option, 2]."""
        bits = _widths(options)
        if bits.ndim != 2 or np.any(bits != np.round(bits)):
            raise ConfigError(f"options must be whole bits of shape [option, 2], got {np.asarray(options).tolist()}")
        n, m, whole = _counts("elements", elements), _counts("macs", macs), bits.astype(np.int64)
        _same_layers(n, m, None)
        return self.layer_cost(n[:, None], m[:, None], whole[:, 0], whole[:, 1])


def _size(elements: np.ndarray, macs: np.ndarray, weight_bits: np.ndarray, input_bits: np.ndarray) -> np.ndarray:
    """Bits of weight storage. Inputs are free: activations are not stored."""
    return elements * weight_bits


def _bops(elements: np.ndarray, macs: np.ndarray, weight_bits: np.ndarray, input_bits: np.ndarray) -> np.ndarray:
    """Bit-operations per example."""
    return macs * weight_bits * input_bits


COSTS: dict[str, Cost] = {
    "size": Cost(_size, lambda elements, macs: 8000.0, "kB", "weight storage; 1 kB is 8000 bits"),
    "bops": Cost(_bops, lambda elements, macs: 1e6, "Mbops", "bit-operations per example, in millions"),
    "average_bits": Cost(
        # At least 1: products of data store no weights, and cost none.
        _size,
        lambda elements, macs: max(float(np.sum(elements)), 1.0),
        "bits",
        "weight bits, averaged over all weights",
    ),
}


def allocation_cost(name: str, elements: ArrayLike, macs: ArrayLike, bits: ArrayLike) -> Float[np.ndarray, "..."]:
    """The cost ``name``, in its unit, of given widths: a float, or an array over the leading axes of ``bits``.

    elements, macs: [layer]. bits: [..., layer, 2], (weight_bits, input_bits), as learned: fractions are charged as
    such.
    """
    if name not in COSTS:
        raise ConfigError(f"cost '{name}' is not known{did_you_mean(name, COSTS)}")
    n, m, widths = _counts("elements", elements), _counts("macs", macs), _widths(bits)
    _same_layers(n, m, widths)
    return COSTS[name].layer_cost(n, m, widths[..., 0], widths[..., 1]).sum(-1) / COSTS[name].total(n, m)


def relative_bops(macs: ArrayLike, bits: ArrayLike) -> Float[np.ndarray, "..."]:
    """Bops as a fraction of the float model's: Σ macs·weight_bits·input_bits / Σ macs·32² (Bayesian Bits).

    macs: [layer]. bits: [..., layer, 2]. Uniform W8A8, W4A4 and W2A2 give 0.0625, 0.015625 and 0.00390625, so anything
    below 0.00098 (W1A1) has pruned layers.
    """
    m, widths = _counts("macs", macs), _widths(bits)
    _same_layers(m, m, widths)
    return _bops(m, m, widths[..., 0], widths[..., 1]).sum(-1) / (max(m.sum(), 1) * FLOAT_BITS**2)


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


def _same_layers(elements: np.ndarray, macs: np.ndarray, widths: np.ndarray | None) -> None:
    layers = {len(elements), len(macs)} | (set() if widths is None else {widths.shape[-2]})
    if len(layers) > 1:
        raise ConfigError(f"elements, macs and bits describe different numbers of layers: {sorted(layers)}")
