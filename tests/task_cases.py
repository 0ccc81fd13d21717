"""Outputs and targets of every task, for tests over the registry: a new task adds its line to ``CASES``."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

BATCH = 32


def classification(seed):
    rng = np.random.default_rng(seed)
    return _arrays(5 * rng.normal(size=(BATCH, 10)), rng.integers(0, 10, BATCH))


def language_modelling(seed):
    rng = np.random.default_rng(seed)
    return _arrays(3 * rng.normal(size=(BATCH, 16, 12)), rng.integers(0, 12, (BATCH, 16)))


def detection(seed):
    """Noisy outputs that know the boxes: some detections are right."""
    rng = np.random.default_rng(seed)
    targets = random_scenes(rng, BATCH, classes=3)
    known = outputs_of(targets, classes=3, cells=8, sure=4.0)
    return _arrays(known + noise_of(2.0, 3) * rng.normal(size=known.shape), targets)


def _arrays(outputs, targets):
    integers = np.issubdtype(targets.dtype, np.integer)
    return jnp.asarray(outputs, jnp.float32), jnp.asarray(targets, jnp.int32 if integers else jnp.float32)


CASES = {
    "classification": classification,
    "detection": detection,
    "language_modelling": language_modelling,
}


def random_scenes(rng, images, classes, boxes=4):
    """Targets [images, boxes, 5] with 0 to ``boxes`` boxes each."""
    size = rng.uniform(0.1, 0.4, (images, boxes, 2))
    corner = rng.uniform(0, 1 - size)
    label = rng.integers(0, classes, (images, boxes, 1))
    targets = np.concatenate([label, corner, corner + size], -1).astype(np.float32)
    targets[np.arange(boxes) >= rng.integers(0, boxes + 1, images)[:, None]] = (-1, 0, 0, 0, 0)
    return targets


def noise_of(scale, classes):
    """Standard deviations per output channel: boxes are off by less than confidences and classes."""
    return np.array([scale, *[0.2 * scale] * 4, *[scale] * classes], np.float32)


def logit(p):
    return np.log(p) - np.log1p(-p)


def outputs_of(targets, classes, cells, sure=8.0):
    """Raw outputs [images, cells, cells, 5 + classes] that say exactly the targets; of two in a cell the last one."""
    outputs = np.zeros((len(targets), cells, cells, 5 + classes), np.float32)
    outputs[..., 0] = -sure
    for image, boxes in enumerate(targets):
        for label, *corners in boxes[boxes[:, 0] >= 0].astype(np.float64):
            low, high = np.array(corners[:2]), np.array(corners[2:])
            place = (low + high) / 2 * cells
            row, column = np.minimum(place.astype(int), cells - 1)
            inside = np.clip(place - [row, column], 1e-6, 1 - 1e-6)
            outputs[image, row, column, 0] = sure
            outputs[image, row, column, 1:5] = [*logit(inside), *logit(high - low)]
            outputs[image, row, column, 5 + int(label)] = sure
    return outputs
