"""How does the cost of a search grow: an allocator's with the layers, a population's with the allocations?

Question: seconds of every allocator that works on a table for one budget of average bits, at 10 to 1,000 layers with 8
  options each; and seconds of a population of 1 to 256 allocations of the digits CNN on 360 images, with the number of
  programs that XLA compiled for it.
Command: python experiments/bench_growth.py [--repeats 3] [--allocators exact milp ...] [--json FILE]
Time: two minutes on two CPU cores.
Prints medians over the repeats. Losses are drawn as sensitivities look: halved by every bit, of sizes that span four
  orders of magnitude; no two layers are alike.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import monitoring

import qresearch as qr
from qresearch.data import DATASETS
from qresearch.models import MODELS
from qresearch.tasks import TASKS

LAYERS = (10, 30, 100, 300, 1000)
POPULATIONS = (1, 4, 16, 64, 256)
WIDTHS = np.arange(2, 10)  # 8 options


def drawn_problem(layers: int, seed: int) -> tuple[qr.Problem, int]:
    """A problem of ``layers`` layers with 8 options each, and a budget of 4.5 average bits."""
    random = np.random.default_rng(seed)
    elements = random.integers(1_000, 1_000_000, layers)
    scale = 10.0 ** random.uniform(-4, 0, (layers, 1))
    loss = scale * 2.0**-WIDTHS * random.uniform(0.8, 1.2, (layers, len(WIDTHS)))
    return qr.Problem(loss, (elements[:, None] * WIDTHS)[None]), int(4.5 * elements.sum())


def allocator_rows(names: list[str], repeats: int) -> list[dict[str, object]]:
    rows = []
    for name in names:
        for layers in LAYERS:
            taken = []
            for repeat in range(repeats):
                problem, budget = drawn_problem(layers, repeat)
                started = time.perf_counter()
                qr.ALLOCATORS[name](0, problem, [budget])
                taken.append(time.perf_counter() - started)
            rows.append({"allocator": name, "layers": layers, "seconds": statistics.median(taken)})
            print(f"{name:12} {layers:5} layers  {rows[-1]['seconds']:8.3f} s")
    return rows


def population_rows(repeats: int) -> list[dict[str, object]]:
    digits, model = DATASETS["digits"](None), MODELS["digits_cnn"](10)
    x = digits.prepare(jnp.asarray(digits.train.inputs[:256]))
    params = model.init(jax.random.key(0), x)
    quantized = qr.quantize_model(model.apply, params, x)
    menu, batches = qr.calibrate(quantized, params, x), qr.make_batches(digits.validation, 360)
    compiled: list[str] = []
    monitoring.register_event_duration_secs_listener(
        lambda event, _, **what: (
            compiled.append(what["fun_name"]) if event.endswith("backend_compile_duration") else None
        )
    )
    rows = []
    for count in POPULATIONS:
        taken = []
        for repeat in range(repeats):
            random = np.random.default_rng(repeat)
            bits = random.choice([2.0, 3.0, 4.0, 6.0, 8.0], (count, len(quantized.layers), 2)).astype(np.float32)
            started = time.perf_counter()
            qr.evaluate_population(quantized, params, menu, bits, batches, TASKS["classification"], digits.prepare)
            taken.append(time.perf_counter() - started)
        # The first call of all compiles; what is timed is the median, and the count is that of all calls so far.
        programs = sum(name == "jit(step)" for name in compiled)
        rows.append({"allocations": count, "seconds": statistics.median(taken), "programs": programs})
        print(f"population   {count:5} allocations  {rows[-1]['seconds']:8.3f} s   {programs} program(s) so far")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    on_tables = [name for name in qr.ALLOCATORS if name not in ("nsga2", "bayesian", "gibbs")]  # which measure
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--allocators", nargs="*", choices=on_tables, default=on_tables)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}")
    rows = [*allocator_rows(options.allocators, options.repeats), *population_rows(options.repeats)]
    if options.json:
        options.json.write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    main()
