from __future__ import annotations

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_sweep import compilations

from qresearch.augmentation import AUGMENTATIONS
from qresearch.config.schema import TrainConfig
from qresearch.data.dataset import Dataset, Split
from qresearch.errors import ConfigError
from qresearch.evaluation import make_batches
from qresearch.population import unchanged
from qresearch.tasks import Task
from qresearch.training import Program, Recipe, Trial, make_trainer

SIDE = 16  # an eighth of it, two pixels, is padded on every edge


def images(count=32, channels=3):
    """No pixel is 0, so that padding is seen, and no two are equal in an image, so that its place is."""
    rng = np.random.default_rng(0)
    rows = [rng.permutation(np.arange(1, SIDE * SIDE + 1)) for _ in range(count * channels)]
    return np.stack(rows).reshape(count, channels, SIDE, SIDE).transpose(0, 2, 3, 1).astype(np.float32)


def augmented(name, inputs, seed=0):
    return np.asarray(jax.jit(AUGMENTATIONS[name])(jnp.asarray(inputs), jax.random.key(seed)))


def windows(image):
    """Every 16x16 part of the image padded by two zeros on every edge, by its corner."""
    padded = np.pad(image, ((2, 2), (2, 2), (0, 0)))
    return {(y, x): padded[y : y + SIDE, x : x + SIDE] for y in range(5) for x in range(5)}


@pytest.fixture(params=sorted(AUGMENTATIONS))
def name(request):
    return request.param


@pytest.mark.parametrize(
    ("dtype", "shape"), [(np.uint8, (5, SIDE, SIDE, 3)), (np.float32, (4, 24, 8, 1)), (np.uint8, (3, 4, 4, 1))]
)
def test_shape_and_dtype_stay(name, dtype, shape):
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        found = AUGMENTATIONS[name](jnp.ones(shape, dtype), jax.random.key(0))
    assert (found.shape, found.dtype) == (shape, dtype)


