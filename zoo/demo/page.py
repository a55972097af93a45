"""The demo's report: its plots and the HTML page."""

from pathlib import Path

import numpy as np

from zoo.data.digits import Digits
from zoo.demo.evaluation import Predictions
from zoo.demo.training import HELD_OUT_TEMPLATES, NUMERALS, TRAIN_TEMPLATES, WORDS, augment_image, captions
from zoo.experiments.plots import SEARCH_RESULTS, search_row, temperature_panels
from zoo.utils import report
from zoo.utils.report import Panel, SheetRow, percent

SIMILARITY_TEMPLATE = 2  # of HELD_OUT_TEMPLATES


def draw_plots(
    folder: Path, metrics: dict, predictions: Predictions, train: Digits, held_out: Digits, *, seed: int
) -> None:
    """Draw the PNGs of the report."""
    report.plot_sheet(folder / "examples.png", _example_rows(train, seed))
    report.plot_panels(folder / "training.png", _training_panels(metrics["history"]))
    report.plot_confusion(folder / "confusion.png", metrics["confusion"], NUMERALS)
    one_each = [int(np.flatnonzero(held_out.labels == digit)[0]) for digit in range(len(WORDS))]
    prompts = predictions.texts[1, SIMILARITY_TEMPLATE]  # (10, D)
    report.plot_similarity(
        folder / "similarity.png",
        predictions.images[one_each] @ prompts.T,
        held_out.images[one_each],
        [HELD_OUT_TEMPLATES[SIMILARITY_TEMPLATE].format(word) for word in WORDS],
    )
    report.plot_sheet(folder / "searches.png", _search_rows(predictions, held_out))
    report.plot_sheet(folder / "hardest.png", _hardest_rows(predictions, held_out))
    calibration = metrics["calibration"]
    marks = {"learned": 1 / metrics["temperature"], "lowest loss": calibration["lowest_loss_factor"]}
    report.plot_panels(
        folder / "temperature.png", temperature_panels(calibration["sweep"], metrics["zero_shot_accuracy"], marks)
    )


def _example_rows(train: Digits, seed: int) -> list[SheetRow]:
    """Three captions, each with augmented training images."""
    rng = np.random.default_rng(seed)
    rows = []
    for digit in (2, 5, 8):
        text = rng.choice(captions(TRAIN_TEMPLATES)[digit])
        chosen = rng.choice(np.flatnonzero(train.labels == digit), SEARCH_RESULTS)
        rows.append(SheetRow(f"“{text}”", [augment_image(train.images[i], rng) for i in chosen]))
    return rows


def _training_panels(history: dict) -> list[Panel]:
    epochs = range(1, len(history["loss"]) + 1)
    return [
        Panel(
            "Contrastive loss",
            epochs,
            {"training": history["loss"], "held-out": history["val_loss"]},
            levels={"lowest possible": history["lowest_loss"]},
            xlabel="epoch",
        ),
        Panel(
            "Accuracy within the batch",
            epochs,
            {"training": history["accuracy"], "held-out": history["val_accuracy"]},
            xlabel="epoch",
            percent=True,
        ),
        Panel("Logit scale", epochs, {"1 / temperature": history["logit_scale"]}, xlabel="epoch"),
    ]


def _search_rows(predictions: Predictions, held_out: Digits) -> list[SheetRow]:
    """One held-out prompt per digit, numerals and words in turn, with the images that match it best."""
    rows = []
    for digit, names in enumerate(zip(NUMERALS, WORDS, strict=True)):
        spelling, template = digit % 2, digit % len(HELD_OUT_TEMPLATES)
        prompt = HELD_OUT_TEMPLATES[template].format(names[spelling])
        cosines = predictions.images @ predictions.texts[spelling, template, digit]
        rows.append(search_row(prompt, cosines, held_out.labels == digit, lambda i: held_out.images[i]))
    return rows


def _hardest_rows(predictions: Predictions, held_out: Digits) -> list[SheetRow]:
    """Two rows of the images whose true class has the lowest probability."""
    labels, classes = held_out.labels, predictions.classes
    order = np.argsort(predictions.probabilities[np.arange(len(labels)), labels], kind="stable")
    rows = []
    for text, chosen in (
        ("lowest probabilities", order[:SEARCH_RESULTS]),
        ("next lowest", order[SEARCH_RESULTS : 2 * SEARCH_RESULTS]),
    ):
        notes = [f"{labels[i]} → {classes[i]}" for i in chosen]
        rows.append(SheetRow(text, held_out.images[chosen], notes, classes[chosen] == labels[chosen]))
    return rows


CLASSIFY = """import zoo

pipeline = zoo.ClipPipeline("model.safetensors")
names = {words}
probabilities = pipeline.classify(["digit.png"], names, ["a handwritten digit {{}}."])  # dark ink on white
print(names[probabilities[0].argmax()])
"""


def write_report(path: Path, metrics: dict) -> None:
    """Write report.html from the metrics and the PNGs beside it."""
    sections = (
        training_data,
        training,
        zero_shot_accuracy,
        similarity,
        search,
        _calibration_of_probabilities,
        onnx_files,
        usage,
    )
    report.write_page(
        path,
        "A small CLIP for handwritten digits",
        headline(metrics),
        *(section(metrics, path.parent) for section in sections),
        lead="A ConvNeXt V2 for images and a transformer for text, trained together from scratch on captioned digits, "
        "then evaluated on images and prompts that were not used in training.",
    )


