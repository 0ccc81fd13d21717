"""Divergence of the outputs: what one quantized layer changes in what the model says."""

from __future__ import annotations

from qresearch.sensitivities.outputs import outputs_moved
from qresearch.sensitivities.subject import Sensitivity, Subject


def kl(subject: Subject) -> Sensitivity:
    """The divergence of the outputs from the float model's, per example: KL(p_float || p) for distributions, in nats.

    What a task's outputs say, and so what their divergence is, the task states (``Task.divergence``). Unlike the loss
    increase it is never negative and needs no labels, and an example that the float model gets wrong counts too.
    Cai et al., ZeroQ: A Novel Zero Shot Quantization Framework, 2020, https://arxiv.org/abs/2001.00281. Where we
    differ: real examples in place of synthetic ones.
    """
    return outputs_moved(subject, subject.task.divergence)
