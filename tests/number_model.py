"""One number as a model: what an update did can be read off, and computed by hand."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from qresearch.data.dataset import Dataset, Split
from qresearch.evaluation import make_batches
from qresearch.population import unchanged
from qresearch.tasks import Task
from qresearch.training import Program, Recipe, Trial, make_trainer


def number_data(examples=4):
    split = Split(np.arange(examples, dtype=np.int32)[:, None], np.arange(examples, dtype=np.int32))
    return Dataset("numbers", split, split, split, 2, unchanged, (1,), "made up")


def number_program(gradient=1.0, learnable=lambda qparams: {}):
    """The training loss is ``gradient * w``; the evaluation returns w for every example."""

    def train(variables, qparams, bits, x, key):
        slope = jax.tree.leaves(gradient)
        loss = sum(jnp.sum(jnp.asarray(g) * w) for g, w in zip(slope, jax.tree.leaves(variables["params"])))
        loss = loss + sum(jnp.sum(q) for q in jax.tree.leaves(qparams))
        return jnp.full(x.shape[0], loss), {}

    def forward(shared, own, x):
        return jnp.broadcast_to(own[0]["params"]["w"], x.shape[:1])

    return Program(train, forward, learnable)


# The validation score is w itself, the validation loss 0: the history shows every value that w had.
NUMBER = Task(
    loss=lambda outputs, targets: jnp.zeros_like(outputs),
    score=lambda outputs, targets: outputs,
    score_name="w",
)
TRAIN_ON = Task(loss=lambda outputs, targets: outputs, score=NUMBER.score, score_name="w")


def number_trial(w=0.0, learning_rate=1.0, seed=0, qparams=None, **more):
    return Trial({"params": {"w": jnp.float32(w), **more}}, qparams or {}, (), learning_rate, seed)


def number_trainer(recipe, program=None, task=TRAIN_ON, examples=4):
    data = number_data(examples)
    return make_trainer(program or number_program(), task, recipe, data, make_batches(data.validation, 2))


def path_of(recipe, w=0.0, learning_rate=1.0, program=None):
    """w after every epoch; one epoch is one step, because the batch holds all examples."""
    trainer = number_trainer(dataclasses.replace(recipe, batch_size=4), program)
    (trained,) = trainer.train([number_trial(w, learning_rate)], chunk=1)
    assert trained.failure is None
    return np.array([row["validation_score"] for row in trained.history])


SGD = Recipe(epochs=6, batch_size=4, optimizer="sgd", momentum=0.0, schedule="constant")


def steps_of(recipe):
    return -np.diff(path_of(recipe), prepend=0.0)
