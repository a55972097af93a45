"""Our models beside their peers in one run: a process for each case, turn and turn about."""

from zoo.bench.cases import Case, Ratio, Report, Result
from zoo.bench.harness import bench
from zoo.bench.table import to_text

__all__ = ["Case", "Ratio", "Report", "Result", "bench", "to_text"]
