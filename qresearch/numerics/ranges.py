"""Range calibration: from a tensor to the (low, high) values that the grid should cover, by name."""

from __future__ import annotations

from qresearch.numerics.range_method import Range, RangeMethod
from qresearch.numerics.ranges_aciq import aciq_gauss_range, aciq_laplace_range
from qresearch.numerics.ranges_entropy import entropy_range
from qresearch.numerics.ranges_mse import mse_range
from qresearch.numerics.ranges_sawb import sawb_range
from qresearch.numerics.ranges_statistics import absmax_range, minmax_range, moving_average_range, percentile_range
from qresearch.registry import Registry

RANGES: Registry[RangeMethod] = Registry(
    "ranges",
    {
        "absmax": absmax_range,
        "aciq_gauss": aciq_gauss_range,
        "aciq_laplace": aciq_laplace_range,
        "entropy": entropy_range,
        "minmax": minmax_range,
        "moving_average": moving_average_range,
        "mse": mse_range,
        "percentile": percentile_range(99.9),
        "sawb": sawb_range,
    },
)
# Ranges of a few densities and low widths: on other data, further bits may bring less than their six decibels.
FITTED = frozenset({"sawb"})

__all__ = ["FITTED", "RANGES", "Range", "RangeMethod", "minmax_range", "mse_range"]
