"""A pair that `zoo demo` trained reads held-out digits, told what to look for in sentences alone.

zoo demo                                   # once; it leaves demo-output/model.safetensors
python examples/03_zero_shot.py
python examples/03_zero_shot.py --smoke    # with a pair of random weights, which can only guess
"""

import argparse
import tempfile

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import zoo
from clip import CLASS_NAMES, TEMPLATES, create_clip, zero_shot_classifier


def held_out_digits():
    """Pictures uint8 (360, 8, 8), ink dark on light, and labels (360,): those that the demo did not train on."""
    data = load_digits()
    _, held_out = train_test_split(np.arange(len(data.target)), test_size=360, stratify=data.target, random_state=0)
    held_out.sort()
    return 255 - np.rint(data.images[held_out] * (255 / 16)).astype(np.uint8), data.target[held_out]


def random_pair():
    """A pair as the demo makes it before training, saved and loaded again."""
    with tempfile.TemporaryDirectory() as folder:
        zoo.save(create_clip("convnext_v2_atto", image_size=32, stem_stride=2), f"{folder}/pair.safetensors")
        return zoo.load(f"{folder}/pair.safetensors")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pair", nargs="?", default="demo-output/model.safetensors", help="default: %(default)s")
    parser.add_argument("--smoke", action="store_true", help="a pair with random weights instead")
    options = parser.parse_args()
    try:
        pair = random_pair() if options.smoke else zoo.load(options.pair)
    except FileNotFoundError as error:
        parser.exit(2, f"{error} `zoo demo` makes one.\n")

    names, templates = CLASS_NAMES["digits"], TEMPLATES["digits"]
    classifier = zero_shot_classifier(pair.model, names, templates, tokenizer=pair.tokenizer)
    print(f"Class 3 of {len(names)}: " + ", ".join(f'"{template.format(names[3])}"' for template in templates))

    pictures, labels = held_out_digits()
    scores = classifier.predict(np.stack([pair.transform(picture) for picture in pictures]), verbose=0)
    for row in pictures[0]:
        print("  " + "".join(" .:+*#%@"[7 - ink // 32] * 2 for ink in row))
    best = np.argsort(-scores[0])[:3]
    print("This is read as " + ", ".join(f"{names[k]} ({scores[0, k]:.1%})" for k in best) + ".")
    right = int((scores.argmax(axis=1) == labels).sum())
    print(f"Read correctly: {right} of {len(labels)} held-out digits ({right / len(labels):.1%}).")


if __name__ == "__main__":
    main()
