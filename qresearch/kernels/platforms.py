"""A choice by platform that is made when a program is lowered, also for several platforms at once."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.extend import core
from jax.interpreters import batching, mlir
from jaxtyping import Array

by_platform_p = core.Primitive("by_platform")


def by_platform(*arguments: Any, cuda: Callable[..., Array], default: Callable[..., Array]) -> Array:
    """``cuda(*arguments)`` where the program runs on CUDA, else ``default(*arguments)``, an array of the same type.

    ``lax.platform_dependent`` would be this, but in a program exported for several platforms it lowers each branch for
    all of them (JAX 0.10.2 and 0.11.2), and a Pallas kernel has no lowering for CPUs. Works under jit and vmap.
    """
    leaves, tree = jax.tree.flatten(arguments)

    def flat(function: Callable[..., Array]) -> Callable[..., Array]:
        return lambda *leaves: function(*jax.tree.unflatten(tree, leaves))

    return by_platform_p.bind(*leaves, cuda=flat(cuda), default=flat(default))


def _batched(values: Sequence[Array], axes: Sequence[Any], *, cuda: Any, default: Any) -> tuple[Array, int]:
    over = functools.partial(jax.vmap, in_axes=tuple(axes))
    return by_platform_p.bind(*values, cuda=over(cuda), default=over(default)), 0


def _lowered(ctx: Any, *values: Any, chosen: str, **branches: Any) -> Any:
    return mlir.lower_fun(branches[chosen], multiple_results=False)(ctx, *values)


by_platform_p.def_impl(lambda *values, **branches: jax.jit(functools.partial(by_platform_p.bind, **branches))(*values))
by_platform_p.def_abstract_eval(lambda *avals, cuda, default: jax.typeof(jax.eval_shape(default, *avals)))
batching.primitive_batchers[by_platform_p] = _batched
mlir.register_lowering(by_platform_p, functools.partial(_lowered, chosen="default"))
mlir.register_lowering(by_platform_p, functools.partial(_lowered, chosen="cuda"), platform="cuda")
