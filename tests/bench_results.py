"""Made-up results and a report for the tests of `zoo bench`."""

from zoo.bench.cases import Case, Ratio, Report, Result
from zoo.bench.timing import percentile


def fields(cases, *names):
    return [tuple(getattr(case, name) for name in names) for case in cases]


def result(rounds, error=None, **case):
    case = Case(**{"name": "convnext_tiny", **case})
    p50 = percentile(rounds, 0.5) if rounds else None
    per_second = case.batch_size / p50 if p50 else None
    return Result(case, "cpu", 28_589_128, 8_911_000_000, 1.25, 3.5, rounds, p50, p50, per_second, error=error)


OURS_ON_JAX = result([[1.0], [10.0], [2.0]], backend="jax", mode="compiled")
THEIRS_ON_JAX = result([[3.0], [20.0], [8.0]], backend="jax", mode="compiled", library="keras_applications")
TIMM = result([[0.5], [4.0], [4.0]], library="timm")
OURS_ON_TORCH = result([[0.5], [5.0], [0.5]])


REPORT = Report(
    "zoo bench convnext_tiny",
    {"processor": "a made-up one"},
    {"jax, float32": 368e9},
    (OURS_ON_JAX, THEIRS_ON_JAX, result([], backend="jax", mode="compiled", library="timm", error="no such file")),
    (Ratio(0, 1, 3.0, 2.0, 4.0),),
)
