"""Linear probe: logistic regression on frozen image embeddings.

Reference: arXiv:2103.00020, section 3.2 and appendix A.3: L-BFGS, with the L2 penalty chosen on a part of the training
images.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from zoo.data.benchmarks import ORIGINS
from zoo.data.datasets import Labelled, load_labelled
from zoo.data.shards import find_shards
from zoo.evaluation.metrics import confusion, mean_per_class_recall, wilson_interval
from zoo.evaluation.results import embed_readable, format_left_out, write_result
from zoo.inference.encoder import Encoder
from zoo.inference.stored import open_encoder
from zoo.utils.env import require_packages
from zoo.utils.report import percent, plot_confusion

_STRENGTHS = tuple(float(c) for c in np.logspace(-2, 4, 7))  # scikit-learn's C, the inverse of the penalty
_HELD_OUT = 0.2  # share of the training images on which C is chosen
_MAX_ITERATIONS = 1000


@dataclass(frozen=True)
class ProbeResult:
    """The result of a linear probe.

    Args:
        model, dataset: names.
        train_images, images, classes: counts.
        accuracy, mean_per_class_recall: on the test images.
        interval: 95 % confidence interval of the accuracy (Wilson).
        strength: the chosen C.
        confusion: counts (K, K), rows are true classes.
        class_names: K names.
        train_bad, bad: {record: reason} of the records left out.
    """

    model: str
    dataset: str
    train_images: int
    images: int
    classes: int
    accuracy: float
    interval: tuple[float, float]
    mean_per_class_recall: float
    strength: float
    confusion: list
    class_names: tuple[str, ...]
    train_bad: dict
    bad: dict


def evaluate_probe(
    encoder: Encoder, train: Labelled, test: Labelled, *, seed: int = 0, progress: bool = False
) -> ProbeResult:
    """Fit a probe on the training data and return its result on the test data.

    Args:
        seed: seed that draws the training images on which the penalty is chosen.
    """
    if train.class_names != test.class_names:
        raise ValueError(
            f"the training classes {train.class_names} differ from the test classes {test.class_names}; "
            "name them for both with --class-names FILE"
        )
    features, labels, train_bad = _embedded(encoder, train, progress)
    present = np.unique(labels)
    if len(present) < 2:
        name = train.class_names[present[0]]
        raise ValueError(f"the {len(labels)} training images are all of class {name!r}; a probe needs two classes")
    test_features, truth, bad = _embedded(encoder, test, progress)
    strength = _choose_strength(features, labels, seed)
    predictions = fit(features, labels, strength).predict(test_features)
    correct = int((predictions == truth).sum())
    counts = confusion(truth, predictions, len(test.class_names))
    return ProbeResult(
        model=encoder.name,
        dataset=test.name,
        train_images=len(labels),
        images=len(truth),
        classes=len(test.class_names),
        accuracy=correct / len(truth),
        interval=wilson_interval(correct, len(truth)),
        mean_per_class_recall=mean_per_class_recall(counts),
        strength=strength,
        confusion=counts.tolist(),
        class_names=test.class_names,
        train_bad=train_bad,
        bad=bad,
    )


def _embedded(encoder: Encoder, data: Labelled, progress: bool) -> tuple[np.ndarray, np.ndarray, dict[str, str]]:
    """Return (embeddings float32 (N, D), labels int (N,), {record: reason} of those left out)."""
    vectors, kept, bad = embed_readable(encoder, data.records, progress=progress)
    return vectors, data.labels[kept], {data.records.names[i]: reason for i, reason in bad.items()}


def _choose_strength(features: np.ndarray, labels: np.ndarray, seed: int = 0) -> float:
    """Return the C that is best on a held-out fifth of the images; of ties the strongest penalty.

    Where the other images are all of one class, it is scikit-learn's default, 1.
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    count = max(1, round(_HELD_OUT * len(labels)))
    held_out, rest = order[:count], order[count:]
    if len(np.unique(labels[rest])) < 2:
        return 1.0
    scores = [fit(features[rest], labels[rest], c).score(features[held_out], labels[held_out]) for c in _STRENGTHS]
    return _STRENGTHS[int(np.argmax(scores))]


def fit(features: np.ndarray, labels: np.ndarray, strength: float):
    """Return scikit-learn's logistic regression, fitted to features float32 (N, D) and labels int (N,)."""
    require_packages("A linear probe", ("sklearn",), extras="report")
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=strength, max_iter=_MAX_ITERATIONS).fit(features, labels)


def run(
    model: str,
    *,
    dataset: str = "digits",
    data: str | None = None,
    train: str | None = None,
    class_names: str | Sequence[str] | None = None,
    batch_size: int = 64,
    embeddings: Sequence[str] = (),
    output: str | None = None,
) -> ProbeResult:
    """Fit and evaluate a probe: `zoo eval linear-probe`.

    Args:
        model: name or path of a pair.
        dataset: to test on, as in `load_labelled`.
        data, class_names: data and class names of both data sets, as in `load_labelled`.
        train: data set to train on; by default the training split of `dataset`.
        batch_size: images per batch.
        embeddings: folders of `zoo embed` with the images' embeddings, which are then not computed.
        output: folder for linear_probe.json and confusion.png.
    """
    if train is None and ":" in dataset:
        raise ValueError(f"{dataset!r} has no training split; pass one with --train, such as --train folder:DIR")
    if train and _real_paths(train) & _real_paths(dataset):
        raise ValueError(f"{train!r} and {dataset!r} share images; train and test on separate data")
    test = load_labelled(dataset, _files_of(dataset, train, data), class_names=class_names)
    if train and train.startswith("shards:"):  # whose labels are numbers
        class_names = class_names or test.class_names
    train = train or dataset
    training = load_labelled(train, _files_of(train, dataset, data), class_names=class_names, split="train")
    result = evaluate_probe(open_encoder(model, embeddings, batch_size=batch_size), training, test, progress=True)
    if output is not None:
        write_result(Path(output), "linear_probe", result)
        plot_confusion(Path(output, "confusion.png"), np.array(result.confusion), result.class_names)
    return result


def _files_of(name: str, other: str | None, data: str | None) -> str | None:
    """Return `data` for a data set, or None where it is meant for the other one."""
    return None if name not in ORIGINS and other in ORIGINS else data


def _real_paths(name: str) -> set[str]:
    """Return the real paths that a data set is read from; none for benchmarks, which have separate splits."""
    kind, _, where = name.partition(":")
    if kind == "shards":
        return set(find_shards(where))
    return {os.path.realpath(where)} if kind == "folder" else set()


def to_text(result: ProbeResult) -> str:
    """Format a result, one figure per line."""
    low, high = result.interval
    lines = {
        "model": result.model,
        "data": f"{result.dataset}: {result.train_images} images to train on, {result.images} to test on",
        "accuracy": f"{percent(result.accuracy)} (95 %: {percent(low)} to {percent(high)})",
        "class recall": percent(result.mean_per_class_recall),
        "penalty": f"C = {result.strength:g}",
    }
    if left_out := format_left_out(result.train_bad, result.bad):
        lines["left out"] = left_out
    return "\n".join(f"{name:<16}{value}" for name, value in lines.items())
