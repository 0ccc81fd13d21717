"""Would a matrix product over image patches (im2col) be faster than XLA's convolution in a training step?

Question: output, input gradient and kernel gradient of the 3 x 3 convolutions of ResNet-20, batch 128, float32.
Command: python experiments/bench_conv.py [--repeats 15]
Expected, on 2 shared x86-64 CPU cores with JAX 0.10.2: im2col takes half the time for the first layer and for the
  layer from 32 to 64 channels, 4 ms each of a step of 390 ms; it takes up to four times as long where 16 or 32 channels
  meet at 32 x 32 or 16 x 16, where the time goes. So no handler of qresearch rewrites convolutions.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import jax
import jax.numpy as jnp
from bench_step import paired
from step_peers import Step

Function = Callable[[jax.Array, jax.Array, int], jax.Array]
SHAPES = ((32, 3, 16, 1), (32, 16, 16, 1), (32, 16, 32, 2), (16, 32, 32, 1), (16, 32, 64, 2), (8, 64, 64, 1))


def convolution(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """The convolution as XLA has it: x [batch, h, w, in], kernel [3, 3, in, out], a padding of 1."""
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (stride, stride), ((1, 1), (1, 1)), dimension_numbers=numbers)


def im2col(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """The same as one product: nine shifted copies of x beside each other, times the kernel as a matrix."""
    size, channels = x.shape[1], x.shape[3]
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    taps = [padded[:, i : i + size : stride, j : j + size : stride] for i in range(3) for j in range(3)]
    return jnp.concatenate(taps, -1) @ kernel.reshape(9 * channels, -1)


def step(function: Function, arguments: tuple[jax.Array, jax.Array], upstream: jax.Array, stride: int) -> Step:
    """Output and both gradients of a convolution, compiled."""

    @jax.jit
    def run(arguments, upstream):
        output, pullback = jax.vjp(lambda *pair: function(*pair, stride), *arguments)
        return output, pullback(upstream)

    return lambda: run(arguments, upstream)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    repeats = parser.parse_args().repeats
    print(f"{'shape':20}{'convolution ms':>16}{'im2col ms':>12}{'ratio':>8}")
    for size, channels, features, stride in SHAPES:
        keys = jax.random.split(jax.random.key(0), 3)
        x = jax.random.normal(keys[0], (128, size, size, channels))
        kernel = jax.random.normal(keys[1], (3, 3, channels, features))
        upstream = jax.random.normal(keys[2], (128, size // stride, size // stride, features))
        pair = [step(function, (x, kernel), upstream, stride) for function in (convolution, im2col)]
        found = paired(*pair, repeats)
        label = f"{size}x{size} {channels} to {features} /{stride}"
        print(
            f"{label:20}{found['float_s'] * 1e3:16.1f}{found['method_s'] * 1e3:12.1f}{found['ratio']:8.2f}", flush=True
        )


if __name__ == "__main__":
    main()
