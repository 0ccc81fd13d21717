"""The contract of a method, asked of shapes alone before anything is computed with it."""

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


@functools.lru_cache(maxsize=1024)
def check_contract(quantizer: Quantizer, shape: tuple[int, ...], dtype: Any, stochastic: bool = False) -> None:
    """ContractError where, for an x of this shape and dtype, ``init`` gives no NamedTuple, ``apply`` gives another
    shape or dtype than x's, or one of them cannot be traced; its cause is what they raised. stochastic: its rounding
    is, so that ``apply`` may refuse to run without a key.
    """
    x, bits = jax.ShapeDtypeStruct(shape, dtype), jax.ShapeDtypeStruct((), jnp.float32)
    qparams = _traced("init", quantizer.init, x, bits)
    if not (isinstance(qparams, tuple) and hasattr(qparams, "_fields")):
        raise ContractError(f"init must return a NamedTuple, got {type(qparams).__name__}")
    key = jax.eval_shape(lambda: jax.random.key(0))
    for given in [key] if stochastic else [None, key] if "needs_key" in quantizer.traits else [None]:
        same_form(_traced("apply", quantizer.apply, qparams, x, bits, key=given), x)


def _traced(what: str, function: Callable[..., Any], *arguments: Any, **more: Any) -> Any:
    """The shapes that a method's function gives."""
    try:
        return jax.eval_shape(function, *arguments, **more)
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
