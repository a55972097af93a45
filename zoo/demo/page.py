"""The demo's report: its plots, and the page around them."""

from pathlib import Path

import numpy as np

from zoo.data.digits import Digits
from zoo.demo.data import HELD_OUT_TEMPLATES, NUMERALS, TRAIN_TEMPLATES, WORDS, captions, jiggle
from zoo.demo.reading import Readings
from zoo.utils import report
from zoo.utils.report import percent

SHOWN_TEMPLATE = 2  # of HELD_OUT_TEMPLATES, in the similarity matrix


def draw_plots(folder: Path, metrics: dict, readings: Readings, train: Digits, held_out: Digits, *, seed: int) -> None:
    """The PNGs of the report."""
    report.plot_sheet(folder / "examples.png", example_rows(train, seed))
    report.plot_panels(folder / "training.png", training_panels(metrics["history"]))
    report.plot_confusion(folder / "confusion.png", metrics["confusion"], NUMERALS)
    one_each = [int(np.flatnonzero(held_out.labels == digit)[0]) for digit in range(len(WORDS))]
    sentences = readings.texts[1, SHOWN_TEMPLATE]  # (10, D)
    report.plot_similarity(
        folder / "similarity.png",
        readings.images[one_each] @ sentences.T,
        held_out.pictures[one_each],
        [HELD_OUT_TEMPLATES[SHOWN_TEMPLATE].format(word) for word in WORDS],
    )
    report.plot_sheet(folder / "searches.png", search_rows(readings, held_out))
    report.plot_sheet(folder / "hardest.png", hardest_rows(readings, held_out))
    report.plot_panels(folder / "temperature.png", temperature_panels(metrics))


def example_rows(train: Digits, seed: int, columns: int = 8) -> list[report.SheetRow]:
    """A few captions, each with training pictures as the pair sees them."""
    rng = np.random.default_rng(seed)
    rows = []
    for digit in (2, 5, 8):
        text = rng.choice(captions(TRAIN_TEMPLATES)[digit])
        chosen = rng.choice(np.flatnonzero(train.labels == digit), columns)
        rows.append(report.SheetRow(f"“{text}”", [jiggle(train.pictures[i], rng) for i in chosen]))
    return rows


def training_panels(history: dict) -> list[report.Panel]:
    epochs = range(1, len(history["loss"]) + 1)
    return [
        report.Panel(
            "Contrastive loss",
            epochs,
            {"training": history["loss"], "held-out": history["val_loss"]},
            levels={"a perfect pair": history["lowest_loss"]},
            xlabel="epoch",
        ),
        report.Panel(
            "Best match in the batch",
            epochs,
            {"training": history["accuracy"], "held-out": history["val_accuracy"]},
            xlabel="epoch",
            percent=True,
        ),
        report.Panel("1 / temperature", epochs, {"exp(logit_scale)": history["logit_scale"]}, xlabel="epoch"),
    ]


def search_rows(readings: Readings, held_out: Digits, columns: int = 8) -> list[report.SheetRow]:
    """For each digit a held-out sentence, numerals and words in turn, and the pictures that match it best."""
    rows = []
    for digit, names in enumerate(zip(NUMERALS, WORDS, strict=True)):
        spelling, template = digit % 2, digit % len(HELD_OUT_TEMPLATES)
        cosines = readings.images @ readings.texts[spelling, template, digit]
        best = np.argsort(-cosines, kind="stable")[:columns]
        rows.append(
            report.SheetRow(
                f"“{HELD_OUT_TEMPLATES[template].format(names[spelling])}”",
                held_out.pictures[best],
                notes=[f"{cosine:.2f}" for cosine in cosines[best]],
                right=held_out.labels[best] == digit,
            )
        )
    return rows


