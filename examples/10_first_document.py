"""The run of the first source document: 100 captioned images, two epochs, zero-shot, latency, ONNX; in three minutes.

    python examples/10_first_document.py
    python examples/10_first_document.py --smoke

It writes images of coloured shapes with captions to a table, trains a CLIP model on it and writes report.md.
Captions repeat ("a red circle" belongs to five images), so the table has a column of classes: images and captions of
one class are positives of each other. Otherwise the loss would push equal captions apart.
"""

import argparse
import csv
import time
from pathlib import Path

import keras
import numpy as np
from PIL import Image, ImageDraw

import zoo
from clip import zero_shot_classifier
from zoo.export.runtime import start_session

COLOURS = ("red", "green", "blue", "yellow", "white")
SHAPES = ("circle", "square", "triangle", "cross")
CLASSES = [f"{colour} {shape}" for colour in COLOURS for shape in SHAPES]
COMPARED = ("ViT-B-32", "convnext_v2_tiny")  # in the document's table of latencies


def draw(name, rng, side=64):
    """Draw a coloured shape somewhere on black."""
    colour, shape = name.split()
    image = Image.new("RGB", (side, side))
    pen, r = ImageDraw.Draw(image), int(rng.integers(side // 6, side // 4))
    x, y = (int(v) for v in rng.integers(r, side - r, 2))
    if shape == "circle":
        pen.ellipse((x - r, y - r, x + r, y + r), fill=colour)
    elif shape == "square":
        pen.rectangle((x - r, y - r, x + r, y + r), fill=colour)
    elif shape == "triangle":
        pen.polygon((x, y - r, x - r, y + r, x + r, y + r), fill=colour)
    else:
        pen.line((x - r, y, x + r, y), fill=colour, width=r // 2)
        pen.line((x, y - r, x, y + r), fill=colour, width=r // 2)
    return image


def write(folder, count):
    """Write train.csv and its images; return (its path, the images, their classes)."""
    rng, rows, images = np.random.default_rng(0), [], []
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        name = CLASSES[i % len(CLASSES)]
        images.append(draw(name, rng))
        images[-1].save(folder / f"{i:03}.png")
        rows.append({"filepath": f"{i:03}.png", "caption": f"a {name}", "label": name})
    with (folder / "train.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, rows[0].keys())
        table.writeheader()
        table.writerows(rows)
    return folder / "train.csv", images, [row["label"] for row in rows]


def milliseconds(call, calls=3):
    """Return the least time of some calls, of which the first may compile."""
    seconds = []
    for _ in range(calls):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return 1e3 * min(seconds)


def latency_table(names, batches):
    """Return rows | model | batch | ms | images a second | parameters M | of both towers with random weights."""
    rows = []
    for name in names:
        pair = zoo.create_model(f"clip/{name}")
        side, parameters = pair.image_encoder.input_shape[1], zoo.model_info(f"clip/{name}").parameters
        for size in batches:
            inputs = {"images": np.zeros((size, side, side, 3), "float32"), "tokens": np.ones((size, 77), "int32")}
            ms = milliseconds(lambda x=inputs, pair=pair, size=size: pair.predict(x, size, verbose=0), calls=2)
            rows.append(f"| {name} | {size} | {ms:.1f} | {1e3 * size / ms:.1f} | {parameters / 1e6:.2f} |")
    return ["| model | batch | ms | images a second | parameters M |", "|---|--:|--:|--:|--:|", *rows]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("first-document"), help="default: %(default)s")
    parser.add_argument(
        "--model", default="convnext_v2_atto", help="the document's: convnext_v2_tiny, which takes longer"
    )
    parser.add_argument("--smoke", action="store_true", help="40 smaller images, no table of latencies")
    options = parser.parse_args()
    count, side, batch = (40, 32, 5) if options.smoke else (100, 64, 10)
    name, folder, start = options.model, options.output, time.perf_counter()

    table, images, labels = write(folder / "data", count)
    small = {"image_size": side, "stem_stride": 4, "context_length": 8}
    run = {"batch_size": batch, "epochs": 2, "learning_rate": 3e-4, "label_key": "label", "output": folder / "run"}
    begun = (folder / "run" / "checkpoints").is_dir()  # by an earlier call of this script
    outcome = zoo.train(name, table, **small, **run, resume=begun)
    losses = [np.mean([row["loss"] for row in outcome.rows if row["epoch"] == epoch]) for epoch in (1, 2)]
    if not losses[-1] < losses[0]:
        raise SystemExit(f"The loss did not fall: {losses}")

    model, transform, _, _ = zoo.load(folder / "run" / "model.safetensors")
    pixels = np.stack([transform(image) for image in images])
    scores = zero_shot_classifier(model, CLASSES).predict(pixels, verbose=0)
    accuracy = np.mean([CLASSES[i] == label for i, label in zip(scores.argmax(axis=1), labels, strict=True)])

    exported = zoo.export_onnx(model.image_encoder, folder / "model.onnx")
    session, one = start_session(folder / "model.onnx"), pixels[:1]
    onnx_ms = milliseconds(lambda: session.run(None, {session.get_inputs()[0].name: one}))
    keras_ms = milliseconds(lambda: model.image_encoder.predict(one, verbose=0))

    latencies = [] if options.smoke else ["", "## Latency, both towers", "", *latency_table(COMPARED, (1, 32))]
    report = [
        f"# {name} on {count} captioned images",
        "",
        f"* loss by epoch: {', '.join(f'{loss:.3f}' for loss in losses)}",
        f"* zero-shot accuracy on the images it was trained on: {accuracy:.1%}; chance is {1 / len(CLASSES):.1%}",
        f"* ONNX: largest error against Keras {exported.error:.1e}; one image takes {onnx_ms:.1f} ms in ONNX Runtime, "
        f"{keras_ms:.1f} ms in Keras on {keras.backend.backend()}",
        *latencies,
        "",
        f"{time.perf_counter() - start:.0f} seconds in all.",
    ]
    (folder / "report.md").write_text("\n".join(report) + "\n", encoding="utf-8")
    print("\n".join(report))


if __name__ == "__main__":
    main()
