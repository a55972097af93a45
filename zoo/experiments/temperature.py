"""Experiment 8: the temperature: what cosines become, how sure the pair is, and whether it may be."""

import numpy as np

from zoo.evaluation.metrics import calibration, lowest_loss_factor, reliability, softmax, temperature_sweep
from zoo.experiments.plots import Histogram, plot_histograms, plot_reliability
from zoo.experiments.setting import Outcome, Setting, halves
from zoo.utils import report
from zoo.utils.report import Panel, percent, plot_panels

FACTORS = np.geomspace(1, 1000, 61)
TABLED = (0.2, 0.5, 1, 2, 5)  # times the learned temperature


def run(setting: Setting) -> Outcome:
    subject, factor = setting.main, setting.pipeline.scale
    if len(subject.names) < 2:
        raise ValueError(
            f"{subject.title} show one class, {subject.names[0]!r}; a temperature is fitted to two or more"
        )
    classifier = setting.pipeline.classifier(subject.names, subject.data.templates)
    cosines, labels = subject.vectors @ classifier.matrix, subject.labels
    learning, judged = halves(labels, setting.seed)
    fitted = lowest_loss_factor(cosines[learning], labels[learning])
    before, after = (calibration(f * cosines[judged], labels[judged]) for f in (factor, fitted))
    sweep = temperature_sweep(cosines[judged], labels[judged], FACTORS)
    metrics = {
        "data": subject.data.name,
        "images": len(labels),
        "accuracy": float((cosines.argmax(axis=1) == labels).mean()),
        "learned": {"factor": factor, "temperature": 1 / factor, **before},
        "fitted": {
            "factor": fitted,
            "temperature": 1 / fitted,
            **after,
            "fitted_on": len(learning),
            "judged_on": len(judged),
        },
        "distributions": {f"{times:g}": spread(factor / times * cosines) for times in TABLED},
        "sweep": {"factor": FACTORS.tolist(), **sweep},
    }
    paths = {name: setting.folder / f"temperature-{name}.png" for name in ("cosines", "sweep", "reliability")}
    plot_histograms(paths["cosines"], histograms(cosines, labels, factor))
    plot_panels(paths["sweep"], panels(metrics, sweep))
    plot_reliability(
        paths["reliability"],
        {
            f"As learned: off by {percent(before['error'])}": reliability(factor * cosines[judged], labels[judged]),
            f"Fitted: off by {percent(after['error'])}": reliability(fitted * cosines[judged], labels[judged]),
        },
    )
    headline = (f"calibration error; {percent(after['error'])} after fitting", percent(before["error"]))
    return Outcome("Temperature, and how sure the pair is", headline, metrics, told(metrics, subject.title, paths))


def spread(logits: np.ndarray) -> dict[str, float]:
    """How peaked the probabilities are: mean of the highest, and mean entropy as a share of the largest there is."""
    shares = softmax(logits)
    entropy = -(shares * np.log(np.maximum(shares, 1e-300))).sum(axis=1)
    return {"confidence": float(shares.max(axis=1).mean()), "entropy": float(entropy.mean() / np.log(shares.shape[1]))}


def histograms(cosines: np.ndarray, labels: np.ndarray, factor: float) -> list[Histogram]:
    right = np.arange(cosines.shape[1]) == labels[:, None]
    shares = softmax(factor * cosines).max(axis=1)
    correct = cosines.argmax(axis=1) == labels
    return [
        Histogram("Cosines with the classes", {"its own": cosines[right], "the others": cosines[~right]}),
        Histogram(
            "Confidence, as learned",
            {"read right": shares[correct], "read wrong": shares[~correct]},
            "highest probability",
            percent=True,
        ),
    ]


def panels(metrics: dict, sweep: dict) -> list[Panel]:
    marks = {"learned": metrics["learned"]["factor"], "fitted": metrics["fitted"]["factor"]}
    axis = {"x": FACTORS, "marks": marks, "log_x": True, "xlabel": "factor, 1 / temperature"}
    level = {"accuracy, at any factor": metrics["accuracy"]}
    return [
        Panel("Confidence", curves={"mean confidence": sweep["confidence"]}, levels=level, percent=True, **axis),
        Panel("Calibration error", curves={"expected calibration error": sweep["error"]}, percent=True, **axis),
        Panel("−ln p(true class)", curves={"mean over pictures": sweep["loss"]}, **axis),
    ]


def told(metrics: dict, title: str, paths: dict) -> tuple[str, ...]:
    before, after = metrics["learned"], metrics["fitted"]
    rows = [
        [f"{times} × the learned", percent(row["confidence"]), percent(row["entropy"])]
        for times, row in metrics["distributions"].items()
    ]
    return (
        report.paragraph(
            f"The pair learned a temperature of {before['temperature']:.4f}: its logits are cosines times "
            f"{before['factor']:.1f}. It reads {percent(metrics['accuracy'])} of {title} right. On the "
            f"{after['judged_on']:,} of them that nothing was fitted on, its mean confidence is "
            f"{percent(before['confidence'])} and its expected calibration error {percent(before['error'])}. With a "
            f"factor of {after['factor']:.1f}, fitted on the {after['fitted_on']:,} others, they are "
            f"{percent(after['confidence'])} and {percent(after['error'])}. "
            "Which class is named does not change: the order of cosines is the same at every temperature."
        ),
        report.figure(
            paths["cosines"],
            "Left, cosines between pictures and classes; right, what the learned temperature makes of them.",
        ),
        report.figure(
            paths["reliability"],
            "How often the pair is right at each confidence, on pictures that nothing was fitted on. On the dashed "
            "line it can be taken at its word; a dot is as large as its share of the pictures.",
        ),
        report.figure(paths["sweep"], "Confidence, calibration and loss against the factor."),
        report.table(["temperature", "mean confidence", "entropy, of the largest possible"], rows),
    )
