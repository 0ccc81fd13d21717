"""Signal-to-noise ratio of the outputs."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from qresearch.sensitivities.outputs import outputs_moved
from qresearch.sensitivities.subject import Sensitivity, Subject


def sqnr(subject: Subject) -> Sensitivity:
    """The noise-to-signal ratio of the outputs, mean over examples of ‖y - ŷ‖² / ‖y‖²: 10^(-SQNR / 10).

    A ratio and not its decibels, because noise powers of independent layers add up and decibels do not.
    Lin, Talathi and Annapureddy, Fixed Point Quantization of Deep Convolutional Networks, 2016,
    https://arxiv.org/abs/1511.06393, and the default of AIMET's mixed precision. Where we differ: the network's output,
    one layer quantized at a time, in place of a model of the noise.
    """
    return outputs_moved(subject, _noise_to_signal)


def _noise_to_signal(outputs: Array, reference: Array) -> Float[Array, "batch"]:
    axes = tuple(range(1, outputs.ndim))
    reference = reference.astype(jnp.float32)
    noise = jnp.sum(jnp.square(outputs.astype(jnp.float32) - reference), axes)
    return noise / jnp.maximum(jnp.sum(jnp.square(reference), axes), jnp.finfo(jnp.float32).tiny)
