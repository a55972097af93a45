"""Classify handwritten digits zero-shot, with the CLIP model that `zoo demo` trained.

zoo demo                                   # once; writes demo-output/model.safetensors
python examples/03_zero_shot.py
python examples/03_zero_shot.py --smoke    # with random weights, at chance accuracy
"""

import argparse
import tempfile

import numpy as np

import zoo
from clip import CLASS_NAMES, TEMPLATES, create_clip, zero_shot_classifier
from zoo.data.digits import load_split


def random_pair():
    """Return the demo's pair before training, saved and reloaded."""
    with tempfile.TemporaryDirectory() as folder:
        zoo.save(create_clip("convnext_v2_atto", image_size=32, stem_stride=2), f"{folder}/pair.safetensors")
        return zoo.load(f"{folder}/pair.safetensors")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pair", nargs="?", default="demo-output/model.safetensors", help="default: %(default)s")
    parser.add_argument("--smoke", action="store_true", help="use a pair with random weights")
    options = parser.parse_args()
    try:
        pair = random_pair() if options.smoke else zoo.load(options.pair)
    except FileNotFoundError as error:
        parser.exit(2, f"{error} Run `zoo demo` first.\n")

    names, templates = CLASS_NAMES["digits"], TEMPLATES["digits"]
    classifier = zero_shot_classifier(pair.model, names, templates, tokenizer=pair.tokenizer)
    print(f"Class 3 of {len(names)}: " + ", ".join(f'"{template.format(names[3])}"' for template in templates))

    digits = load_split()[1]  # the demo does not train on these
    images, labels = digits.images, digits.labels
    scores = classifier.predict(np.stack([pair.transform(image) for image in images]), verbose=0)
    for row in images[0, 2::4, 2::4, 0]:
        print("  " + "".join(" .:+*#%@"[7 - ink // 32] * 2 for ink in row))
    best = np.argsort(-scores[0])[:3]
    print("Predicted: " + ", ".join(f"{names[k]} ({scores[0, k]:.1%})" for k in best) + ".")
    correct = int((scores.argmax(axis=1) == labels).sum())
    print(f"Accuracy: {correct / len(labels):.1%} ({correct} of {len(labels)} held-out digits).")


if __name__ == "__main__":
    main()
