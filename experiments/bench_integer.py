"""What do integers save in time: against float, by shape, for whole networks, and against ONNX Runtime on a CPU?

Question: x [rows, K] times W [K, N] in float32 and bfloat16, against W8A8 (x quantized with a fixed scale, int8
  products summed in int32 by XLA) and weight-only int8 (per channel) and int4 (groups of 128) on bfloat16, which on
  CUDA is our kernel and elsewhere plain XLA. --network: models of the zoo in float32, simulated at W8A8, frozen in
  integers, and frozen with weights of 4 bits and float inputs (dense layers by the kernel).
Command: python experiments/bench_integer.py [--shape 1x4096x4096 ...] [--network resnet20 ...] [--json FILE]
  On a GPU: --tune first. It measures the blocks of the kernel and keeps them in qresearch/kernels/blocks.json.
Time: two minutes for the shapes on two CPU cores.
Prints medians, and the smallest and largest time. All methods run in turn in one process, and the ratio is the median
  of each turn's ratio to float32, on a GPU to bfloat16. On a GPU every product takes its weights in turn from more than
  400 MB, which no cache holds, in one program; on a CPU there is one copy. Bytes: weights with scales, x and the
  product, each once; % is of the bandwidth in ``DEVICES``, where it knows the device. Values are random.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import qresearch as qr
from qresearch.frozen import freeze
from qresearch.kernels import prepare, weight_only_dot
from qresearch.kernels.blocks import case_name
from qresearch.kernels.tuning import ROTATED, copies_of, save_blocks, timer, tune
from qresearch.latency import DEVICES, Device
from qresearch.models import MODELS
from qresearch.numerics.codes import Codes, encode_uniform
from qresearch.numerics.integer import integer_dot
from qresearch.numerics.packing import narrow, to_qtensor

GROUP = 128
Run = Callable[[], float]  # runs once and returns the seconds


class Shape(NamedTuple):
    """x [rows, depth] times W [depth, features]."""

    rows: int
    depth: int
    features: int

    def __str__(self) -> str:
        return "x".join(map(str, self))


ANYWHERE = [Shape(rows, 4096, features) for features in (4096, 11008) for rows in (1, 4, 16)]
ON_CPU, ON_GPU = [*ANYWHERE, Shape(128, 1024, 1024)], [*ANYWHERE, Shape(4096, 4096, 4096)]


class Product(NamedTuple):
    """A way to compute x W: ``function(x, weights)``."""

    function: Callable[[jax.Array, Any], jax.Array]
    x: jax.Array
    weights: Any

    def bytes_moved(self, shape: Shape) -> int:
        return nbytes(self.weights) + self.x.nbytes + shape.rows * shape.features * self.x.dtype.itemsize

    def run(self, rotated: float) -> Run:
        return timer(self.function, self.x, copies_of(self.weights, nbytes(self.weights), rotated))


def nbytes(tree: Any) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def seconds(function: Callable[..., Any], *arguments: Any) -> float:
    started = time.perf_counter()
    jax.block_until_ready(function(*arguments))
    return time.perf_counter() - started


def random_codes(shape: Shape, bits: int, group: int | None) -> Codes:
    random, half = np.random.default_rng(bits), 2 ** (bits - 1)
    view = (shape.depth // group, group, shape.features) if group else (shape.depth, shape.features)
    scale = np.full((view[0], 1, shape.features) if group else (1, shape.features), 1 / half, np.float32)
    values = jnp.asarray(random.integers(-half, half, view, np.int8))
    return Codes(values, jnp.asarray(scale), jnp.zeros(scale.shape))


def drawn_x(shape: Shape, dtype: Any) -> jax.Array:
    return jax.random.normal(jax.random.key(1), (shape.rows, shape.depth)).astype(dtype)


def float_product(shape: Shape, dtype: Any) -> Product:
    weights = jax.random.normal(jax.random.key(0), (shape.depth, shape.features)).astype(dtype)
    return Product(jnp.matmul, drawn_x(shape, dtype), weights)


def w8a8(shape: Shape) -> Product:
    def function(x: jax.Array, weights: Codes) -> jax.Array:
        grid = jnp.full((1, 1), 4 / 127, jnp.float32), jnp.zeros((1, 1)), jnp.float32(-128), jnp.float32(127)
        x_codes = narrow(encode_uniform(x.astype(jnp.float32), *grid), signed=True)
        return integer_dot(x_codes, weights, (((1,), (0,)), ((), ()))).astype(x.dtype)

    return Product(function, drawn_x(shape, jnp.bfloat16), random_codes(shape, 8, None))


def weight_only(shape: Shape, bits: int, group: int | None) -> Product:
    weights = prepare(to_qtensor(random_codes(shape, bits, group), bits, signed=True))
    return Product(weight_only_dot, drawn_x(shape, jnp.bfloat16), weights)


PRODUCTS: dict[str, Callable[[Shape], Product]] = {
    "float32": lambda shape: float_product(shape, jnp.float32),
    "bfloat16": lambda shape: float_product(shape, jnp.bfloat16),
    "int8 W8A8": w8a8,
    "int8 weight-only": lambda shape: weight_only(shape, 8, None),
    "int4 weight-only": lambda shape: weight_only(shape, 4, GROUP),
}


def onnx_session(shape: Shape, int8: bool) -> tuple[Any, dict[str, np.ndarray]]:
    """ONNX Runtime on the CPU, and its input: MatMul in float32, or x quantized as it comes, MatMulInteger, scales."""
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    codes, scale = np.asarray(random_codes(shape, 8, None).values), np.full(shape.features, 1 / 128, np.float32)
    weights = codes if int8 else codes * scale
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    constants = [numpy_helper.from_array(weights, "w")]
    if int8:
        constants.append(numpy_helper.from_array(scale, "w_scale"))
        nodes = [
            helper.make_node("DynamicQuantizeLinear", ["x"], ["codes", "x_scale", "zero_point"]),
            helper.make_node("MatMulInteger", ["codes", "w", "zero_point"], ["sums"]),
            helper.make_node("Cast", ["sums"], ["float_sums"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["x_scale", "w_scale"], ["scale"]),
            helper.make_node("Mul", ["float_sums", "scale"], ["y"]),
        ]
    ends = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [shape.rows, size])]
        for name, size in (("x", shape.depth), ("y", shape.features))
    ]
    graph = helper.make_graph(nodes, "product", *ends, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session, {"x": np.asarray(drawn_x(shape, jnp.float32))}


def product_rows(shape: Shape, repeats: int) -> Iterator[dict[str, Any]]:
    gpu = jax.default_backend() == "gpu"
    products = {name: build(shape) for name, build in PRODUCTS.items()}
    runs = {name: product.run(ROTATED if gpu else 0.0) for name, product in products.items()}
    if jax.default_backend() == "cpu":
        for name, int8 in (("ONNX Runtime float32", False), ("ONNX Runtime int8", True)):
            session, feed = onnx_session(shape, int8)
            runs[name] = functools.partial(seconds, session.run, None, feed)
    device = device_here()
    for name, found in timed(runs, repeats, "bfloat16" if gpu else "float32"):
        row = {"case": str(shape), "method": name, **found}
        row["tops"] = 2e-12 * shape.rows * shape.depth * shape.features / found["seconds"]
        if name in products:
            row["gb_s"] = products[name].bytes_moved(shape) / found["seconds"] / 1e9
            row["percent"] = 100 * row["gb_s"] / device.bandwidth if device else None
        yield row


def timed(runs: dict[str, Run], repeats: int, reference: str) -> Iterator[tuple[str, dict[str, float]]]:
    """Seconds by method, all methods in turn after one run of each that compiles; ratios to the reference's."""
    for run in runs.values():
        run()
    turns = [{name: rested(run) for name, run in runs.items()} for _ in range(repeats)]
    for name in runs:
        times = [turn[name] for turn in turns]
        ratio = statistics.median(turn[name] / turn[reference] for turn in turns)
        yield name, {"seconds": statistics.median(times), "least": min(times), "most": max(times), "ratio": ratio}


