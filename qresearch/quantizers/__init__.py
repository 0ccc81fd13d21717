"""The quantization methods, one per file. To add one: write its factory, add its line to ``QUANTIZERS``."""

from __future__ import annotations

import inspect
from typing import Any

from qresearch.errors import GraphError, did_you_mean
from qresearch.numerics.fake_quant import MASKS
from qresearch.numerics.ranges import RANGES
from qresearch.numerics.rounding import ROUNDINGS
from qresearch.quantizers.apot import apot
from qresearch.quantizers.base import Factory, Quantizer, QuantSpec, on_view
from qresearch.quantizers.bayesian_bits import bayesian_bits
from qresearch.quantizers.binary import binary
from qresearch.quantizers.diffq import diffq
from qresearch.quantizers.dorefa import dorefa
from qresearch.quantizers.dq import dq_u1, dq_u2, dq_u3
from qresearch.quantizers.dsq import dsq
from qresearch.quantizers.dynamic import dynamic
from qresearch.quantizers.ewgs import ewgs
from qresearch.quantizers.fracbits import fracbits
from qresearch.quantizers.logarithmic import logarithmic
from qresearch.quantizers.lsq import lsq
from qresearch.quantizers.lsq_plus import lsq_plus
from qresearch.quantizers.lut import lut
from qresearch.quantizers.midpoint import midpoint
from qresearch.quantizers.minifloat import fp4_e2m1, fp6_e2m3, fp6_e3m2, fp8_e4m3, fp8_e5m2
from qresearch.quantizers.minmax import minmax
from qresearch.quantizers.mx import mx
from qresearch.quantizers.n2uq import n2uq
from qresearch.quantizers.nf4 import nf4
from qresearch.quantizers.nipq import nipq
from qresearch.quantizers.pact import pact
from qresearch.quantizers.power_of_two import power_of_two
from qresearch.quantizers.qil import qil
from qresearch.quantizers.statsq import statsq
from qresearch.quantizers.ternary import ternary
from qresearch.quantizers.tqt import tqt
from qresearch.quantizers.ttq import ttq
from qresearch.registry import Registry

QUANTIZERS: Registry[Factory] = Registry(
    "quantizers",
    {
        "apot": apot,
        "bayesian_bits": bayesian_bits,
        "binary": binary,
        "diffq": diffq,
        "dorefa": dorefa,
        "dq_u1": dq_u1,
        "dq_u2": dq_u2,
        "dq_u3": dq_u3,
        "dsq": dsq,
        "dynamic": dynamic,
        "ewgs": ewgs,
        "fp4_e2m1": fp4_e2m1,
        "fp6_e2m3": fp6_e2m3,
        "fp6_e3m2": fp6_e3m2,
        "fp8_e4m3": fp8_e4m3,
        "fp8_e5m2": fp8_e5m2,
        "fracbits": fracbits,
        "logarithmic": logarithmic,
        "lsq": lsq,
        "lsq_plus": lsq_plus,
        "lut": lut,
        "midpoint": midpoint,
        "minmax": minmax,
        "mx": mx,
        "n2uq": n2uq,
        "nf4": nf4,
        "nipq": nipq,
        "pact": pact,
        "power_of_two": power_of_two,
        "qil": qil,
        "statsq": statsq,
        "ternary": ternary,
        "tqt": tqt,
        "ttq": ttq,
    },
)


def make_quantizer(name: str, spec: QuantSpec, **options: Any) -> Quantizer:
    """The method ``name`` for a site of this specification, with the method's own options.

    GraphError for an unknown name, option, range, mask or rounding, or a spec that the method does not define.
    """
    if name not in QUANTIZERS:
        raise GraphError(f"unknown quantizer '{name}'{did_you_mean(name, QUANTIZERS)}")
    factory = QUANTIZERS[name]
    known = list(inspect.signature(factory).parameters)[1:]
    for option in options:
        if option not in known:
            close = did_you_mean(option, known) if known else "; it has none"
            raise GraphError(f"quantizer '{name}' has no option '{option}'{close}")
    for field, names in {"range": RANGES, "mask": MASKS, "rounding": (*ROUNDINGS, "stochastic")}.items():
        value = getattr(spec, field)
        if value is not None and value not in names:
            raise GraphError(f"quantizer '{name}': unknown {field} '{value}'{did_you_mean(str(value), names)}")
    return on_view(spec.granularity, factory(spec, **options))


__all__ = ["QUANTIZERS", "QuantSpec", "Quantizer", "make_quantizer"]
