"""Layers: the contractions of a function whose kernel comes from a parameter, and what a rule may make one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

# How the names begin of what is a layer only where a rule asks, by a pattern that begins so too.
PRODUCT = "product:"
EMBEDDING = "embedding:"


@dataclass(frozen=True)
class Contraction:
    """The static facts of a ``dot_general``, ``conv_general_dilated`` or ``gather`` equation, seen from its kernel.

    channel_axes: the kernel's axes that become output channels. weight_contracting, input_contracting: the axes
    summed over, in the kernel and in the input. parameters: the equation's own, for handlers that replace it.

    product: both operands are data, and the right one stands in the kernel's place. Of a gather, an embedding look-up,
    the input is the indices; what it looks up has channel axes (each entry keeps a scale, as in tied logits), and the
    axes of an entry stand in the place of the contracted ones.
    """

    kind: str  # "dot_general", "conv_general_dilated" or "gather"
    weight_operand: int  # 0 (left) or 1 (right)
    weight_shape: tuple[int, ...]
    input_shape: tuple[int, ...]
    channel_axes: tuple[int, ...]
    weight_contracting: tuple[int, ...]
    input_contracting: tuple[int, ...]
    macs: int  # multiply-accumulates of one execution, padding taps included
    feature_groups: int = 1
    product: bool = False
    parameters: tuple[tuple[str, Any], ...] = field(default=(), repr=False, compare=False)

    @property
    def channel_pair(self) -> tuple[int, int]:
        """(weight axis, input axis) of the contracted channels: the last pair of a dot, and of a convolution the input
        features, which stand before its window.
        """
        which = 0 if self.kind == "conv_general_dilated" else -1
        return self.weight_contracting[which], self.input_contracting[which]


@dataclass(frozen=True)
class Layer:
    """A kernel with its input: the unit that an allocation gives bits to.

    name: the kernel parameter's path, ``Conv_0/kernel``; the second use of one kernel is ``Conv_0/kernel#2``,
    iteration 3 of a scanned stack is ``blocks/kernel@3``. parameter: that path itself. macs: multiply-accumulates per
    example. size: weights. calls: executions per call of the function (a kernel that a scan reuses is called once an
    iteration). whole: the kernel has all elements of its parameter; a slice of a fused one has not. recipe: equal for
    uses of one parameter after the same operations, casts aside; a transposed use differs.

    Where a rule asks: ``embedding:tokens/embedding`` is a look-up (no macs), and ``product:Block_0/Attention_0`` a
    product of two data operands, named after its scopes; the next one there has ``#2``. It stores nothing: size 0.
    """

    name: str
    parameter: str
    contraction: Contraction
    macs: int
    size: int
    calls: int = 1
    whole: bool = True
    recipe: int = field(default=0, repr=False, compare=False)

    @property
    def input_site(self) -> str:
        """The name of the input's site: ``Conv_0/input`` for the layer ``Conv_0/kernel``."""
        path, mark, rest = self.name, "", ""
        for i, character in enumerate(self.name):
            if character in "#@":
                path, mark, rest = self.name[:i], character, self.name[i + 1 :]
                break
        parent = path if self.contraction.product else path.rpartition("/")[0]
        return (f"{parent}/input" if parent else "input") + mark + rest


@dataclass(frozen=True)
class Unassigned:
    """A contraction that is not a layer, and why. macs: per example, as a layer's (a while loop's body counts once).
    refused: it has a kernel, but sits where we cannot reach it. optional: its name as a layer, if a rule asks for it.
    """

    name: str
    reason: str
    macs: int
    source: str = ""
    refused: bool = False
    optional: str = ""


def is_optional(name: str) -> bool:
    """Whether a layer of this name, or whatever matches this pattern, is a layer only where a rule asks."""
    return name.startswith((PRODUCT, EMBEDDING))
