from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from task_cases import noise_of, outputs_of, random_scenes

from qresearch.tasks import TASKS
from qresearch.tasks.detection import DETECTIONS, MATCH_IOU, SUPPRESS_IOU

TASK = TASKS["detection"]
CLASSES, CELLS, IMAGES = 3, 8, 24


def on_batches_of_one_size(measure):
    """One program for all tests here: fewer images are filled up to ``IMAGES`` with empty ones."""
    compiled = jax.jit(measure)

    def filled(outputs, targets):
        rest = IMAGES - len(outputs)
        outputs = jnp.pad(jnp.asarray(outputs, jnp.float32), ((0, rest), (0, 0), (0, 0), (0, 0)))
        targets = jnp.pad(jnp.asarray(targets, jnp.float32), ((0, rest), (0, 0), (0, 0)), constant_values=-1)
        return compiled(outputs, targets)[: IMAGES - rest]

    return filled


LOSS, SCORE = map(on_batches_of_one_size, (TASK.loss, TASK.score))


# ---- A reference written from the definition: loops over images, classes, detections and points, in float64


def reference_map(outputs, targets):
    """Mean average precision of raw outputs, decoded, suppressed, matched and integrated one by one."""
    found = [suppressed(decoded(image)) for image in outputs.astype(np.float64)]
    classes = sorted({int(label) for label in targets[..., 0].ravel() if label >= 0})
    precisions = []
    for one in classes:
        entries = [(conf, i, box) for i, image in enumerate(found) for conf, label, box in image if label == one]
        truth = {i: [box[1:] for box in image if box[0] == one] for i, image in enumerate(targets.astype(np.float64))}
        hits = voc_hits(sorted(entries, key=lambda entry: -entry[0]), truth)
        precisions.append(all_point_average_precision(hits, sum(map(len, truth.values()))))
    return float(np.mean(precisions)) if precisions else 0.0


def decoded(image):
    """(confidence, class, box) of every cell, the most confident first."""
    cells = []
    for row, column in np.ndindex(image.shape[:2]):
        raw = image[row, column]
        squash = 1 / (1 + np.exp(-raw[:5]))
        label = np.exp(raw[5:] - raw[5:].max())
        label /= label.sum()
        y, x = (row + squash[1]) / image.shape[0], (column + squash[2]) / image.shape[1]
        box = (y - squash[3] / 2, x - squash[4] / 2, y + squash[3] / 2, x + squash[4] / 2)
        cells.append((squash[0] * label.max(), int(label.argmax()), box))
    return sorted(cells, key=lambda cell: -cell[0])


def suppressed(cells):
    kept = []
    for cell in cells:
        if all(cell[1] != other[1] or iou(cell[2], other[2]) <= SUPPRESS_IOU for other in kept):
            kept.append(cell)
    return kept[:DETECTIONS]


def iou(a, b):
    height, width = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(height, 0) * max(width, 0)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def voc_hits(entries, truth):
    taken, hits = set(), []
    for _, image, box in entries:
        overlaps = [iou(box, other) for other in truth[image]]
        best = int(np.argmax(overlaps)) if overlaps else -1
        hits.append(bool(overlaps) and overlaps[best] >= MATCH_IOU and (image, best) not in taken)
        if hits[-1]:
            taken.add((image, best))
    return hits


def all_point_average_precision(hits, boxes):
    """The area below the largest precision at any recall at least as high."""
    points = [(sum(hits[: n + 1]) / boxes, sum(hits[: n + 1]) / (n + 1)) for n in range(len(hits))]
    total, before = 0.0, 0.0
    for recall, _ in points:
        total += (recall - before) * max(p for r, p in points if r >= recall)
        before = recall
    return total


@pytest.mark.parametrize("noise", [0.5, 1.5, 2.5])
def test_map_is_the_definitions(noise):
    rng = np.random.default_rng(int(10 * noise))
    targets = random_scenes(rng, IMAGES, CLASSES)
    outputs = outputs_of(targets, CLASSES, CELLS, sure=4.0)
    outputs = (outputs + noise_of(noise, CLASSES) * rng.normal(size=outputs.shape)).astype(np.float32)
    found, expected = map_of(outputs, targets), reference_map(outputs, targets)
    assert found == pytest.approx(expected, abs=1e-4)
    assert 0.1 < expected < 0.999


def map_of(outputs, targets):
    return TASK.reduce(np.asarray(SCORE(outputs, targets)))


# ---- By hand


def scene(*boxes):
    return np.array([*boxes, *[(-1, 0, 0, 0, 0)] * (4 - len(boxes))], np.float32)


ONE = scene((1, 0.1, 0.2, 0.45, 0.5))
TWO = scene((0, 0.1, 0.1, 0.3, 0.4), (1, 0.5, 0.6, 0.9, 0.95))


def says(*scenes, sure=8.0):
    return outputs_of(np.stack(scenes), CLASSES, CELLS, sure)


def test_perfect_detections_score_1():
    targets = np.stack([ONE, TWO, scene()])
    assert map_of(outputs_of(targets, CLASSES, CELLS), targets) == pytest.approx(1.0, abs=1e-6)


def test_a_wrong_class_scores_0_and_costs_the_other_class_nothing():
    wrong = ONE.copy()
    wrong[0, 0] = 2
    assert map_of(says(wrong), ONE[None]) == 0
    assert map_of(says(ONE, wrong), np.stack([ONE, wrong])) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize(("share", "score"), [(0.52, 1), (0.48, 0)])
