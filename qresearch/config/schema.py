"""The settings of a run: types, limits and defaults. Nothing here knows which quantizers or models exist.

Names of quantizers, models and so on are plain text; `qresearch.config.names` compares them with the registries, which
import jax.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from qresearch.config.engine import CheckpointsConfig, EngineConfig
from qresearch.config.fields import (
    AS_TUPLE,
    Count,
    Flow,
    Fraction,
    Limits,
    Name,
    NonNegative,
    Option,
    Options,
    Positive,
    RunName,
    Section,
    Seed,
    Text,
    Whole,
    combination,
    expect,
)
from qresearch.config.quantize import QuantizeConfig


class DataConfig(Section):
    """Which data set, and the folder of its files where it has any."""

    name: Name = "digits"
    folder: Text | None = None


class ModelConfig(Section):
    """Which float model. ``weights``: an .npz file; then float training is skipped."""

    name: Name = "digits_cnn"
    weights: Text | None = None


class TrainConfig(Section):
    """One training phase: float training, QAT or a search that trains. ``examples`` None: on all training examples."""

    epochs: Whole = 20
    examples: Count | None = None
    batch_size: Count = 64
    learning_rate: Positive = 3e-3
    optimizer: Literal["adam", "sgd", "adamw"] = "adam"
    momentum: Fraction = 0.9
    weight_decay: NonNegative = 0.0
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup_epochs: Whole = 0
    clip_norm: Positive | None = None
    augment: Literal["none", "crop", "flip", "crop_flip"] = "none"


class PtqMethodConfig(Section):
    """One step of post-training quantization; a name alone will do. ``options``: the method's own."""

    name: Name
    options: Options = ()


def _named(methods: Any) -> Any:
    listed = isinstance(methods, list | tuple)
    return tuple({"name": item} if isinstance(item, str) else item for item in methods) if listed else methods


class CalibrationConfig(Section):
    """How many training examples set the initial scales, and serve the methods of ``ptq``."""

    examples: Count = 256


class SensitivityConfig(Section):
    """How the sensitivity of each layer is measured, and on how many validation examples. ``options``: the method's
    own. ``joint``: so many random allocations of all layers are measured too, to say how far sensitivities add up.
    """

    method: Name = "loss_increase"
    examples: Count = 512
    options: Options = ()
    joint: Whole = 16


class AllocationConfig(Section):
    """The bits of every layer: ``bits`` for all of them, or the allocator's choice within a budget of ``cost``.

    ``limits``: budgets of further costs that hold as well. ``options``: the allocator's own.
    ``refine``: rounds of local swaps on the measured loss, from its answer.
    """

    allocator: Name = "uniform"
    options: Options = ()
    refine: Whole = 0
    bits: Option | None = None
    budget: Positive | None = None
    cost: Name = "average_bits"
    limits: Limits = ()

    @model_validator(mode="after")
    def _limits_beside_a_budget(self) -> AllocationConfig:
        if self.limits and self.budget is None:
            raise combination("limits", "give a 'budget' too, of the cost that the front is over")
        if self.cost in dict(self.limits):
            raise combination("limits", f"'{self.cost}' is the cost of the budget already")
        return self

    @model_validator(mode="after")
    def _not_both(self) -> AllocationConfig:
        if self.bits is not None and self.budget is not None:
            raise combination("budget", "bits are given too; keep one of 'bits' and 'budget' and set the other to null")
        return self


class CostConfig(Section):
    """A cost besides those of ``qresearch list costs``: ``device``, the roofline latency there of ``batch`` examples in
    ms; or ``csv``, a file with the columns layer, weight_bits, input_bits, cost, in ``unit``.
    """

    name: Name
    device: Name | None = None
    batch: Count = 1
    csv: Text | None = None
    unit: str = ""

    @model_validator(mode="after")
    def _one_source(self) -> CostConfig:
        if (self.device is None) == (self.csv is None):
            raise combination("", "give either 'device' or 'csv'")
        return self


class EvaluateConfig(Section):
    """How accuracy is measured. ``examples`` None: on all test examples."""

    batch_size: Count = 500
    examples: Count | None = None


class ReportConfig(Section):
    """How searches are compared: ``reference`` is the worst (cost, score) that counts in a hypervolume, in the units of
    ``cost`` and of the score; without one there is no hypervolume.
    """

    cost: Name = "average_bits"
    reference: Annotated[tuple[float, float], AS_TUPLE, expect("a list of two numbers, [cost, score]")] | None = None


class RunConfig(Section):
    """Everything that determines one run. In YAML, ``float_training`` is spelled ``float``."""

    name: RunName
    seed: Seed = 0
    task: Name = "classification"
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    float_training: TrainConfig = Field(TrainConfig(), alias="float")
    quantize: QuantizeConfig = QuantizeConfig()
    calibration: CalibrationConfig = CalibrationConfig()
    sensitivity: SensitivityConfig = SensitivityConfig()
    flow: Flow
    ptq: Annotated[tuple[PtqMethodConfig, ...], BeforeValidator(_named)] = ()
    qat: TrainConfig = TrainConfig()
    search: TrainConfig = TrainConfig(epochs=10)
    allocation: AllocationConfig = Field(AllocationConfig(), validate_default=True)
    costs: Annotated[tuple[CostConfig, ...], AS_TUPLE] = ()
    evaluate: EvaluateConfig = EvaluateConfig()
    report: ReportConfig = ReportConfig()
    engine: EngineConfig = EngineConfig()
    checkpoints: CheckpointsConfig = CheckpointsConfig()
    trackers: Annotated[tuple[Name, ...], AS_TUPLE] = ()
    output: Text = "results"

    @field_validator("allocation")
    @classmethod
    def _bits_or_budget(cls, allocation: AllocationConfig, info: ValidationInfo) -> AllocationConfig:
        # On the field and not on the whole run, so that it is reported together with errors elsewhere.
        neither = allocation.bits is None and allocation.budget is None
        if neither and info.data.get("flow") in ("ptq", "qat"):
            raise combination("", f"flow {info.data['flow']} needs 'bits: [weight_bits, input_bits]' or 'budget'")
        return allocation