def hardest_rows(readings: Readings, held_out: Digits, columns: int = 8, rows: int = 2) -> list[report.SheetRow]:
    """The pictures whose own digit got the lowest probabilities."""
    true = readings.probabilities[np.arange(len(held_out)), held_out.labels]
    order = np.argsort(true, kind="stable")
    sheet = []
    for row in range(rows):
        chosen = order[row * columns : (row + 1) * columns]
        notes = [f"{held_out.labels[i]}, read as {readings.predictions[i]}" for i in chosen]
        text = "the least certain" if row == 0 else "the next"
        sheet.append(
            report.SheetRow(
                text, held_out.pictures[chosen], notes, readings.predictions[chosen] == held_out.labels[chosen]
            )
        )
    return sheet


def temperature_panels(metrics: dict) -> list[report.Panel]:
    """Confidence and calibration against the factor that turns cosines into logits."""
    sweep, accuracy = metrics["calibration"]["sweep"], metrics["zero_shot_accuracy"]
    marks = {"learned": 1 / metrics["temperature"], "lowest loss": metrics["calibration"]["lowest_loss_factor"]}
    axis = {"x": sweep["factor"], "marks": marks, "log_x": True, "xlabel": "factor, 1 / temperature"}
    return [
        report.Panel(
            "Confidence and accuracy",
            curves={"mean confidence": sweep["confidence"]},
            levels={"accuracy, at any factor": accuracy},
            percent=True,
            **axis,
        ),
        report.Panel("Calibration error", curves={"expected calibration error": sweep["error"]}, percent=True, **axis),
        report.Panel("−ln p(true digit)", curves={"mean over pictures": sweep["loss"]}, **axis),
    ]


LOAD_AGAIN = """import zoo
from clip import zero_shot_classifier
from PIL import Image

pair, transform, tokenizer, info = zoo.load("model.safetensors")
names = {words}
reader = zero_shot_classifier(pair, names, ["a handwritten digit {{}}."])
picture = transform(Image.open("a digit, black on white.png"))  # (32, 32, 3)
print(names[reader.predict(picture[None]).argmax()])
"""


def write_report(path: Path, metrics: dict) -> None:
    """report.html, from the metrics and the PNGs beside it."""
    sections = (what_it_saw, how_it_learned, reading, one_space, searching, certainty, elsewhere, use_again)
    report.write_page(
        path,
        "Digits, read from sentences",
        headline(metrics),
        *(section(metrics, path.parent) for section in sections),
        lead="A small CLIP, a ConvNeXt V2 for pictures and a transformer for text, trained from nothing on captioned "
        "handwriting, then asked about digits and sentences it had not met.",
    )


def headline(metrics):
    retrieval = metrics["retrieval"]
    return report.tiles(
        {
            "of the held-out digits read right, zero-shot": percent(metrics["zero_shot_accuracy"]),
            f"of {retrieval['texts']} new sentences find a right picture first": percent(
                retrieval["text_to_image_recall_at_1"]
            ),
            f"of training: {metrics['epochs']} epochs on {metrics['cores']} cores": f"{metrics['train_seconds']:.0f} s",
            "parameters in the pair": f"{metrics['parameters'] / 1e6:.1f} M",
        }
    )


def what_it_saw(metrics, folder):
    return report.section(
        "What it saw",
        report.paragraph(
            f"{metrics['train_images']:,} handwritten digits, drawn as 32 × 32 pixels. In every epoch each is moved a "
            f"little and gets another caption: one of {len(TRAIN_TEMPLATES)} templates around a numeral or a word. "
            "Pictures and captions of the same digit are positives of each other."
        ),
        report.figure(folder / "examples.png", "Captions, and pictures as training moves them."),
    )


def how_it_learned(_, folder):
    return report.section(
        "How it learned",
        report.figure(
            folder / "training.png",
            "The held-out curves are of pictures and templates that training never uses; nothing was chosen by them. "
            "In a batch several captions are right for each picture: the dashed line is the loss that this leaves to a "
            "perfect pair.",
        ),
    )


