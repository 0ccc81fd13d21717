"""Boxes (y0, x0, y1, x1) in fractions of the image: what a grid of outputs says, overlap, suppression, matching."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def decode_boxes(outputs: Float[Array, "... rows columns 4"]) -> Float[Array, "... rows columns 4"]:
    """The box of every cell, from its outputs (y, x, height, width): centre (cell + sigmoid) / cells, size sigmoid."""
    rows, columns = outputs.shape[-3:-1]
    cells = jnp.stack(jnp.meshgrid(jnp.arange(rows), jnp.arange(columns), indexing="ij"), -1).astype(outputs.dtype)
    squashed = jax.nn.sigmoid(outputs)
    leading = (None,) * (outputs.ndim - 3)
    centre = (squashed[..., :2] + cells[leading]) / jnp.asarray([rows, columns], outputs.dtype)[(*leading, None, None)]
    half = squashed[..., 2:] / 2
    return jnp.concatenate([centre - half, centre + half], -1)


def area(boxes: Float[Array, "... 4"]) -> Float[Array, "..."]:
    """Height times width; 0 for a box that ends before it begins."""
    return jnp.prod(jnp.maximum(boxes[..., 2:] - boxes[..., :2], 0.0), -1)


def overlap(a: Float[Array, "... 4"], b: Float[Array, "... 4"]) -> tuple[Array, Array]:
    """(intersection over union, union) of boxes pair by pair; an empty union overlaps by 0."""
    both = jnp.concatenate([jnp.maximum(a[..., :2], b[..., :2]), jnp.minimum(a[..., 2:], b[..., 2:])], -1)
    shared = area(both)
    union = area(a) + area(b) - shared
    return jnp.where(union > 0, shared / jnp.where(union > 0, union, 1.0), 0.0), union


def pairwise_iou(a: Float[Array, "n 4"], b: Float[Array, "m 4"]) -> Float[Array, "n m"]:
    """Intersection over union of every box of ``a`` with every box of ``b``."""
    shape = (len(a), len(b), 4)
    return overlap(jnp.broadcast_to(a[:, None], shape), jnp.broadcast_to(b[None], shape))[0]


def generalized_iou(a: Float[Array, "... 4"], b: Float[Array, "... 4"]) -> Float[Array, "..."]:
    """IoU − (hull − union) / hull: apart boxes have a gradient. At least one of the two must have an area.

    Rezatofighi et al., Generalized Intersection over Union, 2019, https://arxiv.org/abs/1902.09630.
    """
    iou, union = overlap(a, b)
    hull = area(jnp.concatenate([jnp.minimum(a[..., :2], b[..., :2]), jnp.maximum(a[..., 2:], b[..., 2:])], -1))
    return iou - (hull - union) / hull


def suppress(boxes: Float[Array, "n 4"], classes: Int[Array, "n"], threshold: float) -> Bool[Array, "n"]:
    """Which boxes stay: greedy non-maximum suppression within each class. Boxes come by falling confidence.

    A box goes where one before it, of its class and not gone itself, overlaps it by more than ``threshold``.
    """
    rivals = (pairwise_iou(boxes, boxes) > threshold) & (classes[:, None] == classes[None])
    before = jnp.arange(len(boxes))

    def visit(i: Array, stays: Array) -> Array:
        return stays.at[i].set(~jnp.any(rivals[i] & stays & (before < i)))

    return jax.lax.fori_loop(0, len(boxes), visit, jnp.ones(len(boxes), bool))


def match(
    boxes: Float[Array, "n 4"],
    classes: Int[Array, "n"],
    truth: Float[Array, "m 4"],
    truth_classes: Int[Array, "m"],
    threshold: float,
) -> Bool[Array, "n"]:
    """Which detections are right: those that are first to reach their true box. They come by falling confidence.

    A detection's true box is the one of its class that it overlaps most, if by at least ``threshold``; one that was
    found before makes it a duplicate, hence wrong, as in the PASCAL VOC development kit. True boxes of class −1 are
    none.
    """
    same = (classes[:, None] == truth_classes[None]) & (truth_classes[None] >= 0)
    iou = jnp.where(same, pairwise_iou(boxes, truth), -1.0)
    nearest = jnp.argmax(iou, axis=1)
    reaches = (nearest[:, None] == jnp.arange(len(truth))[None]) & (jnp.max(iou, axis=1) >= threshold)[:, None]
    return jnp.any(reaches & (jnp.cumsum(reaches.astype(jnp.int32), axis=0) == 1), axis=1)
