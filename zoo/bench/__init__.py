"""Our models beside their peers in one run: same process, same inputs, turn and turn about."""

from zoo.bench.classifiers import bench_classifier, to_text

__all__ = ["bench_classifier", "to_text"]
