"""The settings of a run: types, limits and defaults. Nothing here knows which quantizers or models exist.

Names of quantizers, models and so on are plain text; `qresearch.config.names` compares them with the registries, which
import jax. Every type carries the words that an error uses for what it expects.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError


def expect(words: str) -> WrapValidator:
    """Whatever is wrong with the value, the error says that ``words`` were expected."""

    def check(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        try:
            return handler(value)
        except ValidationError:
            raise PydanticCustomError("expected", "{words}", {"words": words}) from None

    return WrapValidator(check)


def combination(key: str, message: str) -> PydanticCustomError:
    """The error that values do not go together. ``key``: the one to name, or "" for their section."""
    return PydanticCustomError("combination", "{message}", {"key": key, "message": message})


def _no_dots(name: str) -> str:
    if ".." in name:
        raise ValueError("'..' leaves the folder")
    return name


def _pairs(options: Any) -> Any:
    listed = options.items() if isinstance(options, Mapping) else options
    return tuple(sorted(tuple(pair) for pair in listed)) if isinstance(options, Mapping | list | tuple) else options


def _menu(menu: tuple[Any, ...]) -> tuple[Any, ...]:
    if menu and len(set(menu)) == len(menu):
        return menu
    raise PydanticCustomError("expected", "{words}", {"words": "a list of one or more different pairs"})


# YAML has lists; a frozen config has tuples.
_AS_TUPLE = BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value)

Text = Annotated[str, Field(min_length=1), expect("text")]
RunName = Annotated[
    str,
    Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$"),
    AfterValidator(_no_dots),
    expect("up to 64 of a-z, 0-9, '.', '_', '-', beginning with a letter or digit and without '..'"),
]
# Registry names become parts of folder names.
Name = Annotated[
    str,
    Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,39}$"),
    AfterValidator(_no_dots),
    expect("a name of letters, digits, '.', '_', '-'"),
]
Whole = Annotated[int, Field(ge=0), expect("a whole number >= 0")]
Count = Annotated[int, Field(gt=0), expect("a whole number > 0")]
# jax keeps the low 32 bits of a seed: larger seeds would repeat smaller ones.
Seed = Annotated[int, Field(ge=0, lt=2**32), expect("a whole number from 0 to 4294967295")]
# abs: -0.0 and 0.0 are one setting, and must have one hash.
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False), AfterValidator(abs), expect("a number >= 0")]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False), expect("a number > 0")]
Fraction = Annotated[float, Field(ge=0, lt=1), AfterValidator(abs), expect("a number >= 0 and < 1")]
Bits = Annotated[int, Field(ge=0, le=32)]
Option = Annotated[
    tuple[Bits, Bits], _AS_TUPLE, expect("a pair [weight_bits, input_bits] of whole numbers from 0 to 32")
]
Menu = Annotated[tuple[Option, ...], AfterValidator(_menu), _AS_TUPLE]
# The method's own options, a mapping in YAML; sorted pairs, because a config is hashed.
Options = Annotated[
    tuple[tuple[str, bool | int | float | str], ...],
    BeforeValidator(lambda value: _pairs(value)),
    expect("a mapping from option names to numbers, texts, true or false"),
]
Flow = Literal["float", "ptq", "qat"]
Granularity = Literal["per_tensor", "per_channel", "per_group", "per_token"]


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
    """One training phase: float training or QAT."""

    epochs: Whole = 20
    batch_size: Count = 64
    learning_rate: Positive = 3e-3
    optimizer: Literal["adam", "sgd", "adamw"] = "adam"
    momentum: Fraction = 0.9
    weight_decay: NonNegative = 0.0
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup_epochs: Whole = 0
    clip_norm: Positive | None = None


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


class QuantizeConfig(Section):
    """How layers are quantized, and the bits that they may have."""

    weight: WeightSiteConfig = WeightSiteConfig()
    input: SiteConfig = SiteConfig()
    menu: Menu = ((2, 2), (3, 3), (4, 4), (6, 6), (8, 8))
    rules: Annotated[tuple[RuleConfig, ...], _AS_TUPLE] = ()

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


class CalibrationConfig(Section):
    """How many training examples set the initial scales."""

    examples: Count = 256


class SensitivityConfig(Section):
    """How many validation examples the sensitivity of each layer is measured on."""

    examples: Count = 512


class AllocationConfig(Section):
    """The bits of every layer: ``bits`` for all of them, or the allocator's choice within a budget of ``cost``."""

    allocator: Name = "uniform"
    bits: Option | None = None
    budget: Positive | None = None
    cost: Name = "average_bits"

    @model_validator(mode="after")
    def _not_both(self) -> AllocationConfig:
        if self.bits is not None and self.budget is not None:
            raise combination("budget", "bits are given too; keep one of 'bits' and 'budget' and set the other to null")
        return self


class EvaluateConfig(Section):
    """How accuracy is measured. ``examples`` None: on all test examples."""

    batch_size: Count = 500
    examples: Count | None = None


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
    qat: TrainConfig = TrainConfig()
    allocation: AllocationConfig = Field(AllocationConfig(), validate_default=True)
    evaluate: EvaluateConfig = EvaluateConfig()
    output: Text = "results"

    @field_validator("allocation")
    @classmethod
    def _bits_or_budget(cls, allocation: AllocationConfig, info: ValidationInfo) -> AllocationConfig:
        # On the field and not on the whole run, so that it is reported together with errors elsewhere.
        neither = allocation.bits is None and allocation.budget is None
        if neither and info.data.get("flow") in ("ptq", "qat"):
            raise combination("", f"flow {info.data['flow']} needs 'bits: [weight_bits, input_bits]' or 'budget'")
        return allocation
