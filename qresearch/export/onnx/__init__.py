"""ONNX: quantized models in the format that other runtimes read, written by the package ``onnx`` (extra ``export``)."""

from qresearch.export.onnx.export import Exported, ExportedLayer, Operand, export_onnx, reduced_range
from qresearch.export.onnx.files import SESSION_OPTIONS, OnnxCheck, check_onnx, run_onnx, session, write_onnx

__all__ = [
    "SESSION_OPTIONS",
    "Exported",
    "ExportedLayer",
    "OnnxCheck",
    "Operand",
    "check_onnx",
    "export_onnx",
    "reduced_range",
    "run_onnx",
    "session",
    "write_onnx",
]
