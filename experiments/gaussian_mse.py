"""How close does every quantizer come to the rate-distortion bound on normal data, at its calibrated start?

Question: the squared error of every method of QUANTIZERS on N(0, 1), nothing trained, at 1 to 8 bits, for symmetric and
  affine grids and every range calibration the method takes, beside the bound 2^(-2b) that no quantizer can pass.
Command: python experiments/gaussian_mse.py RECORDS.jsonl [--samples 131072] [--seed 0] [--bits 1 2 ...] [--ranges ...]
Time: one minute on two CPU cores (x86-64, JAX 0.10.2).
Writes one JSON line a point: method, symmetric, range (null: the method's own), bits, mse, bound, samples, seed,
  versions, device, commit. Prints every method's own calibration and the best of the others (least mean log error).
Expected: the optima of Max 1960 for equal steps without a zero, 0.1188, 0.0374, 0.0115, 0.0035 at 2 to 5 bits (affine
  lsq_plus, which fits its step and offset); for codebooks by k-means Lloyd's 0.1175, 0.0345, 0.0095, 0.0025; nothing
  below the bound but signed DQ at 1 bit, which it does not have: its smallest width is 2.

Left out: specs that a method refuses, calibrations that it ignores, and methods whose output does not stand for x
itself (trait "rescales"). A method of fixed width has one point, at log2 of its number of levels. Scales, also those of
blocks, are not counted as bits.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from qresearch.numerics.ranges import RANGES
from qresearch.quantizers import QUANTIZERS, Quantizer, QuantSpec, make_quantizer
from qresearch.quantizers.base import UnsupportedSpecError
from qresearch.results.environment import environment

OWN = "own"  # the method's own calibration, on the command line and in the table


class Curve(NamedTuple):
    """The errors of one method with one calibration, a point for each width."""

    method: str
    symmetric: bool
    range: str | None
    bits: tuple[float, ...]
    mse: tuple[float, ...]

    @property
    def label(self) -> str:
        return f"{self.method:<18}{'symmetric' if self.symmetric else 'affine':<11}{self.range or OWN:<16}"


def measure(
    quantizer: Quantizer, x: Float[Array, " samples"], widths: Sequence[float]
) -> tuple[list[float], list[float]]:
    """(bits, mse), calibrated at each width in one compiled program; one point for a method of fixed width."""

    @jax.jit
    def error(x: Array, bits: Array) -> Array:
        return jnp.mean((quantizer.apply(quantizer.init(x, bits), x, bits) - x) ** 2)

    if quantizer.width is None:
        return list(widths), [error(x, jnp.float32(bits)).item() for bits in widths]
    codes = jax.jit(lambda x: quantizer.encode(quantizer.init(x, 4.0), x, 4.0))(x)
    levels = np.unique(codes.values).size if codes.codebook is None else codes.codebook.size
    return [float(np.log2(levels))], [error(x, jnp.float32(4)).item()]


def curves(x: Float[Array, " samples"], widths: Sequence[float], ranges: Sequence[str | None]) -> Iterator[Curve]:
    """Every method of the registry with every specification it accepts, in the order of the registry."""
    for name in QUANTIZERS:
        for symmetric in (True, False):
            seen = set()
            for calibration in ranges:
                try:
                    quantizer = make_quantizer(name, QuantSpec(symmetric=symmetric, range=calibration))
                except UnsupportedSpecError:
                    continue
                if "rescales" in quantizer.traits:
                    continue
                curve = Curve(name, symmetric, calibration, *map(tuple, measure(quantizer, x, widths)))
                if curve.mse not in seen:  # a calibration that the method ignores gives what another one gave
                    seen.add(curve.mse)
                    yield curve


def records(curve: Curve, common: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """One plain record for every point of a curve."""
    for bits, mse in zip(curve.bits, curve.mse):
        point = {"bits": bits, "mse": mse, "bound": 4.0**-bits}
        yield {"method": curve.method, "symmetric": curve.symmetric, "range": curve.range, **point, **common}


def chosen(found: Sequence[Curve]) -> Iterator[Curve]:
    """For every method and grid its own calibration, and the best other one where that is better."""
    for key in dict.fromkeys((curve.method, curve.symmetric) for curve in found):
        same = [curve for curve in found if (curve.method, curve.symmetric) == key]
        yield same[0]
        best = min(same, key=lambda curve: np.log(np.maximum(curve.mse, 1e-30)).mean())
        if best is not same[0]:
            yield best


def table(found: Sequence[Curve], widths: Sequence[float]) -> str:
    """The curves as lines of text, the bound first; methods of fixed width below."""
    head = f"{'method':<18}{'grid':<11}{'range':<16}"
    lines = [
        head + "".join(f"{bits:>10g}" for bits in widths),
        f"{'bound 2^(-2b)':<45}" + _row([4.0**-b for b in widths]),
    ]
    whole = [curve for curve in chosen(found) if curve.bits == tuple(widths)]
    fixed = [curve for curve in chosen(found) if curve.bits != tuple(widths)]
    lines += [curve.label + _row(curve.mse) for curve in whole]
    lines += [
        f"{curve.label}{_row(curve.mse)}  at {curve.bits[0]:.2f} bits, bound{_row([4.0 ** -curve.bits[0]])}"
        for curve in fixed
    ]
    return "\n".join(lines)


def below(found: Sequence[Curve]) -> list[str]:
    """The methods and widths whose error is below 2^(-2b), by more than the samples explain."""
    points = [(curve, bits) for curve in found for bits, mse in zip(curve.bits, curve.mse) if mse < 0.98 * 4.0**-bits]
    return list(dict.fromkeys(f"{curve.method} at {bits:g} bits" for curve, bits in points))


def _row(values: Sequence[float]) -> str:
    return "".join(f"{value:>10.3g}" for value in values)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", type=Path)
    parser.add_argument("--samples", type=int, default=2**17)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bits", type=float, nargs="+", default=[float(bits) for bits in range(1, 9)])
    parser.add_argument("--ranges", nargs="+", choices=[OWN, *RANGES], default=[OWN, *RANGES])
    options = parser.parse_args(arguments)
    x = jax.random.normal(jax.random.key(options.seed), (options.samples,))
    where = environment()
    common = {"samples": options.samples, "seed": options.seed}
    common |= {key: where[key] for key in ("versions", "device", "commit")}
    found = []
    with options.records.open("w", encoding="utf-8") as file:
        for curve in curves(x, options.bits, [None if name == OWN else name for name in options.ranges]):
            found.append(curve)
            file.writelines(json.dumps(record, allow_nan=False) + "\n" for record in records(curve, common))
            file.flush()
    print(table(found, options.bits))
    if more := below(found):
        print(f"below the bound, so with more than 2^bits levels: {', '.join(more)}")
    print(f"{where['device']['kind']}, {options.samples} samples, seed {options.seed}; records in {options.records}")


if __name__ == "__main__":
    main()
