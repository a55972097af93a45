"""A linear probe: logistic regression on frozen image embeddings.

Reference: arXiv:2103.00020, section 3.2 and appendix A.3: L-BFGS, and the strength of the L2 penalty chosen on a part
of the training pictures.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from zoo.data.benchmarks import ORIGINS
from zoo.data.datasets import Labelled, load_labelled
from zoo.data.shards import find_shards
from zoo.evaluation.metrics import confusion, mean_per_class_recall, wilson_interval
from zoo.evaluation.results import embed_readable, told, write_result
from zoo.inference.encoder import Encoder, load_encoder
from zoo.utils.report import percent, plot_confusion

STRENGTHS = tuple(float(c) for c in np.logspace(-2, 4, 7))  # scikit-learn's C, the inverse of the penalty
HELD_BACK = 0.2  # of the training pictures, to choose among them
MAX_ITERATIONS = 1000


@dataclass(frozen=True)
class ProbeResult:
    """What a linear classifier reads off frozen embeddings.

    Args:
        model, dataset: names.
        train_images, images, classes: counts.
        accuracy, mean_per_class_recall: on the test pictures.
        interval: in which the accuracy lies with 95 % confidence (Wilson).
        strength: the C that was chosen.
        confusion: counts (K, K), rows are true classes.
        class_names: K names.
        train_bad, bad: {record: why it was left out}.
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
    """Fits a probe to the one and measures it on the other.

    Args:
        seed: of the pictures held back to choose the penalty.
    """
    if train.class_names != test.class_names:
        raise ValueError(
            f"the training classes {train.class_names} are not the test classes {test.class_names}; "
            "--class-names FILE names them for both"
        )
    features, labels, train_bad = _embedded(encoder, train, progress)
    shown = np.unique(labels)
    if len(shown) < 2:
        name = train.class_names[shown[0]]
        raise ValueError(f"the {len(labels)} training pictures show one class, {name!r}; a probe needs two or more")
    seen, truth, bad = _embedded(encoder, test, progress)
    strength = choose_strength(features, labels, seed)
    guesses = fit(features, labels, strength).predict(seen)
    right = int((guesses == truth).sum())
    counts = confusion(truth, guesses, len(test.class_names))
    return ProbeResult(
        model=encoder.name,
        dataset=test.name,
        train_images=len(labels),
        images=len(truth),
        classes=len(test.class_names),
        accuracy=right / len(truth),
        interval=wilson_interval(right, len(truth)),
        mean_per_class_recall=mean_per_class_recall(counts),
        strength=strength,
        confusion=counts.tolist(),
        class_names=test.class_names,
        train_bad=train_bad,
        bad=bad,
    )


def _embedded(encoder, data, progress):
    """(float32 (N, D), int (N,), {record: why it was left out})."""
    vectors, kept, bad = embed_readable(encoder, data.records, progress=progress)
    return vectors, data.records.labels[kept], {data.records.names[i]: reason for i, reason in bad.items()}


def choose_strength(features: np.ndarray, labels: np.ndarray, seed: int = 0) -> float:
    """The C of STRENGTHS that does best on a fifth of the pictures; of equals the smallest, the strongest penalty.

    It is scikit-learn's own, 1, where so few pictures are left to learn from that they show one class alone.
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    back = max(1, round(HELD_BACK * len(labels)))
    held, rest = order[:back], order[back:]
    if len(np.unique(labels[rest])) < 2:
        return 1.0
    scores = [fit(features[rest], labels[rest], c).score(features[held], labels[held]) for c in STRENGTHS]
    return STRENGTHS[int(np.argmax(scores))]


def fit(features: np.ndarray, labels: np.ndarray, strength: float):
    """scikit-learn's logistic regression, fitted: float32 (N, D), int (N,)."""
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError:
        raise ImportError("A linear probe needs scikit-learn: pip install 'convnext-clip-zoo[report]'") from None
    return LogisticRegression(C=strength, max_iter=MAX_ITERATIONS).fit(features, labels)


def run(
    model: str,
    *,
    dataset: str = "digits",
    data: str | None = None,
    train: str | None = None,
    class_names: str | None = None,
    batch_size: int = 64,
    output: str | None = None,
) -> ProbeResult:
    """The command `zoo eval linear-probe`; with `output` it leaves linear_probe.json and confusion.png in a folder.

    Args:
        train: a data set to learn from; the training split of `dataset` unless given.
        data, class_names: of both, as `load_labelled` takes them.
    """
    if train is None and ":" in dataset:
        raise ValueError(f"{dataset!r} has no training split; name one: --train folder:DIR")
    if train and places_of(train) & places_of(dataset):
        raise ValueError(f"{train!r} and {dataset!r} are the same pictures; a probe learns from others than its test's")
    test = load_labelled(dataset, files_of(dataset, train, data), class_names=class_names)
    if train and train.startswith("shards:"):  # which have numbers for classes
        class_names = class_names or test.class_names
    train = train or dataset
    learned = load_labelled(train, files_of(train, dataset, data), class_names=class_names, split="train")
    result = evaluate_probe(load_encoder(model, batch_size=batch_size), learned, test, progress=True)
    if output is not None:
        write_result(Path(output), "linear_probe", result)
        plot_confusion(Path(output, "confusion.png"), np.array(result.confusion), result.class_names)
    return result


def files_of(name: str, other: str | None, data: str | None) -> str | None:
    """What `data` is to a data set: nothing to one that needs no files where the other does."""
    return None if name not in ORIGINS and other in ORIGINS else data


def places_of(name: str) -> set[str]:
    """Real paths of what a data set is read from; none for those with a name, which have a training split."""
    kind, _, where = name.partition(":")
    if kind == "shards":
        return set(find_shards(where))
    return {os.path.realpath(where)} if kind == "folder" else set()


def to_text(result: ProbeResult) -> str:
    """A line a figure."""
    low, high = result.interval
    lines = {
        "model": result.model,
        "data": f"{result.dataset}: {result.train_images} images to learn from, {result.images} to test",
        "accuracy": f"{percent(result.accuracy)} (95 %: {percent(low)} to {percent(high)})",
        "recall a class": percent(result.mean_per_class_recall),
        "penalty": f"C = {result.strength:g}",
    }
    if left_out := told(result.train_bad, result.bad):
        lines["left out"] = left_out
    return "\n".join(f"{name:<16}{value}" for name, value in lines.items())
