"""Ordinary float models. ``MODELS[name](classes)`` returns one, and the same functions for the same arguments."""

from __future__ import annotations

from qresearch.models.cnn import digits_cnn
from qresearch.models.detector import detector
from qresearch.models.gpt import gpt
from qresearch.models.lenet5 import lenet5
from qresearch.models.mlp import mlp
from qresearch.models.mobilenet_v2 import mobilenet_v2
from qresearch.models.model import Factory, Model, State, Variables
from qresearch.models.nnx_cnn import nnx_cnn
from qresearch.models.preact_resnet import preact_resnet20
from qresearch.models.resnet import resnet20, resnet32, resnet56
from qresearch.models.resnet_imagenet import resnet18, resnet50
from qresearch.models.vgg7 import vgg7
from qresearch.models.vit import vit_tiny
from qresearch.models.weights import load_npz
from qresearch.registry import Registry

MODELS: Registry[Factory] = Registry(
    "models",
    {
        "mlp": mlp,
        "digits_cnn": digits_cnn,
        "nnx_cnn": nnx_cnn,
        "lenet5": lenet5,
        "vgg7": vgg7,
        "resnet20": resnet20,
        "resnet32": resnet32,
        "resnet56": resnet56,
        "preact_resnet20": preact_resnet20,
        "resnet18": resnet18,
        "resnet50": resnet50,
        "mobilenet_v2": mobilenet_v2,
        "vit_tiny": vit_tiny,
        "gpt": gpt,
        "detector": detector,
    },
)

__all__ = ["MODELS", "Factory", "Model", "State", "Variables", "load_npz"]
