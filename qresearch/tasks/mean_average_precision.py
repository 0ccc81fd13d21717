"""Mean average precision of detections whose matching is known, and what each image contributes to it."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

NOTHING = (-1.0, 0.0, 0.0)  # a row without a detection and without a true box


def average_precision_shares(evidence: Float[np.ndarray, "example row 3"]) -> Float[np.ndarray, "example"]:
    """One number per image, whose mean is the mean average precision and whose spread is its spread (see ``Task``).

    evidence: rows (class, confidence > 0, right) for detections, (class, 0, 0) for true boxes, ``NOTHING`` to fill up.
    The mean goes over the classes that have true boxes; without any the score is 0. Per class, with w = 1 for every
    image, true boxes P, detections by falling confidence, h_k = 1 for right ones, T_k and D_k of them so far:

        AP = Σ_k (h_k / P) · max_{j ≥ k} T_j / D_j

    which is the area under the envelope of all points (Everingham et al., The PASCAL Visual Object Classes Challenge:
    A Retrospective, 2015, https://doi.org/10.1007/s11263-014-0733-5, as of 2010). Where we differ: detections of equal
    confidence enter together, so that the order of the images says nothing.
    """
    image = np.repeat(np.arange(len(evidence)), evidence.shape[1])
    kind, confidence, right = evidence.reshape(-1, 3).T.astype(np.float64)
    truth = confidence == 0
    present = np.unique(kind[truth & (kind >= 0)])
    shares = np.zeros(len(evidence))
    for one in present:
        mine = kind == one
        boxes, found = mine & truth, mine & ~truth
        per_image = np.bincount(image[boxes], minlength=len(evidence))
        shares += _shares_of_a_class(image[found], confidence[found], right[found], per_image)
    return shares / max(len(present), 1)


def _shares_of_a_class(
    image: Float[np.ndarray, "k"], confidence: np.ndarray, right: np.ndarray, boxes: Float[np.ndarray, "example"]
) -> Float[np.ndarray, "example"]:
    """AP + N ∂AP/∂w of one class, for the weights w of the images. boxes: its true boxes in each."""
    order = np.argsort(-confidence, kind="stable")
    image, confidence, right = image[order], confidence[order], right[order]
    total, images = boxes.sum(), len(boxes)
    ends = np.flatnonzero(np.append(confidence[1:] != confidence[:-1], True)[: len(confidence)])
    if not len(ends):
        return np.zeros(images)
    hits, answers = np.cumsum(right)[ends], ends + 1.0
    best = _best_later(hits / answers)
    group = np.searchsorted(ends, np.arange(len(image)))  # of equal confidence: every detection's
    gain = np.bincount(group, weights=right)  # right ones in each group
    precision = hits[best] / answers[best]
    average = (gain * precision).sum() / total
    # The weight of detection m moves T and D at the best points from its own on: ∂(T/D) = (h_m − T/D) / D.
    use = np.bincount(best, weights=gain, minlength=len(ends)) / answers
    later = np.cumsum(use[::-1])[::-1], np.cumsum((use * hits / answers)[::-1])[::-1]
    moved = right * (precision[group] + later[0][group]) - later[1][group]
    slope = np.bincount(image, weights=moved, minlength=images) - average * boxes
    return average + images * slope / total


def _best_later(precision: Float[np.ndarray, "point"]) -> np.ndarray:
    """The index of the largest precision at or after every point, the last of equals."""
    backwards = precision[::-1]
    highest = np.maximum.accumulate(backwards)
    first = np.where(np.append(True, backwards[1:] > highest[:-1]), np.arange(len(precision)), 0)
    return (len(precision) - 1 - np.maximum.accumulate(first))[::-1]