def rested(run: Run) -> float:
    time.sleep(0.005)  # ONNX Runtime's threads keep a core busy for a while after their work
    return run()


def device_here() -> Device | None:
    """The data sheet of this device, if it is in the table."""
    kind = jax.devices()[0].device_kind.lower()
    return next((device for name, device in DEVICES.items() if name in kind), None)


def network_rows(name: str, batches: list[int], repeats: int) -> Iterator[dict[str, Any]]:
    """Latency of a network for batches of examples: float32, simulated with constant bits, frozen in integers."""
    model = MODELS[name](10)
    rule = qr.Rule(weight=qr.SiteRule(granularity="per_channel", range="minmax"), input=qr.SiteRule(range="minmax"))
    for batch in batches:
        x = jax.random.normal(jax.random.key(0), (batch, *model.example.shape))
        if jnp.issubdtype(model.example.dtype, jnp.integer):
            x = jnp.zeros(x.shape, model.example.dtype)
        variables = jax.jit(model.init)(jax.random.key(1), x)
        quantized = qr.quantize_model(model.apply, variables, x, (rule,))
        bits = jnp.full((len(quantized.layers), 2), 8.0)
        qparams = jax.jit(quantized.init)(variables, x, bits)
        steps = {
            "float32": (jax.jit(model.apply), variables, x),
            "simulated W8A8": (jax.jit(functools.partial(quantized.apply, bits=bits)), variables, qparams, x),
        }
        for label, path, row in (("W8A8", "integer", (8, 8)), ("W4A32", "weight_only", (4, 32))):
            bits = np.full((len(quantized.layers), 2), row)
            qparams = jax.jit(quantized.init)(variables, x, jnp.asarray(bits, jnp.float32))
            frozen = freeze(quantized, variables, qparams, bits).prepared()
            count = sum(layer.path == path for layer in frozen.layers)
            method = f"{label} {path} ({count} of {len(frozen.layers)})"
            steps[method] = (jax.jit(frozen.forward), frozen.arrays, x)
        runs = {method: functools.partial(seconds, *step) for method, step in steps.items()}
        for method, found in timed(runs, repeats, "float32"):
            yield {"case": f"{name}, batch {batch}", "method": method, **found}