def test_a_box_counts_from_an_iou_of_a_half(share, score):
    smaller = ONE.copy()  # of the same centre, so inside
    centre, half = (ONE[0, 2] + ONE[0, 4]) / 2, (ONE[0, 4] - ONE[0, 2]) / 2
    smaller[0, 2], smaller[0, 4] = centre - share * half, centre + share * half
    assert map_of(says(smaller), ONE[None]) == pytest.approx(score, abs=1e-6)


def test_a_duplicate_is_a_false_positive():
    """Its left and its right two thirds overlap each other by a third, too little for suppression."""
    large, thirds = scene((1, 0.22, 0.2, 0.82, 0.8)), [(1, 0.22, 0.2, 0.82, 0.6), (1, 0.22, 0.4, 0.82, 0.8)]
    outputs = says(scene(*thirds), ONE)
    outputs[0, 4, 4, 0], outputs[1, 2, 2, 0] = 4.0, 2.0  # less sure of the right one, and least of the second image
    evidence = np.asarray(SCORE(jnp.asarray(outputs), jnp.asarray(np.stack([large, ONE]))))
    sure = evidence[0][evidence[0, :, 1] > 0.5]
    assert sure[:, 2].tolist() == [1, 0]
    # Right, wrong, right: precision 1 at recall 1/2, and 2/3 at recall 1.
    assert TASK.reduce(evidence) == pytest.approx(0.5 + 0.5 * 2 / 3, abs=1e-6)


def test_no_detections_score_0():
    nothing = np.full((1, CELLS, CELLS, 5 + CLASSES), -200.0, np.float32)
    evidence = np.asarray(SCORE(jnp.asarray(nothing), jnp.asarray(ONE[None])))
    assert (evidence[0, :DETECTIONS] == (-1, 0, 0)).all()
    assert TASK.reduce(evidence) == 0
    assert TASK.shares(evidence).tolist() == [0]


def test_no_boxes_at_all_score_0_and_an_image_without_boxes_can_only_cost():
    assert map_of(says(scene()), scene()[None]) == 0
    assert map_of(says(ONE), scene()[None]) == 0
    alone, beside = map_of(says(ONE), ONE[None]), map_of(says(ONE, ONE), np.stack([ONE, scene()]))
    assert alone == pytest.approx(1.0, abs=1e-6)
    assert beside == pytest.approx(0.5, abs=1e-6)  # of equal confidence: neither answer comes first


def rows(*found, boxes):
    """Evidence of one image."""
    return [*[(kind, confidence, right) for kind, confidence, right in found], *[(kind, 0, 0) for kind in boxes]]


def test_average_precision_by_hand():
    # Class 0: precisions 1, 1/2, 2/3 at recalls 1/3, 1/3, 2/3. Class 1: nothing found.
    image = rows((0, 0.9, 1), (0, 0.8, 0), (0, 0.7, 1), boxes=(0, 0, 0, 1))
    assert TASK.reduce(np.array([image], np.float32)) == pytest.approx((1 / 3 + 2 / 3 / 3) / 2, abs=1e-12)
    # The same over three images, whose shares average to it; a class without boxes is left out.
    parts = [rows((0, c, right), boxes=(0,)) for c, right in ((0.9, 1), (0.8, 0), (0.7, 1))]
    shares = TASK.shares(np.array(parts, np.float32))
    assert shares.mean() == pytest.approx(1 / 3 + 2 / 3 / 3, abs=1e-12)
    assert shares[0] > shares[2] > shares[1]
    other = [*parts[:2], rows((2, 0.99, 0), boxes=(0,))]
    assert TASK.reduce(np.array(other, np.float32)) == pytest.approx(1 / 3, abs=1e-12)


def test_a_later_better_precision_lifts_earlier_recalls():
    image = rows((0, 0.9, 0), (0, 0.8, 1), (0, 0.7, 1), boxes=(0, 0))
    assert TASK.reduce(np.array([image], np.float32)) == pytest.approx(2 / 3, abs=1e-12)


# ---- The loss


def test_the_loss_of_a_perfect_answer_is_nearly_0_and_of_any_other_is_not():
    targets = np.stack([ONE, TWO, scene()])
    perfect = outputs_of(targets, CLASSES, CELLS, sure=12.0)
    assert float(LOSS(jnp.asarray(perfect), jnp.asarray(targets)).max()) < 1e-3
    row, column = 2, 2  # ONE's cell: its centre is (0.275, 0.35)
    for channel, change in [(0, -24), (1, 2), (2, 2), (3, 2), (4, 2), (5, 24)]:
        worse = perfect.copy()
        worse[0, row, column, channel] += change
        assert float(LOSS(jnp.asarray(worse), jnp.asarray(targets))[0]) > 0.1
    false_alarm = perfect.copy()
    false_alarm[2, 0, 0, 0] = 12.0
    assert float(LOSS(jnp.asarray(false_alarm), jnp.asarray(targets))[2]) > 5


def test_padding_and_the_order_of_boxes_do_not_matter():
    rng = np.random.default_rng(0)
    targets = random_scenes(rng, 16, CLASSES)
    outputs = jnp.asarray(rng.normal(size=(16, CELLS, CELLS, 5 + CLASSES)), jnp.float32)
    loss = LOSS(outputs, jnp.asarray(targets))
    np.testing.assert_allclose(LOSS(outputs, jnp.asarray(targets[:, ::-1])), loss, rtol=1e-5)
    rubbish = np.where(targets[..., :1] < 0, np.array([-1, 0.4, 0.4, 0.6, 0.6], np.float32), targets)
    np.testing.assert_array_equal(LOSS(outputs, jnp.asarray(rubbish)), loss)
    np.testing.assert_array_equal(SCORE(outputs, jnp.asarray(rubbish)), SCORE(outputs, jnp.asarray(targets)))
