"""Ordinary float models. ``MODELS[name](classes)`` returns one, and the same functions for the same arguments."""

from __future__ import annotations

from qresearch.models.cnn import digits_cnn
from qresearch.models.mlp import mlp
from qresearch.models.model import Factory, Model, State, Variables
from qresearch.models.nnx_cnn import nnx_cnn
from qresearch.models.resnet import resnet20, resnet32
from qresearch.models.weights import load_npz

MODELS: dict[str, Factory] = {
    "mlp": mlp,
    "digits_cnn": digits_cnn,
    "nnx_cnn": nnx_cnn,
    "resnet20": resnet20,
    "resnet32": resnet32,
}

__all__ = ["MODELS", "Factory", "Model", "State", "Variables", "load_npz"]
