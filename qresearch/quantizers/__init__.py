"""The quantization methods, one per file. To add one: write its factory, add its line to ``QUANTIZERS``."""

from __future__ import annotations

from qresearch.errors import GraphError, did_you_mean
from qresearch.quantizers.base import Factory, Quantizer, QuantSpec, on_view
from qresearch.quantizers.lsq import lsq
from qresearch.quantizers.minmax import minmax

QUANTIZERS: dict[str, Factory] = {
    "lsq": lsq,
    "minmax": minmax,
}


def make_quantizer(name: str, spec: QuantSpec) -> Quantizer:
    """The method ``name`` for a site of this specification. GraphError for an unknown name or an impossible spec."""
    if name not in QUANTIZERS:
        raise GraphError(f"unknown quantizer '{name}'{did_you_mean(name, QUANTIZERS)}")
    return on_view(spec.granularity, QUANTIZERS[name](spec))


__all__ = ["QUANTIZERS", "QuantSpec", "Quantizer", "make_quantizer"]