def headline(metrics: dict) -> str:
    retrieval = metrics["retrieval"]
    return report.tiles(
        {
            "zero-shot accuracy on held-out images": percent(metrics["zero_shot_accuracy"]),
            f"of {retrieval['texts']} prompts find a correct image first": percent(
                retrieval["text_to_image_recall_at_1"]
            ),
            f"of training: {metrics['epochs']} epochs on {metrics['cores']} cores": f"{metrics['train_seconds']:.0f} s",
            "parameters": f"{metrics['parameters'] / 1e6:.1f} M",
        }
    )


def training_data(metrics: dict, folder: Path) -> str:
    return report.section(
        "Training data",
        report.paragraph(
            f"{metrics['train_images']:,} images of handwritten digits, 32 × 32 pixels. In every epoch each image is "
            f"augmented again and gets a random caption: one of {len(TRAIN_TEMPLATES)} templates with a numeral or a "
            "word. All images and captions of the same digit in a batch are positives of each other."
        ),
        report.figure(folder / "examples.png", "Captions with augmented training images."),
    )


def training(_: dict, folder: Path) -> str:
    return report.section(
        "Training",
        report.figure(
            folder / "training.png",
            "The held-out curves use images and templates that are not in the training data; nothing was selected by "
            "them. Dashed: the lowest possible loss, which is above zero because an image has several positive "
            "captions in a batch.",
        ),
    )


def zero_shot_accuracy(metrics: dict, folder: Path) -> str:
    accuracy, images = metrics["zero_shot_accuracy"], metrics["held_out_images"]
    rows = [[t, percent(row["numerals"]), percent(row["words"])] for t, row in metrics["accuracy_per_template"].items()]
    return report.section(
        "Zero-shot classification",
        report.paragraph(
            f"Each class is the mean embedding of {len(rows)} prompts, none of which was a training caption. An image "
            f"gets the class with the highest cosine: {round(accuracy * images)} of {images} held-out images are "
            "classified correctly. The accuracy of each prompt alone:"
        ),
        report.table(["prompt", "with numerals", "with words"], rows),
        report.figure(folder / "confusion.png", "Confusion matrix on the held-out images."),
        report.figure(
            folder / "hardest.png",
            "The held-out images whose true class has the lowest probability, as true → predicted. Red: misclassified.",
        ),
    )


def similarity(_: dict, folder: Path) -> str:
    return report.section(
        "Image–text similarity",
        report.figure(
            folder / "similarity.png", "Cosines between the first held-out image of each digit and ten prompts."
        ),
    )


def search(metrics: dict, folder: Path) -> str:
    retrieval = metrics["retrieval"]
    return report.section(
        "Text-to-image search",
        report.paragraph(
            f"Each of {retrieval['texts']} prompts ranks the held-out images. The best match is correct for "
            f"{percent(retrieval['text_to_image_recall_at_1'])} of the prompts, and "
            f"{percent(retrieval['text_to_image_precision_at_10'])} of the ten best matches are correct."
        ),
        report.figure(folder / "searches.png", "The best matches of ten prompts, with their cosines. Green: correct."),
    )


def _calibration_of_probabilities(metrics: dict, folder: Path) -> str:
    learned, best = metrics["calibration"]["learned"], metrics["calibration"]["lowest_loss_factor"]
    return report.section(
        "Calibration",
        report.paragraph(
            f"Cosines times the logit scale give the logits. The learned scale is {1 / metrics['temperature']:.1f} "
            f"(temperature {metrics['temperature']:.3f}): the mean confidence is {percent(learned['confidence'])} and "
            f"the expected calibration error {percent(learned['error'])}. A scale of {best:.0f} would have given the "
            "lowest loss on these images. The predicted classes do not depend on the scale."
        ),
        report.figure(folder / "temperature.png", "Confidence, calibration error and loss against the logit scale."),
    )


def onnx_files(metrics: dict, _: Path) -> str:
    rows = [
        [
            f"digits-{file['precision']}.onnx",
            f"{file['bytes'] / 1e6:.1f} MB",
            percent(file["accuracy"]),
            percent(file["agreement"]),
            f"{file['milliseconds']:.1f} ms",
        ]
        for file in metrics["onnx"]
    ]
    return report.section(
        "ONNX",
        report.paragraph(
            "The zero-shot classifier as ONNX files for any ONNX runtime: the image tower and the class embeddings in "
            "one graph, evaluated on the held-out images with ONNX Runtime."
        ),
        report.table(["file", "size", "accuracy", "same class as Keras", "latency of one image"], rows),
    )


def usage(metrics: dict, _: Path) -> str:
    return report.section(
        "Use the model",
        report.paragraph(
            "model.safetensors holds the CLIP model with its preprocessing. After reloading, "
            f"{percent(metrics['reloaded_predictions_equal'])} of the predictions on the held-out images are the same."
        ),
        report.code(CLASSIFY.format(words=list(WORDS))),
        report.table(["", "this run"], list(facts(metrics).items())),
    )


def facts(metrics: dict) -> dict[str, str]:
    """Return what is needed to repeat the run."""
    return {
        "command": f"zoo demo --seed {metrics['seed']} --epochs {metrics['epochs']} --backend {metrics['backend']}",
        "versions": ", ".join(f"{name} {number}" for name, number in metrics["versions"].items()),
        "machine": f"{metrics['cores']} cores, {metrics['machine']}",
        "training": f"{metrics['train_seconds']:.0f} s, batch size {metrics['batch_size']}",
        "model": f"{metrics['model']}, {metrics['parameters']:,} parameters",
        "data": "scikit-learn's load_digits: E. Alpaydin, C. Kaynak, UCI machine learning repository, CC BY 4.0",
    }
