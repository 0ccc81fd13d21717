"""What does an allocation cost: in one program for all, in one program for each, and in other frameworks?

Question: seconds per allocation for ResNet-20 on 1,000 images of 32 x 32 x 3 and for an MLP of 8 layers of 256 x 256 on
  1,000 examples, against one float evaluation pass; for the first 16 allocations, compilation included, and for 16
  further ones; and what common prefixes save where one layer differs. Weights of 4 or 8 bits, inputs of 8: what all
  that are compared can run. Weights are random, per channel, inputs per tensor: the time does not depend on values.
Command: python experiments/bench_population.py [--case mlp resnet20] [--repeats 3] [--chunk N ...] [--json FILE]
Time: the MLP takes 75 s, ResNet-20 with 8 allocations and one repeat six minutes (2 CPU cores, extra ``peers``).
Prints medians over the repeats. All that is compared runs in turn in one process, each repeat from empty caches, and
  every allocation gives the loss of every example. Ratios are to the float pass timed beside. --chunk: ours in
  addition with so many allocations under vmap, for the curve against the population size on a GPU.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from population_peers import peers

import qresearch as qr
from qresearch.data.dataset import Split
from qresearch.evaluation import evaluate
from qresearch.models.resnet import ResNet
from qresearch.tasks import TASKS

EXAMPLES, BATCH = 1000, 500
TASK = TASKS["classification"]
Run = Callable[[np.ndarray], Any]  # allocations [n, layer, 2] -> when it returns, all losses are there


class Case(NamedTuple):
    """A float model as a flax module of one argument, its variables and its examples."""

    name: str
    module: nn.Module
    variables: Any
    batches: qr.Batches


class Evaluated(nn.Module):
    """ResNet-20 as it is evaluated."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return ResNet(10, blocks=3)(x, False)


