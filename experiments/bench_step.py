"""What does a training step cost with a learnable quantizer, beside the same step in float?

Question: forward and backward pass, jitted, of ResNet-20 (batch 128, 32 x 32 x 3, batch statistics) and of one dense
  layer of 1024 x 1024 (batch 256), float against every method that learns something, at W4A4 with traced bits; weights
  per channel (per tensor for a method that refuses channels), inputs per tensor. Gradients in parameters and qparams.
Command: python experiments/bench_step.py [--repeats 15] [--case dense resnet20] [--methods lsq ...] [--json FILE]
Prints the median seconds of both and the median of their ratios, each pair run one after the other in one process.
With the extra ``peers`` installed, Qwix (integer types, its QAT provider) is timed in the same way.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from step_peers import PEERS

import qresearch as qr
from qresearch.errors import QResearchError
from qresearch.models import MODELS
from qresearch.quantizers import QUANTIZERS
from qresearch.quantizers.describe import describe


class Case(NamedTuple):
    """A float function of (params, x), its arguments, and what stands for the loss of its outputs."""

    fn: Callable[[Any, jax.Array], jax.Array]
    params: Any
    x: jax.Array


def dense() -> Case:
    keys = jax.random.split(jax.random.key(0))
    params = {"kernel": jax.random.normal(keys[0], (1024, 1024)) / 32}
    return Case(lambda params, x: x @ params["kernel"], params, jax.nn.relu(jax.random.normal(keys[1], (256, 1024))))


def resnet20() -> Case:
    model, key = MODELS["resnet20"](10), jax.random.key(0)
    x = jax.random.normal(key, (128, 32, 32, 3))
    return Case(lambda variables, x: model.apply_train(variables, (x, key))[0], model.init(key, x), x)


CASES: dict[str, Callable[[], Case]] = {"dense": dense, "resnet20": resnet20}


def loss(outputs: jax.Array) -> jax.Array:
    """Any function whose gradient differs from element to element."""
    return -jnp.mean(jax.nn.log_softmax(outputs)[:, 0])


def float_step(case: Case) -> Callable[[], Any]:
    step = jax.jit(jax.grad(lambda params, x: loss(case.fn(params, x))))
    return lambda: step(case.params, case.x)


def quantized_step(case: Case, name: str) -> Callable[[], Any]:
    """The step of a method, gradients in params and qparams."""
    model = quantize(case, name)
    bits = jnp.full((len(model.layers), 2), 4.0)
    qparams = jax.jit(model.init)(case.params, case.x, bits)

    @jax.jit
    def step(params, qparams, x, bits, key):
        return jax.grad(lambda own: loss(model.apply(*own, x, bits, key)))((params, qparams))

    return lambda: step(case.params, qparams, case.x, bits, jax.random.key(1))


def quantize(case: Case, name: str) -> qr.QuantizedModel:
    granularity = "per_channel" if "per_channel" in describe(name).granularities else "per_tensor"
    rule = qr.Rule(weight=qr.SiteRule(name, granularity), input=qr.SiteRule(name), menu=((4, 4),))
    return qr.quantize_model(case.fn, case.params, case.x, [rule])


def seconds(step: Callable[[], Any]) -> float:
    started = time.perf_counter()
    jax.block_until_ready(step())
    return time.perf_counter() - started


def paired(one: Callable[[], Any], other: Callable[[], Any], repeats: int) -> dict[str, float]:
    """Median seconds of both and the median ratio, after one run of each that compiles."""
    seconds(one), seconds(other)
    times = [(seconds(one), seconds(other)) for _ in range(repeats)]
    return {
        "float_s": statistics.median(a for a, _ in times),
        "method_s": statistics.median(b for _, b in times),
        "ratio": statistics.median(b / a for a, b in times),
    }


def rows(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    where = {"device": jax.devices()[0].device_kind, "jax": jax.__version__, "repeats": options.repeats}
    for name in options.case:
        case = CASES[name]()
        base = float_step(case)
        steps = {method: lambda case=case, method=method: quantized_step(case, method) for method in options.methods}
        steps |= {
            peer: lambda case=case, make=make: make(case.params, case.x, loss) for peer, make in PEERS(name).items()
        }
        for method, build in steps.items():
            yield {"case": name, "method": method, **paired(base, build(), options.repeats), **where}


def main() -> int:
    learnable = [name for name in QUANTIZERS if describe(name).learnable]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--case", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--methods", nargs="+", choices=list(QUANTIZERS), default=learnable)
    parser.add_argument("--json", type=Path, help="also append the rows to this file, one JSON object a line")
    options = parser.parse_args()
    print(f"{'case':10}{'method':16}{'float s':>10}{'method s':>10}{'ratio':>8}")
    for row in rows(options):
        print(
            f"{row['case']:10}{row['method']:16}{row['float_s']:10.4f}{row['method_s']:10.4f}{row['ratio']:8.2f}",
            flush=True,
        )
        if options.json:
            with options.json.open("a") as file:
                file.write(json.dumps(row) + "\n")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except QResearchError as error:
        sys.exit(f"error: {error}")
