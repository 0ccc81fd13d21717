"""What does a training step cost with a learnable quantizer, beside the same step in float?

Question: forward and backward pass, jitted, of ResNet-20 (batch 128, 32 x 32 x 3, batch statistics) and of one dense
  layer of 1024 x 1024 (batch 256), float against every method that learns something, at W4A4 with traced bits; weights
  per channel (per tensor for a method that refuses channels), inputs per tensor. Gradients in variables, qparams and x.
Command: python experiments/bench_step.py [--repeats 15] [--case dense resnet20] [--methods lsq ...] [--json FILE]
Time: half an hour on two CPU cores, most of it ResNet-20; four minutes with ``--methods lsq``.
Prints the median seconds of both and the median of their ratios, each pair run one after the other in one process.
With the extra ``peers`` installed, Qwix and Brevitas are timed in the same way, each against its own float step.
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
from flax import linen as nn
from step_peers import Step, peer_steps

import qresearch as qr
from qresearch.errors import QResearchError
from qresearch.models.resnet import ResNet
from qresearch.quantizers import QUANTIZERS
from qresearch.quantizers.describe import describe


class Case(NamedTuple):
    """A float model and its input; the variables hold batch statistics too, whose update is computed and dropped."""

    module: nn.Module
    variables: Any
    x: jax.Array

    def fn(self, variables: Any, x: jax.Array) -> jax.Array:
        return self.module.apply(variables, x, mutable=[name for name in variables if name != "params"])[0]


class Training(nn.Module):
    """ResNet-20 that normalises by its batch, as a module of one argument."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return ResNet(10, blocks=3)(x, True)


def dense() -> Case:
    x = jax.nn.relu(jax.random.normal(jax.random.key(1), (256, 1024)))
    module = nn.Dense(1024, use_bias=False)
    return Case(module, module.init(jax.random.key(0), x), x)


def resnet20() -> Case:
    x = jax.random.normal(jax.random.key(1), (128, 32, 32, 3))
    return Case(Training(), Training().init(jax.random.key(0), x), x)


CASES: dict[str, Callable[[], Case]] = {"dense": dense, "resnet20": resnet20}


def loss(outputs: jax.Array) -> jax.Array:
    """Any function whose gradient differs from element to element."""
    return -jnp.mean(jax.nn.log_softmax(outputs)[:, 0])


def float_step(case: Case) -> Step:
    step = jax.jit(jax.grad(lambda own: loss(case.fn(*own))))
    return lambda: step((case.variables, case.x))


def quantized_step(case: Case, name: str) -> Step:
    granularity = "per_channel" if "per_channel" in describe(name).granularities else "per_tensor"
    rule = qr.Rule(weight=qr.SiteRule(name, granularity), input=qr.SiteRule(name), menu=((4, 4),))
    model = qr.quantize_model(case.fn, case.variables, case.x, [rule])
    bits = jnp.full((len(model.layers), 2), 4.0)
    qparams = jax.jit(model.init)(case.variables, case.x, bits)

    @jax.jit
    def step(variables, qparams, x, bits, key):
        return jax.grad(lambda own: loss(model.apply(*own, bits, key)))((variables, qparams, x))

    return lambda: step(case.variables, qparams, case.x, bits, jax.random.key(1))


def seconds(step: Step) -> float:
    started = time.perf_counter()
    jax.block_until_ready(step())
    return time.perf_counter() - started


def paired(one: Step, other: Step, repeats: int) -> dict[str, float]:
    """Median seconds of both and the median ratio, after one run of each that compiles."""
    seconds(one), seconds(other)
    times = [(seconds(one), seconds(other)) for _ in range(repeats)]
    return {
        "float_s": statistics.median(a for a, _ in times),
        "method_s": statistics.median(b for _, b in times),
        "ratio": statistics.median(b / a for a, b in times),
    }


def paired_peer(build: Callable[[], tuple[Step, Step]], repeats: int) -> dict[str, Any]:
    """As ``paired``, or what stopped the peer: not every one runs every type on every device."""
    try:
        return paired(*build(), repeats)
    except (ValueError, TypeError, NotImplementedError, RuntimeError) as error:
        return {"failed": f"{type(error).__name__}: {str(error).splitlines()[0][:120]}"}


def rows(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    where = {"device": jax.devices()[0].device_kind, "jax": jax.__version__, "repeats": options.repeats}
    for name in options.case:
        case = CASES[name]()
        base = float_step(case)
        for method in options.methods:
            found = paired(base, quantized_step(case, method), options.repeats)
            yield {"case": name, "method": method, **found, **where}
        for label, build in peer_steps(name, case.module, case.variables, case.x, loss):
            yield {"case": name, "method": label, **paired_peer(build, options.repeats), **where}


def main() -> None:
    learnable = [name for name in QUANTIZERS if describe(name).learnable]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--case", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--methods", nargs="*", choices=list(QUANTIZERS), default=learnable)
    parser.add_argument("--json", type=Path, help="also append the rows to this file, one JSON object a line")
    options = parser.parse_args()
    print(f"{'case':10}{'method':16}{'float s':>10}{'method s':>10}{'ratio':>8}")
    for row in rows(options):
        found = row.get("failed") or f"{row['float_s']:10.4f}{row['method_s']:10.4f}{row['ratio']:8.2f}"
        print(f"{row['case']:10}{row['method']:16}{found}", flush=True)
        if options.json:
            with options.json.open("a") as file:
                file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    try:
        main()
    except QResearchError as error:
        sys.exit(f"error: {error}")
