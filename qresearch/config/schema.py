"""The settings of a run: types, limits and defaults. Nothing here knows which quantizers or models exist.

Names of quantizers, models and so on are plain text; `qresearch.config.names` compares them with the registries, which
import jax.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationInfo,
    field_validator,
    model_validator,
)

from qresearch.config.fields import (
    AS_TUPLE,
    Count,
    Flow,
    Fraction,
    Granularity,
    Limits,
    Menu,
    Name,
    NonNegative,
    Option,
    Options,
    Positive,
    RunName,
    Seed,
    Text,
    Tied,
    Whole,
    combination,
    expect,
)


class Section(BaseModel):
    """Part of a config: unknown keys are errors, nothing is converted, nothing changes later."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


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


class SiteConfig(Section):
    """How one kind of site is quantized. ``signed`` None: decided from calibration data. ``options``: the method's
    own. ``range``: see ``qresearch list ranges``; "own" is the method's own start, "auto" mse where it keeps a range.
    """

    quantizer: Name = "minmax"
    granularity: Granularity = "per_tensor"
    group_size: Count | None = None
    signed: bool | None = None
    symmetric: bool = True
    range: Name = "auto"
    mask: Literal["rounded", "unrounded", "none"] | None = None
    narrow: bool = False
    rounding: Literal["half_even", "floor", "ceil", "toward_zero", "stochastic"] = "half_even"
    options: Options = ()

    @model_validator(mode="after")
    def _group_size_with_groups(self) -> SiteConfig:
        if (self.granularity == "per_group") != (self.group_size is not None):
            raise combination("group_size", "give it with 'granularity: per_group', and only then")
        return self


class WeightSiteConfig(SiteConfig):
    """A `SiteConfig` whose scales are per channel unless the file says otherwise."""

    granularity: Literal["per_tensor", "per_channel", "per_group"] = "per_channel"


# pydantic puts the tag of a union into the path of an error, where a control character keeps it apart from keys.
SITE_TAGS = ("\0site", "\0word")


def _site_tag(value: Any) -> str:
    return SITE_TAGS[0] if isinstance(value, (Mapping, SiteConfig)) else SITE_TAGS[1]


_Word = Annotated[Literal["float", "default"], expect("'float', 'default' or the keys of a site"), Tag(SITE_TAGS[1])]
RuleWeight = Annotated[Annotated[WeightSiteConfig, Tag(SITE_TAGS[0])] | _Word, Discriminator(_site_tag)]
RuleInput = Annotated[Annotated[SiteConfig, Tag(SITE_TAGS[0])] | _Word, Discriminator(_site_tag)]


class RuleConfig(Section):
    """What is different for the layers that ``pattern`` matches. A menu of one option pins them."""

    pattern: Text
    weight: RuleWeight = "default"
    input: RuleInput = "default"
    menu: Menu | None = None
    shared: Literal["one", "each"] = "one"


class KeepConfig(Section):
    """Layers that keep the bits of ``option``: the first, the last, and so many of the most sensitive where all layers
    have the same bits (with a budget, the allocator decides). Layers by name: a rule with a menu of one option.
    """

    first: bool = False
    last: bool = False
    most_sensitive: Whole = 0
    option: Option = (8, 8)


class QuantizeConfig(Section):
    """How layers are quantized, and the bits that they may have. ``tied``: patterns of layers that share an option; in
    one, ``{}`` stands for a part of a name that tells groups apart (``block{}/attention/*``).
    """

    weight: WeightSiteConfig = WeightSiteConfig()
    input: SiteConfig = SiteConfig()
    menu: Menu = ((2, 2), (3, 3), (4, 4), (6, 6), (8, 8))
    tied: Tied = ()
    rules: Annotated[tuple[RuleConfig, ...], AS_TUPLE] = ()
    keep: KeepConfig = KeepConfig()

    @field_validator("rules", mode="before")
    @classmethod
    def _rules_say_what_differs(cls, rules: Any, info: ValidationInfo) -> Any:
        return [_inherit(rule, info.data) for rule in rules] if isinstance(rules, (list, tuple)) else rules


def _inherit(rule: Any, sites: Mapping[str, Any]) -> Any:
    """A site in a rule takes the keys that it leaves out from ``quantize.weight`` or ``quantize.input``."""
    if not isinstance(rule, Mapping):
        return rule
    changed = {key: rule[key] for key in ("weight", "input") if isinstance(rule.get(key), Mapping)}
    return {**rule, **{key: {**_defaults(sites.get(key), site), **site} for key, site in changed.items()}}


def _defaults(base: SiteConfig | None, site: Mapping[str, Any]) -> dict[str, Any]:
    # None: the base has errors of its own. A new granularity does not come with the old group size.
    left_out = {"group_size"} if "granularity" in site else set()
    return {} if base is None else base.model_dump(exclude=left_out)


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
    output: Text = "results"

    @field_validator("allocation")
    @classmethod
    def _bits_or_budget(cls, allocation: AllocationConfig, info: ValidationInfo) -> AllocationConfig:
        # On the field and not on the whole run, so that it is reported together with errors elsewhere.
        neither = allocation.bits is None and allocation.budget is None
        if neither and info.data.get("flow") in ("ptq", "qat"):
            raise combination("", f"flow {info.data['flow']} needs 'bits: [weight_bits, input_bits]' or 'budget'")
        return allocation
