"""How large an update of a step size is beside one of its weights, for three gradient scales of LSQ.

Paper: Learned Step Size Quantization, Esser et al. 2020, https://arxiv.org/abs/1902.08153, the figure of relative
  parameter updates: R = (|∇_s L| / s) / (‖∇_w L‖ / ‖w‖) for g = 1, 1 / sqrt(N) and 1 / sqrt(N q_max).
Published: no number that was read at the paper. From memory, and so no target: R is far above 1 for g = 1, and near 1
  for the last alone, which is why it is the method's.
Recipe: ResNet-20 with the published CIFAR-10 weights (pytorch_resnet_cifar10), LSQ per tensor with the paper's initial
  steps, first and last layer W8A8 and left out; W2A2, W3A3, W4A4 and W8A8; R of the 18 inner layers' weights, of the
  mean gradient over 512 training images at the start (the paper follows it through training). At 2 bits q_max is 1,
  so that two of the scales agree.
Run: CPU (x86-64, JAX 0.10.2), 56 s on two cores shared with other work.
Tolerance: none is published. Shown: the geometric mean over the layers, and the smallest and the largest R.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from paper_figures.figure import ROOT, Figure, Record, Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Picture

WIDTHS = (2, 3, 4, 8)
SCALES = {"1": "g = 1", "N": "g = 1 / √N", "Nq": "g = 1 / √(N q_max)"}
EXAMPLES = 512


def run() -> list[Record]:
    """A record per width and layer: R for each gradient scale."""
    from pathlib import Path

    import jax
    import jax.numpy as jnp
    import numpy as np

    from qresearch.config import load
    from qresearch.sweep.assemble import load_weights
    from qresearch.sweep.bench import Bench
    from qresearch.sweep.progress import Silent
    from qresearch.sweep.run import plan_sweep

    menu = f"quantize.menu={[[width, width] for width in WIDTHS]}"
    own = ["quantize.weight.granularity=per_tensor", "quantize.weight.range=own", "quantize.input.range=own"]
    config = plan_sweep(load(str(ROOT / "configs" / "cifar_resnet20_qat.yaml"), [menu, *own]))[0]
    bench = Bench(config, Path(), Silent())
    variables = load_weights(config, bench.setup)
    model, table = bench.model("float", variables), bench.calibrated("float", variables, WIDTHS)
    x = bench.calibration_inputs[:EXAMPLES]
    y = jnp.asarray(bench.setup.data.train.targets[:EXAMPLES])

    def loss(variables: Any, qparams: Any, bits: Any) -> Any:
        return bench.setup.task.loss(model.apply(variables, qparams, x, bits), y).mean()

    from qresearch.calibration import select

    gradient = jax.jit(jax.grad(loss, argnums=(0, 1)))
    weights = _by_path(variables)
    found: list[Record] = []
    for width in WIDTHS:
        inner = len(model.menus) - 2
        bits = jnp.asarray([[8, 8], *[[width, width]] * inner, [8, 8]], jnp.float32)
        qparams = select(table, bits)
        in_weights, in_qparams = gradient(variables, qparams, bits)
        in_weights = _by_path(in_weights)
        for layer in model.layers[1:-1]:
            path = next(path for path in weights if path.endswith(layer.parameter))
            w, g = (np.asarray(tree[path], np.float64) for tree in (weights, in_weights))
            step = float(np.asarray(qparams[layer.name]["weight"].scale).reshape(()))
            scaled = abs(float(np.asarray(in_qparams[layer.name]["weight"].scale).reshape(())))
            q_max = 2 ** (width - 1) - 1
            ratio = scaled / step / (np.linalg.norm(g) / np.linalg.norm(w))
            ratios = {"1": ratio * math.sqrt(w.size * q_max), "N": ratio * math.sqrt(q_max), "Nq": ratio}
            found.append({"bits": width, "layer": layer.name, "elements": w.size, "ratio": ratios})
    return found


def _by_path(tree: Any) -> dict[str, Any]:
    import jax

    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {"/".join(str(getattr(key, "key", key)) for key in path): leaf for path, leaf in leaves}


def rows(records: Sequence[Record]) -> list[Row]:
    """For every width and scale: the geometric mean over the layers, the smallest and the largest ratio."""
    found = []
    for width in WIDTHS:
        for scale, name in SCALES.items():
            ratios = _ratios(records, width, scale)
            logs = [math.log(ratio) for ratio in ratios]
            parts = [math.exp(sum(logs) / len(logs)), min(ratios), max(ratios)] if ratios else [None] * 3
            for what, value in zip(("geometric mean", "smallest", "largest"), parts):
                found.append(Row(f"R, {width} bits, {name}, {what} of the layers", None, value))
    return found


def _ratios(records: Sequence[Record], width: int, scale: str) -> list[float]:
    return [record["ratio"][scale] for record in records if record["bits"] == width]


def draw(records: Sequence[Record]) -> Picture:
    """R of every layer, one panel per width."""
    from qresearch.report.figure import new_figure

    picture = new_figure(13.0, 4.2)
    panels = picture.subplots(1, len(WIDTHS), sharey=True)
    layers = list(dict.fromkeys(record["layer"] for record in records))
    names = [layer.removesuffix("/kernel").replace("layer", "").replace("conv", "") for layer in layers]
    for axes, width in zip(panels, WIDTHS):
        for (scale, label), colour, marker in zip(SCALES.items(), ("#D55E00", "#009E73", "#0072B2"), "s^o"):
            ratios = _ratios(records, width, scale)
            axes.plot(range(len(ratios)), ratios, color=colour, marker=marker, markersize=4, linewidth=1, label=label)
        axes.axhline(1.0, color="#555555", linestyle="--", linewidth=1)
        axes.set(yscale="log", title=f"W{width}A{width}")
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=6)
        axes.set_xlabel("layer of ResNet-20 (stage/block/convolution)", fontsize=8)
        axes.grid(alpha=0.25)
    panels[0].set_ylabel("R = (|∇s| / s) / (‖∇w‖ / ‖w‖)")
    panels[0].legend(fontsize=8)
    return picture


FIGURE = Figure(
    title="Relative size of LSQ's step updates",
    paper="LSQ (Esser et al. 2020), figure of gradient scales",
    run=run,
    rows=rows,
    draw=draw,
    needs="QRESEARCH_DATA=FOLDER",
)
