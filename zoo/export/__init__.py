"""ONNX: write models as one verified file each, and run them. `onnx` and `onnxruntime` are imported when used."""

from zoo.export.emit import emit, to_proto
from zoo.export.exporter import ExportReport, export_onnx
from zoo.export.rules import register_emission
from zoo.export.runtime import OnnxModel
from zoo.export.verify import Check

__all__ = ["Check", "ExportReport", "OnnxModel", "emit", "export_onnx", "register_emission", "to_proto"]
