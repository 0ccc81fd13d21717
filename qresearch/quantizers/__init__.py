"""The quantization methods, one per file. To add one: write its factory, add its line to ``QUANTIZERS``."""

from __future__ import annotations

import inspect
from typing import Any

from qresearch.errors import GraphError, did_you_mean
from qresearch.quantizers.base import Factory, Quantizer, QuantSpec, on_view
from qresearch.quantizers.lsq import lsq
from qresearch.quantizers.minmax import minmax

QUANTIZERS: dict[str, Factory] = {
    "lsq": lsq,
    "minmax": minmax,
}


def make_quantizer(name: str, spec: QuantSpec, **options: Any) -> Quantizer:
    """The method ``name`` for a site of this specification, with the method's own options.

    GraphError for an unknown name or option, or a spec that the method does not define.
    """
    if name not in QUANTIZERS:
        raise GraphError(f"unknown quantizer '{name}'{did_you_mean(name, QUANTIZERS)}")
    factory = QUANTIZERS[name]
    known = list(inspect.signature(factory).parameters)[1:]
    for option in options:
        if option not in known:
            close = did_you_mean(option, known) if known else "; it has none"
            raise GraphError(f"quantizer '{name}' has no option '{option}'{close}")
    return on_view(spec.granularity, factory(spec, **options))


__all__ = ["QUANTIZERS", "QuantSpec", "Quantizer", "make_quantizer"]
