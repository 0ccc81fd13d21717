"""Detection on a grid: every cell says whether a box has its centre there, where the box is, and what it shows.

outputs [batch, rows, columns, 5 + classes], raw: objectness logit, (y, x, height, width) as ``decode_boxes`` reads
them, class logits. targets [batch, boxes, 5]: (class, y0, x0, y1, x1) in fractions of the image, class −1 for none.
After Redmon et al., You Only Look Once, 2016, https://arxiv.org/abs/1506.02640, with the losses of later detectors.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32

from qresearch.tasks.boxes import decode_boxes, generalized_iou, match, suppress
from qresearch.tasks.mean_average_precision import NOTHING, average_precision_shares
from qresearch.tasks.task import Task

MATCH_IOU = 0.5
SUPPRESS_IOU = 0.5
DETECTIONS = 32  # per image: far more than scenes hold boxes, few enough to keep for every image of a test set
_FOCUS = 2.0  # γ of the focal loss
_OVERLAP_WEIGHT, _DISTANCE_WEIGHT = 2.0, 5.0  # DETR's

Outputs = Float[Array, "batch rows columns channels"]
Targets = Float[Array, "batch boxes 5"]


def detection_loss(outputs: Outputs, targets: Targets) -> Float32[Array, "batch"]:
    """Computes objectness + box + class loss of each image, over its number of boxes (1 where it has none).

    Objectness: focal cross-entropy −(1 − p)^γ log p of every cell's answer, γ = 2 (Lin et al., Focal Loss, 2017,
    https://arxiv.org/abs/1708.02002, without its α). Of the cells that hold a box's centre: 2 (1 − GIoU) + 5 |Δbox|₁
    (Carion et al., DETR, 2020, https://arxiv.org/abs/2005.12872, on corners) and the cross-entropy of the class.
    """
    return jax.vmap(_image_loss)(outputs.astype(jnp.float32), targets.astype(jnp.float32))


def detection_evidence(outputs: Outputs, targets: Targets) -> Float32[Array, "batch rows 3"]:
    """Computes (class, confidence, right) of each image's detections, then (class, 0, 0) of each of its true boxes.

    One detection per cell: its most probable class, with confidence objectness · probability; then suppression within
    each class above an IoU of 0.5, and the ``DETECTIONS`` most confident. Rows that hold nothing have class −1.
    """
    return jax.vmap(_image_evidence)(outputs.astype(jnp.float32), targets.astype(jnp.float32))


def detection_divergence(outputs: Outputs, reference: Outputs) -> Float32[Array, "batch"]:
    """Sums over cells KL of the objectness and, weighted by the reference's, KL of the class and |Δbox|² (raw)."""
    outputs, reference = outputs.astype(jnp.float32), reference.astype(jnp.float32)
    there, (yes, no), (found, missed) = (
        jax.nn.sigmoid(reference[..., 0]),
        *((jax.nn.log_sigmoid(raw[..., 0]), jax.nn.log_sigmoid(-raw[..., 0])) for raw in (reference, outputs)),
    )
    objectness = there * (yes - found) + (1 - there) * (no - missed)
    log_p, log_q = (jax.nn.log_softmax(raw[..., 5:]) for raw in (reference, outputs))
    classes = jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)
    boxes = jnp.sum(jnp.square(outputs[..., 1:5] - reference[..., 1:5]), axis=-1)
    return jnp.sum(objectness + there * (classes + boxes), axis=(1, 2))


detection = Task(
    loss=detection_loss,
    score=detection_evidence,
    score_name="map50",
    shares=average_precision_shares,
    divergence=detection_divergence,
)


def _image_loss(outputs: Array, targets: Array) -> Array:
    rows, columns = outputs.shape[:2]
    real = targets[:, 0] >= 0
    # In place of no box the whole image: its terms are finite, have finite gradients, and are left out.
    truth = jnp.where(real[:, None], targets[:, 1:], jnp.asarray([[0.0, 0.0, 1.0, 1.0]], jnp.float32))
    centre = (truth[:, :2] + truth[:, 2:]) / 2 * jnp.asarray([[rows, columns]], jnp.float32)
    row, column = (jnp.clip(jnp.floor(centre[:, i]).astype(jnp.int32), 0, n - 1) for i, n in enumerate((rows, columns)))
    taken = jnp.zeros((rows, columns), bool).at[row, column].max(real)
    boxes = decode_boxes(outputs[..., 1:5])[row, column]
    labels = jax.nn.log_softmax(outputs[row, column, 5:])
    classes = jnp.maximum(targets[:, 0], 0.0).astype(jnp.int32)
    box = _OVERLAP_WEIGHT * (1 - generalized_iou(boxes, truth)) + _DISTANCE_WEIGHT * jnp.abs(boxes - truth).sum(-1)
    label = -jnp.take_along_axis(labels, classes[:, None], axis=1)[:, 0]
    total = _focal(jnp.where(taken, outputs[..., 0], -outputs[..., 0])).sum() + jnp.where(real, box + label, 0.0).sum()
    return total / jnp.maximum(real.sum(), 1).astype(jnp.float32)


def _focal(logit: Array) -> Array:
    """−(1 − p)^γ log p, where the right answer has probability p = sigmoid(logit)."""
    return -(jax.nn.sigmoid(-logit) ** _FOCUS) * jax.nn.log_sigmoid(logit)


def _image_evidence(outputs: Array, targets: Array) -> Array:
    cells = outputs.reshape(-1, outputs.shape[-1])
    boxes = decode_boxes(outputs[..., 1:5]).reshape(-1, 4)
    probabilities = jax.nn.sigmoid(cells[:, 0])[:, None] * jax.nn.softmax(cells[:, 5:], axis=-1)
    order = jnp.argsort(-probabilities.max(-1), stable=True)
    boxes, confidence, classes = boxes[order], probabilities.max(-1)[order], jnp.argmax(probabilities, -1)[order]
    # A confidence of 0 marks true boxes: an answer that underflows to it is no answer.
    stays = suppress(boxes, classes, SUPPRESS_IOU) & (confidence > 0)
    first = jnp.argsort(~stays, stable=True)[:DETECTIONS]
    boxes, confidence, classes, stays = boxes[first], confidence[first], classes[first], stays[first]
    right = match(boxes, jnp.where(stays, classes, -2), targets[:, 1:], targets[:, 0].astype(jnp.int32), MATCH_IOU)
    found = jnp.stack([classes.astype(jnp.float32), confidence, right.astype(jnp.float32)], -1)
    found = jnp.where(stays[:, None], found, jnp.asarray([NOTHING], jnp.float32))
    truth = jnp.zeros((len(targets), 3), jnp.float32).at[:, 0].set(targets[:, 0])
    return jnp.concatenate([found, truth])
