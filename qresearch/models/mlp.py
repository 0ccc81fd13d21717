"""A two-hidden-layer perceptron, 128 and 64 wide: the smallest model with dropout, for tests and examples."""

from __future__ import annotations

from flax import linen as nn
from jaxtyping import Array, Float

from qresearch.models.model import Model, from_linen


class MLP(nn.Module):
    """Inputs [batch, ...] are flattened; outputs [batch, classes]."""

    classes: int

    @nn.compact
    def __call__(self, inputs: Float[Array, "batch ..."], train: bool) -> Float[Array, "batch classes"]:
        x = inputs.reshape(inputs.shape[0], -1)
        for i, width in enumerate((128, 64), start=1):
            x = nn.relu(nn.Dense(width, name=f"linear{i}")(x))
            x = nn.Dropout(0.1, deterministic=not train)(x)
        return nn.Dense(self.classes, name="linear3")(x)


def mlp(classes: int) -> Model:
    """Returns layers linear1, linear2, linear3: 17,226 parameters on 8x8x1 inputs and 10 classes."""
    return from_linen(MLP(classes))
