"""Granularity: which elements of a tensor share one scale."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Array, Float

from qresearch.errors import GraphError


@dataclass(frozen=True, repr=False)
class Granularity:
    """Which elements share a scale. Build with ``PER_TENSOR``, ``per_channel(...)`` or ``per_group(...)``.

    keep: the axes along which the scale varies (per-channel). group: (axis, size) for per-group: consecutive ``size``
    elements along ``axis`` share a scale and nothing else does.
    """

    keep: tuple[int, ...] = ()
    group: tuple[int, int] | None = None

    def __repr__(self) -> str:
        """As it is built: errors print it."""
        if self.group is not None:
            return f"per_group({self.group[0]}, {self.group[1]})"
        return f"per_channel({', '.join(map(str, self.keep))})" if self.keep else "per_tensor"

    def view(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """The view of x on which scales have the rank of x: per-group splits its axis into (groups, size)."""
        if self.group is None:
            return x
        axis, size = self.group[0] % x.ndim, self.group[1]
        if x.shape[axis] % size:
            raise GraphError(
                f"group_size {size} does not divide the {x.shape[axis]} elements of axis {axis} of a tensor of"
                f" shape {x.shape}; choose a divisor, or per_channel for this layer"
            )
        return x.reshape(*x.shape[:axis], x.shape[axis] // size, size, *x.shape[axis + 1 :])

    def shared_axes(self, ndim: int) -> tuple[int, ...]:
        """The axes of the *view* (of rank ``ndim``) over which elements share a scale."""
        if self.group is not None:
            return (self.group[0] % (ndim - 1) + 1,)
        keep = {axis % ndim for axis in self.keep}
        return tuple(axis for axis in range(ndim) if axis not in keep)


PER_TENSOR = Granularity()


def per_channel(*axes: int) -> Granularity:
    """One scale for every index along ``axes``."""
    return Granularity(keep=axes)


def per_group(axis: int, size: int) -> Granularity:
    """One scale for every ``size`` consecutive elements along ``axis``, separately at every index of the other axes."""
    if size < 1:
        raise GraphError(f"group_size must be at least 1, got {size}")
    return Granularity(group=(axis, size))
