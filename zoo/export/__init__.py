"""ONNX: models written as one verified file, and files that predict. `onnx` and `onnxruntime` load when used."""

from zoo.export.emit import emit, to_proto
from zoo.export.exporter import ExportReport, export_onnx
from zoo.export.rules import register_emission
from zoo.export.runtime import OnnxModel
from zoo.export.verify import Check

__all__ = ["Check", "ExportReport", "OnnxModel", "emit", "export_onnx", "register_emission", "to_proto"]
