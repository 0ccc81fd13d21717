"""The settings of how layers are quantized: the key ``quantize``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Tag, ValidationInfo, field_validator, model_validator

from qresearch.config.fields import (
    AS_TUPLE,
    Count,
    Granularity,
    Menu,
    Name,
    Option,
    Options,
    Section,
    Text,
    Tied,
    Whole,
    combination,
    expect,
)


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
