"""Public weight files become checkpoints, which ``model.weights`` of a config can name."""

from __future__ import annotations

from pathlib import Path

import jax

from qresearch.checkpoint import save_checkpoint
from qresearch.errors import ConfigError, DataError, did_you_mean
from qresearch.models import MODELS, load_npz


def import_weights(source: Path, target: Path, model: str, classes: int) -> int:
    """Writes the npz ``source`` as a checkpoint of a model at its published input size; returns its parameters' number.

    An array is named by its path, as ``load_npz`` says: ``layer1/0/conv1/kernel``, ``bn1/mean``. ConfigError for an
    unknown model; DataError for a file that is not of this model, or where ``target`` is: nothing is replaced.
    """
    if model not in MODELS:
        raise ConfigError(f"--model: unknown name '{model}'{did_you_mean(model, MODELS)}")
    if classes < 1:
        raise ConfigError(f"--classes: expected a whole number > 0, got {classes}")
    if target.exists():
        raise DataError(f"{target} is there already; give the path of a new folder")
    network = MODELS[model](classes)
    example = jax.ShapeDtypeStruct((1, *network.example.shape), network.example.dtype)
    variables = load_npz(source, jax.eval_shape(network.init, jax.random.key(0), example))
    save_checkpoint(target, variables)
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
