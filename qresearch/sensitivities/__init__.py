"""Sensitivities. ``SENSITIVITIES[name](subject)`` says what every layer loses by every option: a table that allocators
work on. To add one: write its function, add its line.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from qresearch.calibration import MenuQParams
from qresearch.data.dataset import Prepare
from qresearch.errors import ConfigError, did_you_mean
from qresearch.evaluation import Batches
from qresearch.options import check_options
from qresearch.population import unchanged
from qresearch.qmodel import Params, QParams, QuantizedModel
from qresearch.registry import Registry
from qresearch.sensitivities.additivity import Additivity, additivity
from qresearch.sensitivities.fisher import fisher
from qresearch.sensitivities.hawq_v1 import hawq_v1
from qresearch.sensitivities.hawq_v2 import hawq_v2
from qresearch.sensitivities.kl import kl
from qresearch.sensitivities.limpq import limpq
from qresearch.sensitivities.loss_increase import loss_increase
from qresearch.sensitivities.measured_losses import measure_losses
from qresearch.sensitivities.problem import allocation_bits, budget_of, make_problem, tied_layers
from qresearch.sensitivities.sqnr import sqnr
from qresearch.sensitivities.subject import Sensitivity, Subject
from qresearch.tasks import Task

SENSITIVITIES: Registry[Callable[..., Sensitivity]] = Registry(
    "sensitivities",
    {
        "loss_increase": loss_increase,
        "kl": kl,
        "sqnr": sqnr,
        "fisher": fisher,
        "hawq_v1": hawq_v1,
        "hawq_v2": hawq_v2,
        "limpq": limpq,
    },
)


def sensitivity(
    model: QuantizedModel,
    params: Params,
    qparams: QParams | MenuQParams,
    batches: Batches,
    task: Task,
    prepare: Prepare = unchanged,
    chunk: int | None = None,
    on_done: Callable[[int], None] | None = None,
    method: str = "loss_increase",
    **options: Any,
) -> Sensitivity:
    """What every layer loses by every option of its menu, all other layers in float, by a method of ``SENSITIVITIES``.

    batches: the examples it is measured on. on_done is called with the number of evaluations finished. options: the
    method's own. ConfigError for a method or an option that does not exist.
    """
    if method not in SENSITIVITIES:
        raise ConfigError(f"unknown sensitivity '{method}'{did_you_mean(method, SENSITIVITIES)}")
    check_options("sensitivity", f"method '{method}'", SENSITIVITIES[method], options)
    subject = Subject(model, params, qparams, batches, task, prepare, chunk, on_done)
    return SENSITIVITIES[method](subject, **options)


__all__ = [
    "SENSITIVITIES",
    "Additivity",
    "Sensitivity",
    "Subject",
    "additivity",
    "allocation_bits",
    "budget_of",
    "make_problem",
    "measure_losses",
    "sensitivity",
    "tied_layers",
]
