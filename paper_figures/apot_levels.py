"""Levels of additive powers of two, and how well they fit the weights of ResNet-20.

Paper: Additive Powers-of-Two Quantization, Li, Dong and Wang 2020, https://arxiv.org/abs/1909.13144, the figure of
  level sets (uniform, powers of two, additive).
Published: the magnitudes that the authors' code builds for 2 to 4 bits of magnitude (yhhhli/APoT_Quantization @13204f1,
  CIFAR10/models/quant_layer.py, build_power_value). Errors on weights are not published; they are shown.
Recipe: ``qresearch.numerics.power_levels``. Errors: ``apot`` with additive, power_of_two and uniform levels on the 18
  inner kernels of the published CIFAR-10 ResNet-20 (weights/resnet20_cifar10.npz of pytorch_resnet_cifar10), normalised
  as in the paper (mean 0, deviation 1 of the layer); the best clip of 81 from 0.6 to 5 for each layer, set and width.
Run: CPU (x86-64, JAX 0.10.2), 10 s.
Tolerance: levels 1e-6.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paper_figures.figure import Figure, Record, Row, find
from qresearch.errors import DataError

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Picture

# By bits of magnitude; a weight has one bit more, its sign.
PUBLISHED = {
    2: (0.0, 0.25, 0.5, 1.0),
    3: (0.0, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0),
    4: tuple(sorted({(a + b) / 0.75 for a in (0, 0.5, 0.125, 0.03125) for b in (0, 0.25, 0.0625, 0.015625)})),
}
SETS = {"uniform": "uniform", "power_of_two": "powers of two", "additive": "additive (APoT)"}
WIDTHS = (2, 3, 4, 5, 6)
FILE = "resnet20_cifar10.npz"


def run() -> list[Record]:
    """A record per level set and width, and one per layer, level set and width."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from qresearch.numerics.power_levels import LEVEL_SETS
    from qresearch.quantizers.apot import APoT, apot
    from qresearch.quantizers.base import QuantSpec

    folder = Path(os.environ.get("QRESEARCH_DATA", "."))
    path = next((place for place in (folder / "weights" / FILE, folder / FILE) if place.is_file()), None)
    if path is None:
        raise DataError(f"{folder / 'weights' / FILE}: not found; set QRESEARCH_DATA to the folder that holds weights/")
    found: list[Record] = []
    for magnitude in range(1, 6):
        for name, levels in LEVEL_SETS.items():
            found.append({"levels": name, "magnitude_bits": magnitude, "values": levels(magnitude)})
        count = 2**magnitude - 1
        even = [code / count for code in range(count + 1)]
        found.append({"levels": "uniform", "magnitude_bits": magnitude, "values": even})
    with np.load(path, allow_pickle=False) as archive:
        kernels = {name: archive[name] for name in archive.files if name.endswith("/kernel") and "layer" in name}
    clips = jnp.linspace(0.6, 5.0, 81)
    for name in SETS:
        quantizer = apot(QuantSpec(), levels=name, normalize=False)

        def errors(w: Any, bits: Any, quantizer: Any = quantizer) -> Any:
            def error(clip: Any) -> Any:
                return jnp.mean((quantizer.apply(APoT(clip.reshape((1,))), w, bits) - w) ** 2)

            return jax.lax.map(error, clips)

        compiled = jax.jit(errors)
        for layer, kernel in kernels.items():
            w = jnp.asarray((kernel - kernel.mean()) / kernel.std()).reshape(-1)
            for bits in WIDTHS:
                taken = np.asarray(compiled(w, jnp.float32(bits)))
                best = int(taken.argmin())
                record = {"levels": name, "layer": layer.removesuffix("/kernel"), "bits": bits}
                found.append(record | {"error": float(taken[best]), "clip": float(clips[best])})
    return found


def _mean_error(records: Sequence[Record], levels: str, bits: int) -> float | None:
    own = [r["error"] for r in records if r["levels"] == levels and r.get("bits") == bits]
    return sum(own) / len(own) if own else None


def rows(records: Sequence[Record]) -> list[Row]:
    """The levels, and the mean error over the layers."""
    found = []
    for magnitude, published in PUBLISHED.items():
        ours = find(records, "values", levels="additive", magnitude_bits=magnitude)
        far = None if ours is None else max(abs(a - b) for a, b in zip(ours, published, strict=True))
        found.append(Row(f"additive levels of {magnitude + 1} bits with sign, largest difference", 0.0, far, 1e-6))
    for bits in WIDTHS:
        for levels, name in SETS.items():
            found.append(Row(f"mean squared error, {bits} bits, {name}", None, _mean_error(records, levels, bits)))
    return found


def draw(records: Sequence[Record]) -> Picture:
    """The levels as ticks, the mean error against bits, and that of every layer at 4 bits."""
    from qresearch.report.figure import new_figure

    picture = new_figure(13.0, 4.4)
    levels, errors, layers = picture.subplots(1, 3)
    colours = dict(zip(SETS, ("#555555", "#D55E00", "#0072B2")))
    places = []
    for i, (name, label) in enumerate(SETS.items()):
        for j, bits in enumerate((3, 4, 5)):
            values = find(records, "values", levels=name, magnitude_bits=bits - 1)
            height = 4 * (2 - j) + (2 - i)
            both = sorted({sign * value for value in values for sign in (-1, 1)})
            levels.plot(both, [height] * len(both), "|", markersize=14, color=colours[name])
            places.append((height, f"{label}, {bits} bits"))
        widths = [(bits, _mean_error(records, name, bits)) for bits in WIDTHS]
        errors.plot(*zip(*widths), color=colours[name], marker="o", markersize=4, label=label)
        own = [record["error"] for record in records if record["levels"] == name and record.get("bits") == 4]
        layers.plot(range(len(own)), own, color=colours[name], marker="o", markersize=4, linewidth=1, label=label)
    layers.set_xticks(range(0, 18, 3))
    levels.set_yticks(*zip(*places), fontsize=8)
    levels.set(xlabel="level / α", title="levels")
    errors.plot(WIDTHS, [4.0**-bits for bits in WIDTHS], "k--", linewidth=1, label=r"bound of a normal, $2^{-2b}$")
    errors.set(yscale="log", xlabel="bits", title="ResNet-20 weights, mean of 18 layers")
    errors.set(ylabel="mean squared error of normalised weights", xticks=WIDTHS)
    layers.set(yscale="log", xlabel="layer", title="every layer at 4 bits")
    for axes in (errors, layers):
        axes.grid(alpha=0.25)
        axes.legend(fontsize=8)
    return picture


FIGURE = Figure(
    title="Additive powers of two: levels and weight errors",
    paper="APoT (Li et al. 2020), figure of levels",
    run=run,
    rows=rows,
    draw=draw,
    needs="QRESEARCH_DATA=FOLDER",
)
