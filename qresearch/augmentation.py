"""Augmentation of training images inside the compiled step, on raw inputs: the same key gives the same images.

He et al., "Deep Residual Learning for Image Recognition", 2015, https://arxiv.org/abs/1512.03385, section 4.2: pad,
crop at random, flip at random. There: 4 pixels of 32. Here: an eighth of the side, whatever the size, filled with 0,
which is black before ``prepare``.
"""

from __future__ import annotations

from typing import Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Shaped

Images = Shaped[Array, "batch height width channels"]

PADDING = 8  # of the side: one part in eight, on every edge


class Augment(Protocol):
    """``augment(inputs, key)`` -> inputs of the same shape and dtype; jittable."""

    def __call__(self, inputs: Array, key: Array, /) -> Array: ...


def none(inputs: Array, key: Array) -> Array:
    """The inputs as they are."""
    return inputs


def crop(inputs: Images, key: Array) -> Images:
    """Every image padded with zeros by an eighth of its side on every edge, and cropped to its size at random."""
    _, height, width, channels = inputs.shape
    padding = height // PADDING, width // PADDING
    padded = jnp.pad(inputs, ((0, 0), *((side, side) for side in padding), (0, 0)))
    corners = jax.random.randint(key, (len(inputs), 2), 0, 2 * jnp.array([padding]) + 1)

    def cut(image: Array, corner: Array) -> Array:
        return jax.lax.dynamic_slice(image, (corner[0], corner[1], 0), (height, width, channels))

    return jax.vmap(cut)(padded, corners)


def flip(inputs: Images, key: Array) -> Images:
    """Every image mirrored left to right with probability 1/2."""
    chosen = jax.random.bernoulli(key, shape=(len(inputs), 1, 1, 1))
    return jnp.where(chosen, inputs[:, :, ::-1], inputs)


def crop_flip(inputs: Images, key: Array) -> Images:
    """``crop``, then ``flip``."""
    first, second = jax.random.split(key)
    return flip(crop(inputs, first), second)


AUGMENTATIONS: dict[str, Augment] = {
    "none": none,
    "crop": crop,
    "flip": flip,
    "crop_flip": crop_flip,
}
