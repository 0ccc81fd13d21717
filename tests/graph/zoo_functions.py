"""Plain functions of the zoo: derived and shared kernels, custom derivatives, jit, remat, scans, convolutions."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from graph.zoo_parts import draw, kernel
from jax import lax

# --- plain functions ---------------------------------------------------------------------------------------------


def mlp(p, x):
    h = jax.nn.relu(x @ p["hidden"]["w"] + p["hidden"]["b"])
    return h @ p["out"]["w"] + p["out"]["b"]


MLP_PARAMS = {
    "hidden": {"w": kernel(0, 8, 16), "b": draw(1, 16)},
    "out": {"w": kernel(2, 16, 3), "b": draw(3, 3)},
}


def square(p, x):
    """A 16 x 16 batch through 16 x 16 kernels: no shape tells a kernel from an input."""
    return jnp.tanh(x @ p["right"]) + (p["left"] @ x.T).T + x @ x.T


def einsums(p, x):
    q = jnp.einsum("bsi,ihd->bshd", x, p["q"])
    k = jnp.einsum("hid,bsi->bhsd", p["k"], x)
    scores = jax.nn.softmax(jnp.einsum("bshd,bhtd->bhst", q, k))
    v = jnp.einsum("dih,bti->btdh", p["v"], x)
    return jnp.einsum("ohd,bshd->bso", p["o"], jnp.einsum("bhst,btdh->bshd", scores, v))


def derived(p, x):
    """Kernels that are computed: scaled, normalized, merged, concatenated, sliced, cast, transposed, masked."""
    h = x @ (p["scaled"] * 0.5)
    v = p["normed"]["v"]
    h = jnp.tanh(h @ (p["normed"]["g"] * v / jnp.linalg.norm(v, axis=0)))
    h = h @ (p["base"] + p["lora_a"] @ p["lora_b"])
    h = jnp.tanh(h @ jnp.concatenate([p["first"], p["second"]], axis=1))
    h = h.astype(jnp.bfloat16) @ p["cast"].astype(jnp.bfloat16)
    h = h.astype(jnp.float32) @ p["transposed"].T
    return h @ jnp.where(jnp.arange(8)[:, None] % 2 == 0, p["masked"], 0.0)


DERIVED_PARAMS = {
    "scaled": kernel(0, 8, 8),
    "normed": {"v": kernel(1, 8, 8), "g": draw(2, 8)},
    "base": kernel(3, 8, 8),
    "lora_a": draw(4, 8, 2),
    "lora_b": draw(5, 2, 8),
    "first": kernel(6, 8, 8),
    "second": kernel(7, 8, 4),
    "cast": kernel(8, 12, 8),
    "transposed": kernel(9, 8, 8),
    "masked": kernel(10, 8, 3),
}


def fused_qkv(p, x):
    q, k, v = (x @ part for part in jnp.split(p["qkv"], 3, axis=1))
    return (jax.nn.softmax(q @ jnp.swapaxes(k, -1, -2)) @ v) @ p["out"]


def shared(p, x):
    h = x
    for _ in range(3):
        h = jnp.tanh(h @ p["w"] + p["b"])
    return h @ p["out"]


def autoencoder(p, x):
    """One kernel used as it is and transposed: two layouts."""
    return jnp.tanh(x @ p["w"]) @ p["w"].T


def experts(p, x):
    """vmap inside the model: the kernel has a batch axis."""
    per_expert = jax.vmap(lambda w, b: jnp.tanh(x @ w + b))(p["w"], p["b"])
    gate = jax.nn.softmax(x @ p["gate"])
    return jnp.einsum("ebo,be->bo", per_expert, gate)


@jax.custom_jvp
def leaky(x):
    return jnp.where(x > 0, x, 0.1 * x)


leaky.defjvp(lambda primals, tangents: (leaky(*primals), 3.0 * tangents[0]))  # deliberately not the derivative


@jax.custom_vjp
def reversed_gradient(x):
    return jnp.sin(x)


reversed_gradient.defvjp(lambda x: (jnp.sin(x), None), lambda _, g: (-7.0 * g,))


def custom_rules(p, x):
    h = jax.nn.relu(x @ p["a"])  # 0 at 0: relu is a custom_jvp
    h = jnp.concatenate([leaky(h @ p["b"]), reversed_gradient(h @ p["b2"])], axis=1)
    return h @ p["c"]


@functools.partial(jax.jit, static_argnums=2)
def inner_block(w, x, power):
    return jax.nn.softmax(1.1 * jnp.tanh(x @ w) + 0.3) ** power


@jax.jit
def outer_block(p, x):
    return inner_block(p["b"], inner_block(p["a"], x, 1), 2) @ p["c"]


def nested_jit(p, x):
    return jax.nn.log_softmax(outer_block(p, x))


def remat_policy(p, x):
    policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable

    @functools.partial(jax.checkpoint, policy=policy)
    def block(w, x):
        return jnp.sin(jax.nn.gelu(x @ w) @ w)

    plain = jax.checkpoint(lambda w, x: jnp.sin(jnp.sin(x @ w) @ w))
    return plain(p["b"], block(p["a"], x)) @ p["c"]


def control_flow(p, x):
    """cond and while that hold no layer are run as they stand."""
    h = x @ p["a"]
    h = lax.cond(h.sum() > 0, jnp.sin, jnp.cos, h)
    rounds = 3 + jnp.int32(jnp.abs(lax.stop_gradient(x[0, 0])))  # traced, so this is a while loop
    return (h + lax.fori_loop(0, rounds, lambda _, h: 0.9 * h, lax.stop_gradient(h))) @ p["b"]


# --- scans -------------------------------------------------------------------------------------------------------


def scan_stack(p, x):
    """A stacked layer (one kernel an iteration) that also uses one kernel in every iteration."""

    def step(h, layer):
        h = jnp.tanh(h @ layer["w"] + layer["b"])
        return h + 0.1 * h @ p["every"], h.sum()

    h, sums = lax.scan(step, x, p["blocks"])
    return h @ p["out"], sums


def scan_reverse(p, x):
    return lax.scan(lambda h, w: (jnp.tanh(h @ w), h), x, p["w"], reverse=True, unroll=2)


def scan_nested(p, x):
    """Outer 3 x inner 2 kernels, a kernel of the outer scan reused by the inner one, and one of the inner one reused
    by the outer one.
    """

    def outer(h, layer):
        own, stack = layer

        def inner(h, ws):
            w, again = ws
            return jnp.tanh(h @ w + h @ own + h @ again), None

        return lax.scan(inner, h, (stack, p["again"]))

    return lax.scan(outer, x, (p["own"], p["stack"]))[0]


def scan_rnn(p, x):
    """Recurrence over time: kernels are constants of the scan, the state is carried, the time slices are data."""

    def cell(h, x):
        h = jnp.tanh(x @ p["in"] + h @ p["recurrent"])
        return h, h

    h, _ = lax.scan(cell, jnp.zeros((x.shape[0], 6)), jnp.swapaxes(x, 0, 1))
    return h @ p["out"]


def looped(p, x):
    """lax.map over chunks and a fori_loop of known length, both around a layer."""
    h = lax.map(lambda chunk: chunk @ p["mapped"], x.reshape(2, -1, x.shape[1])).reshape(x.shape[0], -1)
    return lax.fori_loop(0, 3, lambda _, h: jnp.tanh(h @ p["loop"]), h)


def scan_remat(p, x):
    @jax.checkpoint
    def body(h, w):
        return jnp.sin(jnp.sin(h @ w) @ w), None

    return lax.scan(body, x, p["w"])[0]


# --- convolutions ------------------------------------------------------------------------------------------------


def convolve(x, w, **kwargs):
    spatial = "HWD"[: x.ndim - 2]
    numbers = (f"N{spatial}C", f"{spatial}IO", f"N{spatial}C")
    return lax.conv_general_dilated(
        x,
        w,
        kwargs.pop("strides", (1,) * (x.ndim - 2)),
        kwargs.pop("padding", "SAME"),
        dimension_numbers=numbers,
        **kwargs,
    )


def convolutions(p, x):
    h = jax.nn.relu(convolve(x, p["same"]))
    h = convolve(h, p["grouped"], feature_group_count=2, padding="VALID")
    h = jax.nn.relu(convolve(h, p["depthwise"], feature_group_count=4))
    h = convolve(h, p["strided"], strides=(2, 2))
    h = convolve(h, p["dilated"], rhs_dilation=(2, 2))
    h = lax.conv_transpose(h, p["transposed"], (2, 2), "SAME")
    return h.reshape(x.shape[0], -1) @ p["dense"]


CONVOLUTION_PARAMS = {
    "same": kernel(0, 3, 3, 3, 4),
    "grouped": kernel(1, 3, 3, 2, 4),
    "depthwise": kernel(2, 3, 3, 1, 8),
    "strided": kernel(3, 3, 3, 8, 4),
    "dilated": kernel(4, 3, 3, 4, 4),
    "transposed": kernel(5, 3, 3, 4, 2),
    "dense": kernel(6, 32, 3),
}


def one_dimensional(p, x):
    h = jax.nn.relu(convolve(x, p["conv"], strides=(2,), padding=[(2, 0)]))
    numbers = ("NCH", "OIH", "NCH")  # the layout of torch
    h = lax.conv_general_dilated(jnp.swapaxes(h, 1, 2), p["torch"], (1,), "VALID", dimension_numbers=numbers)
    return h.mean(-1)
