from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from task_cases import outputs_of

from qresearch.tasks import boxes as functions

# One program each, instead of one per operation.
area, decode_boxes, generalized_iou, match, overlap, pairwise_iou, suppress = map(
    jax.jit,
    (
        functions.area,
        functions.decode_boxes,
        functions.generalized_iou,
        functions.match,
        functions.overlap,
        functions.pairwise_iou,
        functions.suppress,
    ),
)


@pytest.fixture(autouse=True)
def _strict():
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


def boxes_of(seed, count):
    corner = np.random.default_rng(seed).uniform(0, 0.6, (count, 2))
    size = np.random.default_rng(seed + 1).uniform(0.05, 0.4, (count, 2))
    return jnp.asarray(np.concatenate([corner, corner + size], 1), jnp.float32)


def iou_by_pixels(a, b, pixels=1000):
    def paint(box):
        edges = np.round(np.asarray(box) * pixels).astype(int)
        canvas = np.zeros((pixels, pixels), bool)
        canvas[edges[0] : edges[2], edges[1] : edges[3]] = True
        return canvas

    one, other = paint(a), paint(b)
    return (one & other).sum() / (one | other).sum()


def test_iou_is_the_share_of_pixels():
    a, b = boxes_of(0, 5), boxes_of(7, 4)
    expected = [[iou_by_pixels(x, y) for y in b] for x in a]
    np.testing.assert_allclose(pairwise_iou(a, b), expected, atol=0.02)
    assert np.count_nonzero(expected) > 5


@pytest.mark.parametrize(
    ("a", "b", "iou", "giou"),
    [
        ((0, 0, 1, 1), (0, 0, 1, 1), 1, 1),
        ((0, 0, 1, 0.5), (0, 0.5, 1, 1), 0, 0),
        ((0, 0, 0.5, 0.5), (0.5, 0.5, 1, 1), 0, -0.5),  # a hull of 1, half of it empty
        ((0, 0, 1, 1), (0, 0, 0.5, 1), 0.5, 0.5),
        ((0.5, 0.5, 0.5, 0.5), (0, 0, 1, 1), 0, 0),
    ],
)
def test_overlaps_by_hand(a, b, iou, giou):
    a, b = jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32)
    assert float(overlap(a, b)[0]) == float(overlap(b, a)[0]) == iou
    assert float(generalized_iou(a, b)) == pytest.approx(giou)


def test_nothing_overlaps_nothing():
    empty = jnp.full(4, 0.5)
    assert float(overlap(empty, empty)[0]) == float(area(empty)) == float(area(jnp.array([1.0, 1, 0, 0]))) == 0


def test_decoding_inverts_what_was_encoded():
    targets = np.array([[[1, 0.1, 0.2, 0.5, 0.4], [0, 0.6, 0.5, 0.9, 0.95]]], np.float32)
    outputs = outputs_of(targets, classes=2, cells=8)
    boxes = np.asarray(decode_boxes(jnp.asarray(outputs[..., 1:5])))
    assert boxes.shape == (1, 8, 8, 4)
    np.testing.assert_allclose(boxes[0, 2, 2], targets[0, 0, 1:], atol=1e-6)  # its centre is (0.3, 0.3)
    np.testing.assert_allclose(boxes[0, 6, 5], targets[0, 1, 1:], atol=1e-6)
    np.testing.assert_allclose(boxes[0, 0, 7], [0.5 / 8 - 0.25, 7.5 / 8 - 0.25, 0.5 / 8 + 0.25, 7.5 / 8 + 0.25])


def test_suppression_is_greedy():
    row = [[0, left, 1, left + 1] for left in (0.0, 0.25, 0.5, 3.0, 0.0)]
    boxes, classes = jnp.asarray(row, jnp.float32), jnp.asarray([0, 0, 0, 0, 1], jnp.int32)
    # The second goes because of the first, hence not the third, which overlaps only the second by more than 0.5.
    assert suppress(boxes, classes, 0.5).tolist() == [True, False, True, True, True]
    assert suppress(boxes, classes, 0.2).tolist() == [True, False, False, True, True]
    assert suppress(boxes, classes, 0.7).tolist() == [True] * 5


def test_no_two_that_stay_are_rivals_and_each_that_goes_has_one():
    boxes = boxes_of(3, 40)
    classes = jnp.asarray(np.random.default_rng(0).integers(0, 2, 40), jnp.int32)
    stays = np.asarray(suppress(boxes, classes, 0.4))
    rivals = (np.asarray(pairwise_iou(boxes, boxes)) > 0.4) & (np.asarray(classes)[:, None] == np.asarray(classes))
    np.fill_diagonal(rivals, False)
    assert not rivals[stays][:, stays].any()
    assert 0 < stays.sum() < 40
    for i in np.flatnonzero(~stays):
        assert rivals[i, :i][stays[:i]].any()


SQUARE = (0.0, 0.0, 0.5, 0.5)


@pytest.mark.parametrize(
    ("boxes", "classes", "right"),
    [
        ([SQUARE], [1], [True]),
        ([SQUARE], [0], [False]),
        ([SQUARE, SQUARE], [1, 1], [True, False]),
        ([SQUARE, SQUARE], [0, 1], [False, True]),
        ([(0, 0, 0.5, 0.251)], [1], [True]),
        ([(0, 0, 0.5, 0.25)], [1], [True]),
        ([(0, 0, 0.5, 0.249)], [1], [False]),
        ([(0, 0, 0.5, 0.249), SQUARE], [1, 1], [False, True]),
    ],
)
def test_matches_by_hand(boxes, classes, right):
    truth, none = jnp.asarray([SQUARE, (0, 0, 0, 0)], jnp.float32), jnp.asarray([1, -1], jnp.int32)
    found = match(jnp.asarray(boxes, jnp.float32), jnp.asarray(classes, jnp.int32), truth, none, 0.5)
    assert found.tolist() == right


def test_a_detection_is_held_against_the_box_it_overlaps_most_and_padding_matches_nothing():
    truth = jnp.asarray([(0, 0, 1, 0.5), (0, 0.4, 1, 0.9)], jnp.float32)
    boxes = jnp.asarray([(0, 0, 1, 0.5), (0, 0.05, 1, 0.55), (0, 0.4, 1, 0.9)], jnp.float32)
    ones, classes = jnp.ones(3, jnp.int32), jnp.ones(2, jnp.int32)
    assert match(boxes, ones, truth, classes, 0.5).tolist() == [True, False, True]
    assert match(boxes, -ones, truth, -classes, 0.5).tolist() == [False] * 3
