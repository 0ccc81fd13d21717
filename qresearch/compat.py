"""What differs between the JAX versions we support (0.10 on Python 3.11, 0.11 on Python 3.12). Nothing else may
know.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax
from jax._src import xla_bridge
from jax._src.interpreters import partial_eval
from jax.extend import core


def open_jaxpr(jaxpr: Any) -> tuple[Any, tuple[Any, ...]]:
    """(jaxpr, consts) of an equation's inner jaxpr: 0.10 has open and closed ones, 0.11 only one kind."""
    return getattr(jaxpr, "jaxpr", jaxpr), tuple(getattr(jaxpr, "consts", ()))


def scan_counts(params: dict[str, Any]) -> tuple[int, int]:
    """(constants, carries) of a scan equation."""
    if "num_consts" in params:
        return params["num_consts"], params["num_carry"]
    consts, carry, _ = params["ft_in"].unpack()
    return len(tuple(consts)), len(tuple(carry))


def evaluate_equation(equation: Any, values: Sequence[Any]) -> list[Any]:
    """Runs one equation as JAX itself would, whatever rules its primitive needs, and returns all its outputs.

    A jaxpr of that single equation goes through JAX's own evaluator: how bind parameters are recovered (a tuple once,
    a dict in 0.10.2) stays JAX's business.
    """
    variables = [atom for atom in equation.invars if not isinstance(atom, core.Literal)]
    unique = list(dict.fromkeys(variables))
    given = {atom: value for atom, value in zip(equation.invars, values) if not isinstance(atom, core.Literal)}
    kept = [i for i, atom in enumerate(equation.outvars) if not is_dropped(atom)]
    # Without it JAX warns of deprecation, and the project runs with warnings as errors.
    names = core.DebugInfo("interpreter", equation.primitive.name, None, None)
    outvars = [equation.outvars[i] for i in kept]
    jaxpr = core.Jaxpr([], unique, outvars, [equation], equation.effects, debug_info=names)
    outputs = core.jaxpr_as_fun(core.ClosedJaxpr(jaxpr, []))(*(given[atom] for atom in unique))
    results: list[Any] = [None] * len(equation.outvars)
    for i, output in zip(kept, outputs):
        results[i] = output
    return results


def used_inputs(closed: Any) -> list[bool]:
    """Which inputs of a traced function its outputs depend on, through scans and other inner jaxprs too."""
    jaxpr, _ = open_jaxpr(closed)
    return partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[1]


def stay_on_cpu() -> None:
    """Keeps JAX in this process off accelerators, whose memory workers need. Without effect once JAX has started."""
    if not xla_bridge.backends_are_initialized():
        jax.config.update("jax_platforms", "cpu")


def is_literal(atom: Any) -> bool:
    """Whether an equation's input is a constant written into the jaxpr."""
    return isinstance(atom, core.Literal)


def is_dropped(atom: Any) -> bool:
    """Whether an equation's output is used by nobody."""
    return isinstance(atom, core.DropVar)


def gpu_to_lower_for() -> AbstractContextManager[Any]:
    """Within it, programs that hold our kernels are lowered and exported for CUDA on a machine without a GPU.

    JAX 0.11 wants to know for which GPU, though a kernel is compiled by the one that runs it, whichever that is.
    """
    if jax.__version_info__ < (0, 11) or jax.default_backend() == "gpu":
        return nullcontext()
    device = jax.sharding.AbstractDevice(device_kind="NVIDIA H100", num_cores=None, platform="cuda")
    return jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=device))
