"""Tutorial: quantize a Flax model of your own, train it quantized, and take it out in integers.

Command: python experiments/tutorials/own_flax_model.py
Data: scikit-learn's digits. Time: 19 CPU seconds (x86-64).
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

import qresearch as qr
from qresearch.data import DATASETS


class MyNet(nn.Module):
    """Nothing in it knows of quantization."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(16, (3, 3))(x))
        x = nn.relu(nn.Conv(32, (3, 3), strides=2)(x))
        return nn.Dense(10)(x.reshape(len(x), -1))


digits, net = DATASETS["digits"](None), MyNet()
x, y = jnp.asarray(digits.prepare(digits.train.inputs)), jnp.asarray(digits.train.targets)
test_x, test_y = jnp.asarray(digits.prepare(digits.test.inputs)), digits.test.targets
optimizer = optax.adam(2e-3)


def loss(logits, targets):
    return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()


def accuracy(logits):
    return float(np.mean(np.argmax(logits, axis=-1) == test_y))


def fit(forward, params, epochs):
    """Plain optax: ``forward(params, x)`` may be the float model or a quantized one."""

    @jax.jit
    def step(params, state, x, y):
        gradients = jax.grad(lambda params: loss(forward(params, x), y))(params)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    state, order = optimizer.init(params), np.random.default_rng(0)
    for _ in range(epochs):
        for part in order.permutation(len(x))[:1024].reshape(-1, 64):
            params, state = step(params, state, x[part], y[part])
    return params


def main() -> None:
    params = fit(net.apply, net.init(jax.random.key(0), x[:1]), 12)
    print(f"float            {accuracy(net.apply(params, test_x)):.3f}")

    # 1. Which layers are there? Each gets the quantizers of the first rule that matches its name.
    rules = [
        qr.Rule("*Conv_0/*", qr.SiteRule("lsq", "per_channel"), qr.SiteRule("lsq"), menu=[(8, 8)]),
        qr.Rule("*", qr.SiteRule("lsq", "per_channel"), qr.SiteRule("lsq"), menu=[(2, 2), (3, 3), (8, 8)]),
    ]
    model = qr.quantize_model(net.apply, params, x[:256], rules)
    for layer in model.layers:
        print(f"  {layer.name:<24} {layer.size:>6} weights {layer.macs:>8} macs")

    # 2. Round it: 8 bits for the first layer, 2 for the others.
    bits = jnp.array([[8, 8], [2, 2], [2, 2]], jnp.float32)
    qparams = qr.select(qr.calibrate(model, params, x[:256]), bits)
    print(f"rounded          {accuracy(jax.jit(model.apply)(params, qparams, test_x, bits)):.3f}")

    # 3. Train weights and steps together: both are ordinary pytrees.
    tuned = fit(lambda both, x: model.apply(*both, x, bits), (params, qparams), 6)
    print(f"trained          {accuracy(jax.jit(model.apply)(*tuned, test_x, bits)):.3f}")

    # 4. Store the codes, and compute with them.
    frozen = qr.freeze(model, *tuned, bits)
    with tempfile.TemporaryDirectory() as folder:
        qr.save_frozen(Path(folder) / "net", frozen)
        again = qr.load_frozen(Path(folder) / "net", net.apply, params, x[:1])
    print(f"in integers      {accuracy(again.apply(test_x)):.3f}, {[layer.path for layer in again.layers]}")


if __name__ == "__main__":
    main()
