"""How much does one program for all allocations save over one program for each?

Question: the digits CNN, 16 random allocations over {2, 3, 4, 6, 8} for weights and inputs, 300 validation images each:
  seconds for the first 16 allocations (compilation included) and for 16 further ones, with traced bits and with bits
  compiled in as constants.
Command: python experiments/bench_population.py [--allocations 16] [--repeats 3]
Prints medians over the repeats; both variants run in turn in one process, each repeat from empty compilation caches.
"""

from __future__ import annotations

import argparse
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

import qresearch as qr
from qresearch.data import DATASETS
from qresearch.models import MODELS
from qresearch.qmodel import QuantizedModel
from qresearch.tasks import TASKS


def traced(model: QuantizedModel, params, qparams, allocations, batches, prepare) -> None:
    qr.evaluate_population(model, params, qparams, allocations, batches, TASKS["classification"], prepare)


def constant(model: QuantizedModel, params, qparams, allocations, batches, prepare) -> None:
    for bits in allocations:
        fixed = jax.tree.map(np.asarray, qr.select(qparams, jnp.asarray(bits)))
        compiled = jax.jit(lambda params, x, bits=bits, fixed=fixed: model.apply(params, fixed, prepare(x), bits))
        jax.block_until_ready([compiled(params, x) for x in batches.inputs])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--allocations", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    digits = DATASETS["digits"](None)
    x = digits.prepare(jnp.asarray(digits.train.inputs[:256]))
    apply, batches = MODELS["digits_cnn"](10).apply, qr.make_batches(digits.validation, 100)
    params = MODELS["digits_cnn"](10).init(jax.random.key(0), x)
    model = qr.quantize_model(apply, params, x)
    qparams = qr.calibrate(model, params, x)
    draw = np.random.default_rng(0)
    rows = {name: ([], []) for name in ("traced", "constant")}
    for _ in range(options.repeats):
        for name, run in (("traced", traced), ("constant", constant)):
            jax.clear_caches()
            for column in rows[name]:
                bits = draw.choice([2.0, 3.0, 4.0, 6.0, 8.0], (options.allocations, len(model.layers), 2))
                started = time.perf_counter()
                run(model, params, qparams, bits.astype(np.float32), batches, digits.prepare)
                column.append(time.perf_counter() - started)
    where = f"{jax.devices()[0].device_kind}, jax {jax.__version__}"
    print(f"{where}, {options.allocations} allocations, median of {options.repeats}")
    for name, (first, further) in rows.items():
        print(f"{name:9} first {statistics.median(first):7.2f} s   further {statistics.median(further):7.2f} s")


if __name__ == "__main__":
    main()
