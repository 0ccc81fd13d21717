"""BatchNorm re-estimation: the statistics that normalize a quantized model become those of the quantized model."""

from __future__ import annotations

from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array

from qresearch.errors import DataError, GraphError
from qresearch.ptq.fold_batchnorm import FoldedFunction
from qresearch.ptq.state import Method, Quantized

State: TypeAlias = dict[str, Any]


def reestimate_batchnorm(*, batch: int = 64) -> Method:
    """The same model with its BatchNorm statistics changed by what quantization changes in them.

    In ``Quantized.apply_train``, the model's training mode, every batch is normalized by its own statistics; state: the
    collections of params that it updates, such as "batch_stats". Each is a running
    average m old + (1 - m) new: updates of zeros and of ones tell new, whatever m the model has. With f and q the mean
    of new over batches of x in the float and in the quantized model, old becomes old + q - f, or old q / f where all
    are positive, as variances are. GraphError if there are no statistics: fold_batchnorm removes them, and
    bias_correction does this job there.
    Nagel et al., Overcoming Oscillations in Quantization-Aware Training, 2022, https://arxiv.org/abs/2203.11086,
    section 4.1. Where we differ: there q replaces old. Calibration examples are not augmented as those of training
    were, which alone costs a float ResNet-20 on CIFAR-10 3 points; the difference leaves that out.
    """

    def method(quantized: Quantized, key: Array) -> Quantized:
        model, params, _, bits, x, *_, apply_train = quantized
        if len(x) < 2 or len(x) % (size := min(batch, len(x))):
            raise DataError(f"BatchNorm re-estimation takes calibration examples in batches of {batch}, got {len(x)}")
        state = None
        if apply_train is not None and not isinstance(model.fn, FoldedFunction):
            state = jax.eval_shape(apply_train, params, (x[:size], key))[1]
        if apply_train is None or not jax.tree.leaves(state):
            raise GraphError("the model has no BatchNorm statistics to estimate again: use bias_correction instead")
        twin = model.twin(apply_train, params, (x[:size], key))

        @jax.jit
        def statistics(x_key: tuple[Array, Array]) -> tuple[State, State]:
            def updated(fill: Array) -> tuple[State, State]:
                own = {**params, **jax.tree.map(lambda leaf: jnp.full(leaf.shape, fill, leaf.dtype), state)}
                return apply_train(own, x_key)[1], twin.apply(own, quantized.qparams, x_key, bits)[1]

            # The layers do not see the old averages: vmap repeats the update alone.
            ends = jax.vmap(updated)(jnp.arange(2.0))
            return jax.tree.map(lambda end: end[0] / (1 - (end[1] - end[0])), ends)

        found = [statistics((x[i : i + size], jax.random.fold_in(key, i))) for i in range(0, len(x), size)]
        float_, own = jax.tree.map(lambda *parts: jnp.mean(jnp.stack(parts), axis=0), *found)
        old = {name: params[name] for name in own}
        return quantized._replace(params={**params, **jax.tree.map(_changed, old, float_, own)})

    return method


def _changed(old: Array, float_: Array, own: Array) -> Array:
    positive = jnp.all((old > 0) & (float_ > 0) & (own > 0))
    return jnp.where(positive, old * own / jnp.where(positive, float_, 1.0), old + own - float_)