def test_the_same_key_gives_the_same_images_and_another_key_others(name):
    first, again, other = (augmented(name, images(), seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.array_equal(first, other) == (name == "none")


def test_equal_images_are_not_all_treated_alike(name):
    found = augmented(name, np.repeat(images(1), 32, axis=0))
    assert (len(np.unique(found, axis=0)) > 1) == (name != "none")


def test_none_changes_nothing():
    np.testing.assert_array_equal(augmented("none", images()), images())


def test_a_crop_is_a_part_of_the_padded_image_and_every_corner_is_as_likely():
    inputs = np.repeat(images(1), 2500, axis=0)
    places = {window.tobytes(): corner for corner, window in windows(inputs[0]).items()}
    corners = [places[found.tobytes()] for found in augmented("crop", inputs)]
    counts = np.array([corners.count(corner) for corner in places.values()])
    assert np.all(np.abs(counts - 100) < 50)  # five standard deviations


def test_a_crop_by_hand():
    """Of 8x8 pixels one row and column are padded: the middle crop is the image, a corner crop has a black edge."""
    image = np.arange(1, 65, dtype=np.uint8).reshape(1, 8, 8, 1)
    seen = {found.tobytes() for found in augmented("crop", image.repeat(200, axis=0))}
    assert len(seen) == 9
    assert image[0].tobytes() in seen
    shifted = np.zeros((8, 8, 1), np.uint8)
    shifted[1:, 1:] = image[0, :-1, :-1]
    assert shifted.tobytes() in seen


def test_height_and_width_are_padded_by_their_own_eighth():
    inputs = np.ones((200, 24, 8, 1), np.float32)
    missing = (augmented("crop", inputs) == 0)[..., 0]
    assert missing.all(axis=2).sum(axis=1).max() == 3
    assert missing.all(axis=1).sum(axis=1).max() == 1


def test_a_flip_mirrors_about_half_of_the_images_left_to_right():
    inputs = images(400, channels=1)
    found = augmented("flip", inputs)
    mirrored = np.array([np.array_equal(a, b[:, ::-1]) for a, b in zip(found, inputs)])
    same = np.array([np.array_equal(a, b) for a, b in zip(found, inputs)])
    assert (mirrored ^ same).all()
    assert 150 < mirrored.sum() < 250


def test_crop_flip_crops_and_flips_independently():
    inputs = np.repeat(images(1, channels=1), 2500, axis=0)
    places = {window.tobytes(): (corner, 0) for corner, window in windows(inputs[0]).items()}
    places |= {window[:, ::-1].tobytes(): (corner, 1) for corner, window in windows(inputs[0]).items()}
    found = [places[one.tobytes()] for one in augmented("crop_flip", inputs)]
    counts = np.array([found.count(place) for place in places.values()])
    assert len(counts) == 50
    assert np.all(np.abs(counts - 50) < 35)  # five standard deviations


# ---- In training: the gradient of a weight per pixel is the image that the step saw

SEEN = Task(lambda outputs, targets: outputs, lambda outputs, targets: outputs, "sum")
STEP = Recipe(epochs=1, batch_size=1, optimizer="sgd", momentum=0.0, schedule="constant")


def step_data():
    split = Split(images(1), np.zeros(1, np.int32))
    return Dataset("one image", split, split, split, 2, unchanged, (SIDE, SIDE, 3), "made here")


def seeing(variables, qparams, bits, x, key):
    return (variables["params"]["w"][None] * x).sum((1, 2, 3)), {"noise": jax.random.uniform(key)}


def trainer_of(recipe, data=None):
    data = step_data() if data is None else data
    program = Program(
        seeing, lambda shared, own, x: (own[0]["params"]["w"][None] * x).sum((1, 2, 3)), lambda qparams: {}
    )
    return make_trainer(program, SEEN, recipe, data, make_batches(data.validation, 1))


def trial(seed):
    return Trial({"params": {"w": jnp.zeros((SIDE, SIDE, 3))}, "noise": jnp.float32(0)}, {}, (), 1.0, seed)


def seen_and_noise(augment, seeds, chunk=1):
    """The image that each seed's only step saw, and the noise that its program drew."""
    trainer = trainer_of(dataclasses.replace(STEP, augment=augment))
    lasts = [trained.last[0] for trained in trainer.train([trial(seed) for seed in seeds], chunk)]
    return [-np.asarray(last["params"]["w"]) for last in lasts], [float(last["noise"]) for last in lasts]


@pytest.mark.parametrize("chunk", [1, 8])
def test_a_training_step_sees_the_augmented_image_of_its_seed(chunk):
    image, seeds = images(1)[0], range(8)
    seen, noise = seen_and_noise("flip", seeds, chunk)
    kinds = [np.array_equal(one, image[:, ::-1]) for one in seen]
    assert all(np.array_equal(one, image[:, ::-1] if kind else image) for one, kind in zip(seen, kinds))
    assert len(set(kinds)) == 2
    again, _ = seen_and_noise("flip", seeds, chunk)
    np.testing.assert_array_equal(seen, again)
    assert noise == seen_and_noise("none", seeds, chunk)[1]  # what the program draws is not touched


def test_every_step_draws_anew_within_one_program():
    trainer = trainer_of(dataclasses.replace(STEP, augment="crop", epochs=6))
    with compilations() as compiled:
        outcomes = list(trainer.train([trial(seed) for seed in range(3)], 1))
    assert compiled.count("jit(step)") == 2  # one training, one evaluation
    # The loss of step t + 1 less that of step t is minus the overlap of what both saw: it differs from step to step.
    losses = np.diff([[row["train_loss"] for row in outcome.history] for outcome in outcomes], axis=1)
    assert len(np.unique(losses)) > 9


def test_validation_images_are_not_augmented():
    trainer = trainer_of(dataclasses.replace(STEP, augment="crop_flip"))
    image = images(1)[0]
    for outcome in trainer.train([trial(seed) for seed in range(4)], 1):
        expected = float((np.asarray(outcome.last[0]["params"]["w"]) * image).sum())
        assert outcome.history[0]["validation_score"] == pytest.approx(expected, rel=1e-5)


def test_an_unknown_name_is_refused():
    with pytest.raises(ConfigError, match=re.escape("recipe.augment: unknown name 'flp'; did you mean 'flip'")):
        trainer_of(dataclasses.replace(STEP, augment="flp"))


@pytest.mark.parametrize("augment", sorted(set(AUGMENTATIONS) - {"none"}))
@pytest.mark.parametrize(("inputs", "targets"), [((4, 8), (4, 8)), ((4, 16, 16, 1), (4, 3, 5))])
def test_text_and_boxes_are_refused(augment, inputs, targets):
    split = Split(np.zeros(inputs, np.float32), np.zeros(targets, np.float32))
    data = Dataset("other", split, split, split, 2, unchanged, inputs[1:], "made here")
    with pytest.raises(ConfigError, match=f"augment '{augment}' is for images with one class each, not other; set it"):
        trainer_of(dataclasses.replace(STEP, augment=augment), data)


def test_every_name_is_a_choice_of_the_config():
    for name in AUGMENTATIONS:
        assert TrainConfig(augment=name).augment == name
    assert set(TrainConfig.model_json_schema()["properties"]["augment"]["enum"]) == set(AUGMENTATIONS)