def reading(metrics, folder):
    accuracy, pictures = metrics["zero_shot_accuracy"], metrics["held_out_images"]
    rows = [[t, percent(row["numerals"]), percent(row["words"])] for t, row in metrics["accuracy_per_template"].items()]
    return report.section(
        "Reading digits from sentences it never saw",
        report.paragraph(
            f"A class is the mean of {len(rows)} sentences about a digit, none of which was a caption. A picture is "
            f"read as the class nearest to it, and {round(accuracy * pictures)} of {pictures} held-out pictures are "
            "read right. Each sentence alone does this well:"
        ),
        report.table(["sentence", "with numerals", "with words"], rows),
        report.figure(folder / "confusion.png", "Held-out pictures: what each is, and what it was read as."),
        report.figure(
            folder / "hardest.png",
            "The held-out pictures whose own digit got the least probability. A red frame: read wrong.",
        ),
    )


def one_space(_, folder):
    return report.section(
        "Pictures and sentences in one space",
        report.figure(
            folder / "similarity.png",
            "Cosines between the first held-out picture of each digit and ten sentences.",
        ),
    )


def searching(metrics, folder):
    retrieval = metrics["retrieval"]
    return report.section(
        "Finding pictures by words",
        report.paragraph(
            f"A sentence searches the held-out pictures. Of {retrieval['texts']} sentences, "
            f"{percent(retrieval['text_to_image_recall_at_1'])} find a right picture first; of the first ten pictures, "
            f"{percent(retrieval['text_to_image_precision_at_10'])} are right."
        ),
        report.figure(
            folder / "searches.png", "The best matches of ten sentences, with their cosines. Green is right."
        ),
    )


def certainty(metrics, folder):
    learned, best = metrics["calibration"]["learned"], metrics["calibration"]["lowest_loss_factor"]
    return report.section(
        "How sure it is",
        report.paragraph(
            f"The learned factor {1 / metrics['temperature']:.1f} (temperature {metrics['temperature']:.3f}) makes "
            f"probabilities of cosines. With it the mean confidence is {percent(learned['confidence'])} and the "
            f"calibration error {percent(learned['error'])}. A factor of {best:.0f} would have given these pictures "
            "the lowest loss. Which digit is read does not depend on it."
        ),
        report.figure(folder / "temperature.png", "Confidence, calibration and loss against the factor."),
    )


def elsewhere(metrics, _):
    rows = [
        [
            file["precision"],
            f"{file['bytes'] / 1e6:.1f} MB",
            percent(file["accuracy"]),
            percent(file["agreement"]),
            f"{file['milliseconds']:.1f} ms",
        ]
        for file in metrics["onnx"]
    ]
    return report.section(
        "Without Keras",
        report.paragraph(
            "The reader of digits as ONNX files, which any ONNX runtime takes: the image tower and the ten sentences' "
            "embeddings in one graph. How they read the held-out pictures, and how long one picture takes:"
        ),
        report.table(["file", "size", "read right", "read as Keras does", "one picture"], rows),
    )


def use_again(metrics, _):
    return report.section(
        "Use it again",
        report.paragraph(
            "model.safetensors holds the pair, and how a picture is made ready for it. Loaded again, it read "
            f"{percent(metrics['reloaded_predictions_equal'])} of the held-out pictures as before."
        ),
        report.code(LOAD_AGAIN.format(words=list(WORDS))),
        report.table(["", "this run"], list(facts(metrics).items())),
    )


def facts(metrics: dict) -> dict[str, str]:
    """What a reader needs to repeat the run."""
    return {
        "command": f"zoo demo --seed {metrics['seed']} --epochs {metrics['epochs']} --backend {metrics['backend']}",
        "versions": ", ".join(f"{name} {number}" for name, number in metrics["versions"].items()),
        "machine": f"{metrics['cores']} cores, {metrics['machine']}",
        "training": f"{metrics['train_seconds']:.0f} s, batches of {metrics['batch_size']}",
        "model": f"{metrics['model']}, {metrics['parameters']:,} parameters",
        "data": "scikit-learn's load_digits: E. Alpaydin, C. Kaynak, UCI machine learning repository, CC BY 4.0",
    }
