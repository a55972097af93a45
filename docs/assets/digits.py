"""Draw the README's figure, docs/assets/digits.png, from the model that `zoo demo` trained.

zoo demo --backend jax                # once; it writes demo-output/model.safetensors
python docs/assets/digits.py
"""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import zoo
from clip import CLASS_NAMES, TEMPLATES

COLUMNS = 9
SENTENCES = ("a photo of the digit seven.", "a photo of the digit three.")
NAMES = CLASS_NAMES["digits"]
GREEN, RED, GREY = "#2e7d32", "#c62828", "#555555"


def held_out_digits():
    """Return images uint8 (360, 8, 8), dark on light, and labels (360,): those the demo does not train on."""
    data = load_digits()
    _, held_out = train_test_split(np.arange(len(data.target)), test_size=360, stratify=data.target, random_state=0)
    return 255 - np.rint(data.images[held_out] * (255 / 16)).astype("uint8"), data.target[held_out]


def main(model="demo-output/model.safetensors"):
    images, labels = held_out_digits()
    pipeline = zoo.ClipPipeline(model)
    probabilities = pipeline.classify(list(images), NAMES, TEMPLATES["digits"])
    accuracy = (probabilities.argmax(axis=1) == labels).mean()
    cosines = pipeline.similarity(list(images), SENTENCES)

    first = [int(np.flatnonzero(labels == k)[0]) for k in range(COLUMNS)]
    notes = [f"{NAMES[probabilities[i].argmax()]} {probabilities[i].max():.0%}" for i in first]
    right = [probabilities[i].argmax() == labels[i] for i in first]
    rows = [(f"Zero-shot: {accuracy:.1%} of\n360 held-out digits", first, notes, right)]
    for column, sentence in enumerate(SENTENCES):
        best = np.argsort(-cosines[:, column])[:COLUMNS]
        wanted = NAMES.index(sentence.rstrip(".").split()[-1])
        scores = [f"{cosines[i, column]:.3f}" for i in best]
        rows.append((f"Search:\n“{sentence}”", best, scores, labels[best] == wanted))

    figure, axes = plt.subplots(len(rows), COLUMNS + 1, figsize=(9.2, 3.1), width_ratios=[2.9] + [1] * COLUMNS)
    for line, (title, chosen, notes, right) in zip(axes, rows, strict=True):
        line[0].axis("off")
        line[0].text(1, 0.5, title, ha="right", va="center", fontsize=8.5)
        for ax, i, note, good in zip(line[1:], chosen, notes, right, strict=True):
            ax.imshow(images[i], cmap="gray", vmin=0, vmax=255)
            ax.set(xticks=[], yticks=[])
            ax.set_xlabel(note, fontsize=7, color=GREY, labelpad=2)
            for spine in ax.spines.values():
                spine.set(color=GREEN if good else RED, linewidth=1.8)
    figure.tight_layout(pad=0.4)
    figure.savefig(Path(__file__).with_suffix(".png"), dpi=150)


if __name__ == "__main__":
    main(*sys.argv[1:])
