"""What a sensitivity is measured on, and what it gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from qresearch.calibration import MenuQParams, select
from qresearch.data.dataset import Prepare
from qresearch.evaluation import Batches
from qresearch.qmodel import Params, QParams, QuantizedModel
from qresearch.rules import Option
from qresearch.tasks import Task

FLOAT = 32.0


class Sensitivity(NamedTuple):
    """loss [layer, option]: what the layer loses by the option, +inf where it may not take it. Losses of different
    methods are in different units (see each); what they share is that they are meant to add up over layers.

    standard_error: of that, over examples, batches or probes (NaN for a single one). options: the union of all menus.
    float_loss: the float model's mean loss.
    """

    loss: Float[np.ndarray, "layer option"]
    standard_error: Float[np.ndarray, "layer option"]
    options: tuple[Option, ...]
    float_loss: float


class Subject(NamedTuple):
    """A calibrated model and the examples to measure it on. qparams: one set for all widths, or a calibrated menu from
    which every width takes its own. on_done is called with the progress, which ends at the number of pairs + 1.
    """

    model: QuantizedModel
    params: Params
    qparams: QParams | MenuQParams
    batches: Batches
    task: Task
    prepare: Prepare
    chunk: int | None = None
    on_done: Callable[[int], None] | None = None

    @property
    def options(self) -> tuple[Option, ...]:
        """The union of all menus, ascending."""
        return tuple(sorted({option for menu in self.model.menus for option in menu}))

    def pairs(self) -> list[tuple[int, int]]:
        """Every (layer, option) that a menu allows."""
        menus = enumerate(self.model.menus)
        return [(i, o) for i, menu in menus for o, option in enumerate(self.options) if option in menu]

    def progress(self, done: int, total: int) -> None:
        """Tells ``on_done`` that ``done`` of the ``total`` steps of a method are finished."""
        if self.on_done is not None:
            self.on_done(done * (len(self.pairs()) + 1) // total)

    def table(
        self, values: Sequence[Float[np.ndarray, "sample"]] | Float[np.ndarray, "pair sample"], float_loss: float
    ) -> Sensitivity:
        """The table of the means over samples of what every pair loses, with their standard errors."""
        loss = np.full((len(self.model.layers), len(self.options)), np.inf)
        error = np.full_like(loss, np.nan)
        for (layer, option), samples in zip(self.pairs(), values, strict=True):
            loss[layer, option] = samples.mean()
            if len(samples) > 1:
                error[layer, option] = samples.std(ddof=1) / np.sqrt(len(samples))
        return Sensitivity(loss, error, self.options, float_loss)

    def one_at_a_time(self) -> Float[np.ndarray, "pair+1 layer 2"]:
        """The bits of every pair with all other layers in float; the last row is the float model."""
        rows = np.full((len(self.pairs()) + 1, len(self.model.layers), 2), FLOAT, np.float32)
        for row, (layer, option) in enumerate(self.pairs()):
            rows[row, layer] = self.options[option]
        return rows

    def qparams_at(self, width: float) -> QParams:
        """The qparams of all sites at one width."""
        if not isinstance(self.qparams, MenuQParams):
            return self.qparams
        return select(self.qparams, jnp.full((len(self.model.layers), 2), width, jnp.float32))
