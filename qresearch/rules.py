"""Rules: which layers are quantized, with what, and the menu of widths they may take."""

from __future__ import annotations

import functools
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

from qresearch.errors import GraphError, did_you_mean
from qresearch.graph import Contraction, Layer
from qresearch.graph.layer import EMBEDDING, PRODUCT, is_optional
from qresearch.numerics.fake_quant import MASKS
from qresearch.numerics.granularity import PER_TENSOR, Granularity, per_channel, per_group
from qresearch.numerics.ranges import RANGES
from qresearch.numerics.rounding import ROUNDINGS
from qresearch.quantizers import QUANTIZERS, Quantizer, QuantSpec, make_quantizer
from qresearch.quantizers.base import Factory, UnsupportedSpecError

Option = tuple[int, int]  # (weight_bits, input_bits); 0 prunes, 32 keeps float
AUTO = "auto"
GRANULARITIES = ("per_tensor", "per_channel", "per_group", "per_token")
SHARED = ("one", "each")


def _known(what: str, value: str | None, known: tuple[str | None, ...]) -> None:
    if value not in known:
        raise GraphError(f"unknown {what} '{value}'{did_you_mean(str(value), map(str, known))}")


@dataclass(frozen=True)
class SiteRule:
    """How one operand of a layer is quantized.

    quantizer: name in ``QUANTIZERS``. granularity: per_tensor; per_channel (output channels of a kernel, contracted
    channels of an input); per_group (``group_size`` consecutive elements along the contracted channels); per_token, for
    inputs of methods that take their range from every tensor anew (one scale for all that is summed into one output:
    for every index of the axes that are not contracted, and in a convolution for every example).
    signed: None decides from calibration data for an input (negative values seen?) and is True for a kernel.
    range: name in ``RANGES``; None for the method's own initialisation; "auto" is "mse" for a method that keeps a
    calibrated range, and the method's own for the others (which take theirs from every tensor, or have none).
    mask, symmetric, narrow, rounding: see ``QuantSpec``. options: the method's own, as (name, value) pairs.
    """

    quantizer: str = "minmax"
    granularity: str = "per_tensor"
    group_size: int | None = None
    signed: bool | None = None
    symmetric: bool = True
    narrow: bool = False
    range: str | None = AUTO
    mask: str | None = None
    rounding: str = "half_even"
    options: tuple[tuple[str, Any], ...] = ()

    def __post_init__(self) -> None:
        _known("quantizer", self.quantizer, tuple(QUANTIZERS))
        _known("granularity", self.granularity, GRANULARITIES)
        _known("range", self.range, (None, AUTO, *RANGES))
        _known("mask", self.mask, (None, *MASKS))
        _known("rounding", self.rounding, (*ROUNDINGS, "stochastic"))

    def build(self, contraction: Contraction, operand: str, signed: bool) -> Quantizer:
        """The quantizer of this rule for the ``operand`` ("weight" or "input") of a contraction."""
        spec = QuantSpec(
            signed=signed,
            symmetric=self.symmetric,
            granularity=self._granularity(contraction, operand),
            narrow=self.narrow,
            mask=self.mask,
            rounding=self.rounding,
        )
        quantizer = self._method(spec)
        by_position = self.granularity == "per_token" or (self.granularity == "per_group" and operand == "input")
        if by_position and "calibrates_in_apply" not in quantizer.traits:
            raise GraphError(
                f"quantizer '{self.quantizer}' keeps the scales of the calibration batch, whose examples do not come"
                f" again: {self.granularity} inputs need a method that takes its range from every tensor anew"
            )
        return quantizer

    @property
    def width(self) -> int | None:
        """The bits of a stored value where the method has its own width (binary, ternary, float formats), else None."""
        spec = QuantSpec(symmetric=self.symmetric, narrow=self.narrow, mask=self.mask, rounding=self.rounding)
        return self._method(spec).width

    def stored(self, contraction: Contraction, operand: str) -> tuple[int, int]:
        """How many (scales, zero-points) are stored for an operand; none where every tensor brings its own."""
        if self.granularity == "per_token":
            return 0, 0
        granularity = self._granularity(contraction, operand)
        shape = contraction.weight_shape if operand == "weight" else contraction.input_shape
        scales = math.prod(shape[axis] for axis in granularity.keep)
        if granularity.group is not None:
            scales = math.prod(shape) // granularity.group[1]
        return scales, 0 if self.symmetric else scales

    def _method(self, spec: QuantSpec) -> Quantizer:
        """The quantizer for a specification, with the range of this rule."""
        return _made(self, spec, QUANTIZERS.get(self.quantizer))

    def _granularity(self, contraction: Contraction, operand: str) -> Granularity:
        if contraction.product and self.granularity not in ("per_tensor", "per_token"):
            raise GraphError(
                "both operands of a product are data, whose rows and columns are others in every batch: its rule must"
                " have granularity per_tensor (or per_token, for a method that takes its range from every tensor anew)"
                f" for weight and input, got {self.granularity} for its {operand}"
            )
        contracting = contraction.weight_contracting if operand == "weight" else contraction.input_contracting
        if self.granularity == "per_tensor":
            return PER_TENSOR
        if self.granularity == "per_channel":
            return per_channel(*(contraction.channel_axes if operand == "weight" else contracting))
        if self.granularity == "per_token":
            return per_channel(*_token_axes(contraction, operand))
        # A convolution lists its channel axis first and its window after it; a dot has channels only.
        if not contracting:
            raise GraphError("per_group needs entries of several elements, but what is looked up holds one each")
        axis = contracting[0] if contraction.kind == "conv_general_dilated" else contracting[-1]
        return per_group(axis, self.group_size or 0)


