"""A CLIP of one's own: a ConvNeXt V2 and a transformer learn digits from captions, then read others from new sentences.

    python examples/04_tiny_clip.py
    python examples/04_tiny_clip.py --smoke

`zoo demo` does the same with augmentation, a schedule and a report.
"""

import argparse

import keras
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from clip import CLASS_NAMES, TEMPLATES, create_clip, tokenize, zero_shot_classifier

BATCH_SIZE = 64
NAMES = CLASS_NAMES["digits"]  # zero, one, two, …
CAPTIONS = ("the number {}", "a {} written by hand", "somebody wrote a {}.", "this is a {}.", "{}, drawn with a pen")


def pairs(pictures, labels, rng):
    """What `fit` takes: pictures, a caption for each, and labels, by which captions of one digit are right for all its
    pictures."""
    captions = [rng.choice(CAPTIONS).format(NAMES[label]) for label in labels]
    return {"images": pictures, "tokens": tokenize(captions, context_length=12), "label": labels.astype("int32")}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=8, help="default: %(default)s")
    parser.add_argument("--smoke", action="store_true", help="one epoch on 64 pictures")
    options = parser.parse_args()
    keras.utils.set_random_seed(0)

    data = load_digits()
    pictures = data.images.repeat(4, axis=1).repeat(4, axis=2)[..., None].repeat(3, axis=3).astype("float32") / 8 - 1
    train, held_out = train_test_split(np.arange(len(pictures)), test_size=360, stratify=data.target, random_state=0)
    train = train[: BATCH_SIZE if options.smoke else len(train) // BATCH_SIZE * BATCH_SIZE]  # whole batches only

    model = create_clip("convnext_v2_atto", image_size=32, stem_stride=2)
    model.compile(keras.optimizers.AdamW(5e-4), loss="clip")
    examples = pairs(pictures[train], data.target[train], np.random.default_rng(0))
    model.fit(examples, batch_size=BATCH_SIZE, epochs=1 if options.smoke else options.epochs, verbose=2)

    reader = zero_shot_classifier(model, NAMES, TEMPLATES["digits"])  # "a photo of the digit {}.", and three more
    scores = reader.predict(pictures[held_out], verbose=0)
    accuracy = (scores.argmax(axis=1) == data.target[held_out]).mean()
    print(f"Held-out digits read right, from sentences that were no captions: {accuracy:.1%}")


if __name__ == "__main__":
    main()
