"""A classifier of the zoo against keras.applications' model of the same size, `predict` and a training step."""

import dataclasses
from dataclasses import dataclass

from zoo.bench.timing import ratio, take_turns
from zoo.registry import create_model, find

PEERS = {  # ours: keras.applications' builder of the same size
    **{f"convnext_{size}": f"ConvNeXt{name}" for size, name in (
        ("tiny", "Tiny"), ("small", "Small"), ("base", "Base"), ("large", "Large"), ("xlarge", "XLarge"),
    )},
    **{f"resnet{depth}": f"ResNet{depth}" for depth in (50, 101, 152)},
}  # fmt: skip


@dataclass(frozen=True)
class Result:
    """One line of the benchmark: seconds, and how many times as long the model takes as ours."""

    model: str
    job: str
    backend: str
    batch_size: int
    image_size: int
    build_seconds: float
    first_call_seconds: float
    median_seconds: float
    images_per_second: float
    times_ours: float


def bench_classifier(name, *, batch_size=8, image_size=224, rounds=5, train=False):
    """Times a classifier and its peer in keras.applications, both with random weights, stem stride 4.

    Args:
        name: of a classifier in the zoo.
        batch_size, image_size: of the random images.
        rounds: timed calls of each model and job.
        train: time a training step too (AdamW, cross-entropy).

    Returns:
        A list of `Result`, ours first for each job.

    Raises:
        ValueError: an unknown name, or a pair's.
    """
    entry = find(name)
    if entry.family == "clip":
        raise ValueError(f"This benchmark times classifiers, and {entry.name} is a pair.")
    return [
        result
        for job in ("predict", "train")[: 1 + train]
        for result in _bench_job(name, job, batch_size, image_size, rounds)
    ]


def _bench_job(name, job, batch_size, image_size, rounds):
    import keras
    import numpy as np

    rng = np.random.default_rng(0)
    images = rng.standard_normal((batch_size, image_size, image_size, 3), np.float32)
    labels = rng.integers(0, 1000, batch_size)
    start = {"predict": _predict, "train": _train}[job]
    candidates = {name: lambda: start(_ours(name, image_size), images, labels)}
    if name in PEERS:
        candidates[f"keras.applications.{PEERS[name]}"] = lambda: start(_peer(name, image_size), images, labels)
    timings = take_turns(candidates, rounds)
    return [
        Result(
            timing.name,
            job,
            keras.backend.backend(),
            batch_size,
            image_size,
            timing.build,
            timing.first,
            timing.median,
            batch_size / timing.median,
            ratio(timing, timings[0]),
        )
        for timing in timings
    ]


def _ours(name, image_size):
    stem = {} if name.startswith("resnet") else {"stem_stride": 4}
    return create_model(name, input_shape=(image_size, image_size, 3), classifier_activation=None, **stem)


def _peer(name, image_size):
    import keras

    own_pixels = {"include_preprocessing": False} if name.startswith("convnext") else {}
    builder = getattr(keras.applications, PEERS[name])
    return builder(weights=None, input_shape=(image_size, image_size, 3), classifier_activation=None, **own_pixels)


def _predict(model, images, _):
    return lambda: model.predict(images, batch_size=len(images), verbose=0)


def _train(model, images, labels):
    import keras

    model.compile("adamw", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return lambda: model.train_on_batch(images, labels)


def to_text(results):
    """Markdown: one line a model and job."""
    lines = [
        "| model | job | backend | batch | build s | first call s | median ms | img/s | time against ours |",
        "|---|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    lines += [
        f"| {r.model} | {r.job} | {r.backend} | {r.batch_size} | {r.build_seconds:.1f} | {r.first_call_seconds:.1f} "
        f"| {1000 * r.median_seconds:.0f} | {r.images_per_second:.1f} | {r.times_ours:.2f}× |"
        for r in results
    ]
    return "\n".join(lines)


def to_json(results):
    return [dataclasses.asdict(result) for result in results]
