"""The packages of the extra ``export``, imported where they are needed."""

from __future__ import annotations

from typing import Any

from qresearch.errors import DataError

ADVICE = "pip install 'qresearch[export]'"


def import_onnx() -> Any:
    """The package onnx, with its helpers; DataError, one line, where it is missing."""
    try:
        import onnx
        import onnx.checker
        import onnx.helper
        import onnx.numpy_helper
    except ImportError as error:
        raise DataError(f"export to ONNX: onnx cannot be imported ({error}); {ADVICE}") from None
    return onnx


def import_onnxruntime() -> Any:
    """The package onnxruntime; DataError, one line, where it is missing."""
    try:
        import onnxruntime
    except ImportError as error:
        raise DataError(f"ONNX Runtime: onnxruntime cannot be imported ({error}); {ADVICE}") from None
    return onnxruntime
