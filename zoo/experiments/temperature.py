"""Experiment 8: temperature and calibration, before and after fitting the temperature."""

import numpy as np

from zoo.evaluation.metrics import calibration, lowest_loss_factor, reliability, temperature_sweep
from zoo.experiments.context import Context, Outcome, halves
from zoo.experiments.plots import Histogram, plot_histograms, plot_reliability, temperature_panels
from zoo.inference.classifier import Classifier
from zoo.utils import report
from zoo.utils.arrays import ACTIVATIONS
from zoo.utils.report import percent, plot_panels

SCALES = np.geomspace(1, 1000, 61)
FACTORS = (0.2, 0.5, 1, 2, 5)  # times the learned temperature, for the table


def run(context: Context) -> Outcome:
    data, scale = context.main, context.pipeline.scale
    if len(data.names) < 2:
        raise ValueError(f"{data.title} have one class, {data.names[0]!r}; fitting a temperature needs at least two")
    classifier = context.pipeline.classifier(data.names, data.data.templates)
    cosines, labels = data.vectors @ classifier.matrix, data.labels
    bias, activation = classifier.bias, classifier.activation
    fit, test = halves(labels, context.seed)
    fitted = lowest_loss_factor(cosines[fit], labels[fit], bias=bias, activation=activation)
    before, after = (
        calibration(s * cosines[test] + bias, labels[test], activation=activation) for s in (scale, fitted)
    )
    sweep = temperature_sweep(cosines[test], labels[test], SCALES, bias, activation)
    metrics: dict = {
        "data": data.data.name,
        "images": len(labels),
        "accuracy": float((cosines.argmax(axis=1) == labels).mean()),
        "activation": activation,
        "bias": bias,
        "learned": {"factor": scale, "temperature": 1 / scale, **before},
        "fitted": {"factor": fitted, "temperature": 1 / fitted, **after, "fitted_on": len(fit), "judged_on": len(test)},
        "distributions": {f"{factor:g}": _sharpness(scale / factor * cosines + bias, activation) for factor in FACTORS},
        "sweep": {"factor": SCALES.tolist(), **sweep},
    }
    plots = {name: context.folder / f"temperature-{name}.png" for name in ("cosines", "sweep", "reliability")}
    plot_histograms(plots["cosines"], histograms(cosines, labels, classifier))
    plot_panels(
        plots["sweep"], temperature_panels(metrics["sweep"], metrics["accuracy"], {"learned": scale, "fitted": fitted})
    )
    plot_reliability(
        plots["reliability"],
        {
            f"{name}: error {percent(found['error'])}": reliability(
                s * cosines[test] + bias, labels[test], activation=activation
            )
            for name, s, found in (("Learned", scale, before), ("Fitted", fitted, after))
        },
    )
    headline = (f"expected calibration error; {percent(after['error'])} after fitting", percent(before["error"]))
    return Outcome("Temperature and calibration", headline, metrics, describe(metrics, data.title, plots))


def _sharpness(logits: np.ndarray, activation: str) -> dict[str, float]:
    """Return the mean highest probability and the mean entropy, as a share of the largest possible entropy.

    Of the sigmoid, the entropy is the mean over the classes, each of which is or is not in the image.
    """
    probabilities = ACTIVATIONS[activation](logits)
    terms = [probabilities, 1 - probabilities] if activation == "sigmoid" else [probabilities]
    entropy = -sum((p * np.log(np.maximum(p, 1e-300))).sum(axis=1) for p in terms)
    count = probabilities.shape[1]
    largest = count * np.log(2) if activation == "sigmoid" else np.log(count)
    return {
        "confidence": float(probabilities.max(axis=1).mean()),
        "entropy": float(entropy.mean() / largest),
    }


def histograms(cosines: np.ndarray, labels: np.ndarray, classifier: Classifier) -> list[Histogram]:
    own = np.arange(cosines.shape[1]) == labels[:, None]
    probabilities = ACTIVATIONS[classifier.activation](classifier.scale * cosines + classifier.bias)
    confidence = probabilities.max(axis=1)
    correct = cosines.argmax(axis=1) == labels
    return [
        Histogram("Cosines of images and classes", {"own class": cosines[own], "other classes": cosines[~own]}),
        Histogram(
            "Confidence at the learned temperature",
            {"correct": confidence[correct], "wrong": confidence[~correct]},
            "highest probability",
            percent=True,
        ),
    ]


def describe(metrics: dict, title: str, plots: dict) -> tuple[str, ...]:
    before, after = metrics["learned"], metrics["fitted"]
    bias = f", plus the bias {metrics['bias']:.2f}, and probabilities their {metrics['activation']}"
    rows = [
        [f"{factor} × learned", percent(row["confidence"]), percent(row["entropy"])]
        for factor, row in metrics["distributions"].items()
    ]
    return (
        report.paragraph(
            f"The learned temperature is {before['temperature']:.4f}: logits are cosines times {before['factor']:.1f}"
            f"{bias if metrics['activation'] == 'sigmoid' else ''}. "
            f"The accuracy on {title} is {percent(metrics['accuracy'])}. On the {after['judged_on']:,} images that are "
            f"not used for fitting, the mean confidence is {percent(before['confidence'])} and the expected "
            f"calibration error {percent(before['error'])}. With a factor of {after['factor']:.1f}, fitted on the "
            f"other {after['fitted_on']:,}, they are {percent(after['confidence'])} and {percent(after['error'])}. "
            "The predicted classes do not depend on the temperature."
        ),
        report.figure(
            plots["cosines"],
            "Left: cosines of images and classes. Right: the confidence that the learned temperature gives.",
        ),
        report.figure(
            plots["reliability"],
            "Accuracy at each confidence, on images that are not used for fitting. On the dashed line the confidence "
            "equals the accuracy; the area of a dot is its share of the images.",
        ),
        report.figure(plots["sweep"], "Confidence, calibration error and loss against the logit scale."),
        report.table(["temperature", "mean confidence", "entropy, share of the maximum"], rows),
    )
