"""Benchmarks of our models and the same models of other libraries: a process per case, in turns."""

from zoo.bench.cases import Case, Ratio, Report, Result
from zoo.bench.harness import bench
from zoo.bench.table import to_text

__all__ = ["Case", "Ratio", "Report", "Result", "bench", "to_text"]