@functools.lru_cache(maxsize=256)
def _made(site: SiteRule, spec: QuantSpec, factory: Factory | None) -> Quantizer:
    """The same object for all layers whose choices are equal, so that its contract is checked once. factory: see
    ``factories``.
    """

    def make(spec: QuantSpec) -> Quantizer:
        return make_quantizer(site.quantizer, spec, **dict(site.options))

    if site.range != AUTO:
        return make(replace(spec, range=site.range))
    own = make(spec)
    if "calibrates_in_apply" in own.traits:
        return own
    try:
        return make(replace(spec, range="mse"))
    except UnsupportedSpecError:
        return own


KERNEL = SiteRule(granularity="per_channel")


@dataclass(frozen=True)
class Rule:
    """What happens to the layers whose name matches ``pattern`` (a glob; ``*`` also crosses ``/``).

    Products of data (attention's) and embedding look-ups are layers only where a pattern that begins with ``product:``
    or ``embedding:`` asks. A product's right operand is quantized as ``weight`` says (if left out, as ``input``), its
    left one as ``input``. A look-up has the indices as its input, which stay as they are.

    weight, input: how each operand is quantized, None keeps it in float (both None: not a layer to allocate bits to).
    menu: the options these layers may take; a menu of one option pins them. shared: whether several uses of one
    kernel are "one" layer (one width, one scale, stored once) or "each" a layer of its own.
    """

    pattern: str = "*"
    weight: SiteRule | None = KERNEL
    input: SiteRule | None = field(default_factory=SiteRule)
    menu: tuple[Option, ...] = ((2, 2), (3, 3), (4, 4), (6, 6), (8, 8))
    shared: str = "one"

    def __post_init__(self) -> None:
        _known("shared", self.shared, SHARED)
        if self.pattern.startswith(PRODUCT) and self.weight is KERNEL:  # left out: this object is nobody else's
            object.__setattr__(self, "weight", self.input or SiteRule())
        # Rules are keys of memoized functions, so a menu written as lists becomes tuples.
        object.__setattr__(self, "menu", tuple((weight, input) for weight, input in self.menu))
        if not self.menu:
            raise GraphError(f"the menu of rule '{self.pattern}' is empty: give it at least one option, such as (8, 8)")

    @property
    def quantizes(self) -> bool:
        """Whether either operand is quantized."""
        return self.weight is not None or self.input is not None

    def options(self) -> tuple[Option, ...]:
        """The menu, with 32 in place of the width of an operand that stays in float, and its own width in place of
        one that a method does not follow, so that costs are what is stored.
        """
        pairs = ((_stored_bits(self.weight, w), _stored_bits(self.input, a)) for w, a in self.menu)
        return tuple(dict.fromkeys(pairs))


