"""The contract of a method, checked where it calibrates; of ``apply`` by shapes alone, before anything is computed."""

from __future__ import annotations

import functools
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from qresearch.errors import QResearchError
from qresearch.quantizers.base import ContractError, Quantizer, same_form

_ELSEWHERE = (str(Path(jax.__file__).parent), __file__)  # frames that are not the method's


def calibrated(quantizer: Quantizer, x: Any, bits: Any, stochastic: bool = False) -> Any:
    """``init(x, bits)``. ContractError where it gives no NamedTuple, where ``apply`` gives another shape or dtype than
    x's, or where one of them raises; its cause is what they raised. stochastic: the method's rounding is, so that
    ``apply`` may refuse to run without a key.
    """
    qparams = _told("init", quantizer.init, x, bits)
    if not (isinstance(qparams, tuple) and hasattr(qparams, "_fields")):
        given = "an array" if isinstance(qparams, jax.Array) else type(qparams).__name__
        raise ContractError(f"init must return a NamedTuple, got {given}")
    leaves, tree = jax.tree.flatten(qparams)
    forms = tuple((jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves)
    _check_apply(quantizer, (x.shape, x.dtype), forms, tree, stochastic)
    return qparams


@functools.lru_cache(maxsize=1024)
def _check_apply(quantizer: Quantizer, form: Any, forms: tuple[Any, ...], tree: Any, stochastic: bool) -> None:
    """Once for equal shapes: a model has many layers alike."""
    x, bits = jax.ShapeDtypeStruct(*form), jax.ShapeDtypeStruct((), jnp.float32)
    qparams = jax.tree.unflatten(tree, [jax.ShapeDtypeStruct(*leaf) for leaf in forms])
    apply, key = functools.partial(jax.eval_shape, quantizer.apply), jax.eval_shape(lambda: jax.random.key(0))
    for given in [key] if stochastic else [None, key] if "needs_key" in quantizer.traits else [None]:
        same_form(_told("apply", apply, qparams, x, bits, key=given), x)


def _told(what: str, function: Callable[..., Any], *arguments: Any, **more: Any) -> Any:
    """What a function of the method gives; what it raises, in one line."""
    try:
        return function(*arguments, **more)
    except QResearchError:
        raise
    except Exception as error:  # the method is anybody's: so is what it raises
        first = (str(error).splitlines() or [""])[0].rstrip(".")
        traced = isinstance(error, jax.errors.JAXTypeError)
        said = first if traced else ": ".join(filter(None, (type(error).__name__, first)))
        hint = "; bits is traced: no if, float() or numpy on it, but jnp.where and jax.numpy" if traced else ""
        raise ContractError(f"{what}: {said}{_place(error)}{hint}") from error


def _place(error: Exception) -> str:
    """`` (balanced.py:23)``: the method's line, not JAX's."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(_ELSEWHERE)]
    return f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