class MLP(nn.Module):
    """Eight dense layers."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for _ in range(8):
            x = jax.nn.relu(nn.Dense(256, use_bias=False)(x))
        return x


def case_named(name: str) -> Case:
    module, shape = {"mlp": (MLP(), (256,)), "resnet20": (Evaluated(), (32, 32, 3))}[name]
    random = np.random.default_rng(0)
    inputs = random.normal(size=(EXAMPLES, *shape)).astype(np.float32)
    batches = qr.make_batches(Split(inputs, random.integers(0, 10, EXAMPLES).astype(np.int32)), BATCH)
    return Case(name, module, module.init(jax.random.key(0), inputs[:2]), batches)


def unprepared(x: jax.Array) -> jax.Array:
    return x


def ours(case: Case, chunk: int | None = None) -> Run:
    """One program for all. Quantized in the first run, so that tracing and calibration count as well."""
    ready = functools.cache(lambda: quantized(case))

    def run(allocations: np.ndarray) -> None:
        model, qparams = ready()
        qr.evaluate_population(model, case.variables, qparams, allocations, case.batches, TASK, unprepared, chunk)

    return run


def quantized(case: Case) -> tuple[qr.QuantizedModel, qr.MenuQParams]:
    x, apply = np.asarray(case.batches.inputs[0])[:100], case.module.apply

    def fn(variables: Any, x: jax.Array) -> jax.Array:  # a new function each time, so that nothing is known of it
        return apply(variables, x)

    rule = qr.Rule(weight=qr.SiteRule(granularity="per_channel", range="minmax"), input=qr.SiteRule(range="minmax"))
    model = qr.quantize_model(fn, case.variables, x, (rule,))
    return model, qr.calibrate(model, case.variables, x, (4, 8))


def one_program_each(case: Case) -> Run:
    """The same model with the bits as constants, so that every allocation is compiled."""
    ready = functools.cache(lambda: quantized(case))

    def run(allocations: np.ndarray) -> None:
        model, qparams = ready()
        for bits in allocations:
            fixed = jax.tree.map(np.asarray, qr.select(qparams, jnp.asarray(bits)))

            def losses(variables: Any, x: jax.Array, y: jax.Array, bits: Any = bits, fixed: Any = fixed) -> jax.Array:
                return TASK.loss(model.apply(variables, fixed, x, bits), y)

            step = jax.jit(losses)
            jax.block_until_ready(
                [step(case.variables, x, y) for x, y in zip(case.batches.inputs, case.batches.targets)]
            )

    return run


def float_pass(case: Case) -> Callable[[], Any]:
    """One evaluation of the float model, by the function that evaluates populations."""

    def forward(shared: Any, own: Any, x: jax.Array) -> jax.Array:
        return case.module.apply(shared, x)

    return lambda: evaluate(forward, TASK, unprepared, case.variables, np.zeros(1), case.batches)


def drawn(case: Case, count: int, seed: int) -> np.ndarray:
    """Different allocations of {4, 8} for weights and 8 for inputs."""
    layers, random = {"mlp": 8, "resnet20": 20}[case.name], np.random.default_rng(seed)
    rows: dict[bytes, np.ndarray] = {}
    while len(rows) < count:
        bits = np.stack([random.choice([4.0, 8.0], layers), np.full(layers, 8.0)], axis=1).astype(np.float32)
        rows[bits.tobytes()] = bits
    return np.stack(list(rows.values()))


def seconds(run: Callable[..., Any], *arguments: Any) -> float:
    started = time.perf_counter()
    run(*arguments)
    return time.perf_counter() - started


def pass_ratio(case: Case, allocations: np.ndarray, rounds: int = 9) -> tuple[float, float]:
    """(seconds of a float pass, median ratio of an allocation to it), warm, each pair one after the other."""
    plain, (model, qparams) = float_pass(case), quantized(case)
    ready = qr.prequantize(model, case.variables, qparams)

    def population() -> None:
        qr.evaluate_population(model, case.variables, ready, allocations, case.batches, TASK, unprepared)

    def floats() -> None:
        for _ in allocations:
            plain()

    floats(), population()
    pairs = [(seconds(floats), seconds(population)) for _ in range(rounds)]
    return statistics.median(a for a, _ in pairs) / len(allocations), statistics.median(b / a for a, b in pairs)


def prefix_ratio(case: Case, rounds: int = 3) -> float:
    """How many times faster the allocations of a sensitivity table are where common first layers are run once: one
    layer at 4 and 8 bits, all others in float. Warm, each pair one after the other.
    """
    model, qparams = quantized(case)
    ready = qr.prequantize(model, case.variables, qparams)
    layers = len(model.layers)
    rows = np.full((2 * layers, layers, 2), 32.0, np.float32)
    rows[np.arange(2 * layers), np.arange(2 * layers) // 2] = np.array([[4, 8], [8, 8]] * layers)

    def population(share: bool) -> None:
        batches = case.batches
        qr.evaluate_population(model, case.variables, ready, rows, batches, TASK, unprepared, share_prefixes=share)

    population(True), population(False)
    return statistics.median(seconds(population, False) / seconds(population, True) for _ in range(rounds))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", nargs="+", choices=("mlp", "resnet20"), default=["mlp", "resnet20"])
    parser.add_argument("--allocations", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--chunk", nargs="*", type=int, default=[])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = []
    for name in options.case:
        case = case_named(name)
        print(f"{name}: {jax.devices()[0].device_kind}, jax {jax.__version__}, {options.allocations} allocations")
        pass_s, ratio = pass_ratio(case, drawn(case, options.allocations, 0))
        print(f"  float pass {pass_s:.4f} s; an allocation takes {ratio:.3f} x as long")
        rows.append({"case": name, "method": "float pass", "seconds": pass_s, "ratio": ratio})
        shared = prefix_ratio(case)
        print(f"  one layer at a time, common prefixes run once: {shared:.2f} x as fast")
        rows.append({"case": name, "method": "shared prefixes", "ratio": shared})
        methods: dict[str, Callable[[], Run]] = {"ours": lambda case=case: ours(case)}
        for chunk in options.chunk:
            methods[f"ours, {chunk} under vmap"] = lambda case=case, chunk=chunk: ours(case, chunk)
        methods["one program each"] = lambda case=case: one_program_each(case)
        methods |= peers(case, TASK)
        taken = measure(case, methods, options.allocations, options.repeats)
        for method, (first, further) in taken.items():
            relative = " / ".join(f"{b / a:.1f}" for a, b in zip(taken["ours"], (first, further)))
            print(f"  {method:24} first {first:8.2f} s   further {further:8.2f} s   x ours: {relative}")
            rows.append({"case": name, "method": method, "first": first, "further": further})
    if options.json:
        device = {"device": jax.devices()[0].device_kind, "jax": jax.__version__}
        options.json.write_text("".join(json.dumps(row | device) + "\n" for row in rows))


def measure(
    case: Case, methods: dict[str, Callable[[], Run]], count: int, repeats: int
) -> dict[str, tuple[float, float]]:
    """Median seconds of the first and of ``count`` further allocations, by method; what fails is printed."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in methods}
    for repeat in range(repeats):
        for name, build in methods.items():
            jax.clear_caches()
            run = build()
            parts = [drawn(case, count, 2 * repeat + i) for i in (0, 1)]
            try:
                found[name].append((seconds(run, parts[0]), seconds(run, parts[1])))
            except Exception as error:  # of another framework: the others are still of interest
                if name.startswith(("ours", "one")):
                    raise
                print(f"  {name} failed: {type(error).__name__}: {error}")
                return measure(case, {k: v for k, v in methods.items() if k != name}, count, repeats)
    return {name: tuple(statistics.median(column) for column in zip(*pairs)) for name, pairs in found.items()}


if __name__ == "__main__":
    main()