def assign_rules(rules: Sequence[Rule], layers: Sequence[Layer], unreachable: Collection[str] = ()) -> dict[str, Rule]:
    """The first matching rule of every layer, by its name; layers that no rule matches, or that stay in float, are
    absent.

    unreachable: names of kernels that cannot be quantized, which a rule may match to leave them in float. GraphError
    for a rule that matches no layer (a misspelt pattern would leave the model silently in float), or that never
    applies because earlier rules took all its layers.
    """
    every = [*(layer.name for layer in layers), *unreachable]
    first = {name: next((i for i, rule in enumerate(rules) if _matches(rule, name)), None) for name in every}
    for i, rule in enumerate(rules):
        names = [name for name in every if is_optional(name) == is_optional(rule.pattern)]
        matched = [name for name in names if _matches(rule, name)]
        if not matched and (names or is_optional(rule.pattern)):
            close = did_you_mean(rule.pattern.strip("*/"), {*names, *(name.split("/")[0] for name in names)})
            raise GraphError(f"rule pattern '{rule.pattern}' matches no layer{close}")
        if names and i not in first.values() and rule.pattern != "*":
            raise GraphError(
                f"rule pattern '{rule.pattern}' never applies: earlier rules match all its layers; put it first"
            )
    found = {layer.name: first[layer.name] for layer in layers}
    chosen = {name: _as_applied(rules[i], name) for name, i in found.items() if i is not None}
    return {name: rule for name, rule in chosen.items() if rule.quantizes}


def factories(rules: Sequence[Rule]) -> tuple[Factory | None, ...]:
    """What the quantizers' names of these rules stand for now: a script may give a name another method."""
    sites = [site for rule in rules for site in (rule.weight, rule.input) if site is not None]
    return tuple(QUANTIZERS.get(site.quantizer) for site in sites)


def _matches(rule: Rule, name: str) -> bool:
    """Whether the pattern takes a layer of this name: one that is optional must be asked for by its own prefix."""
    prefix = next((prefix for prefix in (PRODUCT, EMBEDDING) if name.startswith(prefix)), "")
    return rule.pattern.startswith(prefix) and fnmatchcase(name, rule.pattern)


def _as_applied(rule: Rule, name: str) -> Rule:
    """The rule as the layer of this name takes it: the indices of a look-up are never quantized."""
    return replace(rule, input=None) if name.startswith(EMBEDDING) else rule


def _stored_bits(site: SiteRule | None, bits: int) -> int:
    if site is None:
        return 32
    return bits if site.width is None or bits in (0, 32) else site.width


def _token_axes(contraction: Contraction, operand: str) -> tuple[int, ...]:
    """The axes of data that are not summed over; a convolution's window sums over its spatial axes too."""
    if operand == "weight" and contraction.product:
        return contraction.channel_axes
    if operand == "weight":
        raise GraphError("per_token is a granularity of inputs: give a kernel per_tensor, per_channel or per_group")
    if contraction.kind == "conv_general_dilated":
        return (dict(contraction.parameters)["dimension_numbers"].lhs_spec[0],)
    summed = contraction.input_contracting
    return tuple(axis for axis in range(len(contraction.input_shape)) if axis not in summed)


def stays_float(name: str, rules: Sequence[Rule]) -> bool:
    """Whether the rules leave a layer of this name in float."""
    rule = next((rule for rule in rules if _matches(rule, name)), None)
    return rule is None or not _as_applied(rule, name).quantizes