def tune_shapes(shapes: list[Shape]) -> None:
    for shape in shapes:
        for bits, group in ((8, None), (4, GROUP)):
            product = weight_only(shape, bits, group)
            blocks, taken = tune(product.x, product.weights)
            case = case_name(shape.rows, product.weights)
            save_blocks({case: blocks})
            print(f"{case}: {taken * 1e6:.1f} us with {blocks}", flush=True)


def printed(row: dict[str, Any]) -> str:
    times = f"{row['seconds'] * 1e3:10.4f} ms ({row['least'] * 1e3:.4f} to {row['most'] * 1e3:.4f})"
    line = f"  {row['method']:32}{times:36}{row['ratio']:8.2f} x"
    if "gb_s" in row:
        line += f"{row['gb_s']:8.0f} GB/s" + (f" {row['percent']:5.1f} %" if row["percent"] else "")
    return line + (f"{row['tops']:8.2f} TOP/s" if "tops" in row else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", nargs="*", type=lambda text: Shape(*map(int, text.split("x"))))
    parser.add_argument("--network", nargs="*", choices=list(MODELS), default=[])
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 128])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--tune", action="store_true", help="measure the kernel's blocks for these shapes first")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    gpu = jax.default_backend() == "gpu"
    shapes = (ON_GPU if gpu else ON_CPU) if options.shape is None else options.shape
    if options.tune and not gpu:
        parser.error("--tune measures the kernel for CUDA, and JAX finds no GPU here")
    where = {"device": jax.devices()[0].device_kind, "jax": jax.__version__, "repeats": options.repeats}
    print(", ".join(f"{name} {value}" for name, value in where.items()))
    if device := device_here():
        print(f"% of {device.bandwidth:g} GB/s ({device.source})")
    if options.tune:
        tune_shapes([shape for shape in shapes if shape.rows <= 64])
    parts = [product_rows(shape, options.repeats) for shape in shapes]
    parts += [network_rows(name, options.batch, options.repeats) for name in options.network]
    lines, case = [], ""
    for part in parts:
        for row in part:
            if row["case"] != case:
                case = row["case"]
                print(case)
            print(printed(row), flush=True)
            lines.append(json.dumps(row | where) + "\n")
    if options.json:
        options.json.write_text("".join(lines))


if __name__ == "__main__":
    main()
