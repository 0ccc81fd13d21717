"""A small GPT for characters: 2 blocks of width 192, 4 heads, logits tied to the embedding.

Radford et al., "Language Models are Unsupervised Multitask Learners" (GPT-2), 2019, at the size at which nanoGPT trains
on a CPU (https://github.com/karpathy/nanoGPT, README: 4 blocks of width 128, 1.88 nats or 2.71 bits per character).
Where we differ, because a CPU reaches fewer bits per character so in ten minutes: ALiBi's biases in place of a table of
positions; half of what attention reads comes from the place before (``token_shift``); two wide blocks in place of four
narrow ones; kernels start at LeCun's variance, not at a deviation of 0.02, meant for four times the width; no dropout.
Query, key and value are layers of their own.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Int

from qresearch.models.model import Model, from_linen
from qresearch.models.transformer import NORMAL, Block, alibi

CONTEXT = 128
LECUN = nn.initializers.lecun_normal()


def token_shift(x: Float[Array, "batch time width"]) -> Float[Array, "batch time width"]:
    """Computes x with the second half of the channels from the place before, zero at the first.

    Attention then compares pairs of characters without learning where "before" is: Peng, RWKV, 2021 (token shift),
    https://github.com/BlinkDL/RWKV-LM; Peng et al., "RWKV: Reinventing RNNs for the Transformer Era", 2023,
    https://arxiv.org/abs/2305.13048.
    """
    own, shared = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([own, jnp.pad(shared[:, :-1], ((0, 0), (1, 0), (0, 0)))], axis=-1)


class GPT(nn.Module):
    """A decoder-only transformer; inputs int32 ids [batch, time], outputs the next id's logits [batch, time, classes].

    The kernel of the logits is the embedding, transposed: a use of ``tokens/embedding``.
    """

    classes: int
    width: int
    depth: int
    heads: int

    @nn.compact
    def __call__(self, inputs: Int[Array, "batch time"], train: bool) -> Float[Array, "batch time classes"]:
        # The shortcuts add 2 * depth branches: GPT-2 scales their last kernels down by the root of that number.
        out_init = nn.initializers.variance_scaling(1 / (2 * self.depth), "fan_in", "truncated_normal")
        tokens = nn.Embed(self.classes, self.width, embedding_init=NORMAL, name="tokens")
        x, bias = tokens(inputs), alibi(self.heads, inputs.shape[1])
        for i in range(self.depth):
            x = Block(self.heads, nn.gelu, 1e-5, LECUN, out_init, mix=token_shift, name=f"block{i}")(x, train, bias)
        return tokens.attend(nn.LayerNorm(1e-5, name="norm")(x))


def gpt(classes: int) -> Model:
    """Returns a GPT of 12 layers and the tied logits: 902,592 parameters for 65 characters."""
    return from_linen(GPT(classes, width=192, depth=2, heads=4), jax.ShapeDtypeStruct((CONTEXT,), np.int32))
