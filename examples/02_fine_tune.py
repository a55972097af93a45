"""A ConvNeXtV2-Atto learns to tell 0 to 5 apart; then, its backbone frozen, a new head learns 6 to 9.

    python examples/02_fine_tune.py

The digits are scikit-learn's. What is fine-tuned here could as well be a published checkpoint: `weights=` takes both.
"""

import argparse
import tempfile

import keras
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import zoo
from convnext import create_convnext_v2

INPUT_SHAPE = (32, 32, 1)


def load(digits, *, limit):
    """Pictures float32 (N, 32, 32, 1) in −1...1 and labels from 0 of these digits: training, then held out."""
    data = load_digits()
    chosen = np.isin(data.target, digits)
    pictures = data.images[chosen].repeat(4, axis=1).repeat(4, axis=2)[..., None] / 8 - 1
    labels = data.target[chosen] - digits[0]
    parts = train_test_split(pictures.astype("float32"), labels, test_size=0.25, stratify=labels, random_state=0)
    return [part[:limit] for part in parts]


def fit(model, digits, *, epochs, learning_rate, limit):
    train_pictures, pictures, train_labels, labels = load(digits, limit=limit)
    optimizer = keras.optimizers.AdamW(learning_rate, weight_decay=0.05)
    model.compile(optimizer, loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    trainable = sum(int(np.prod(variable.shape)) for variable in model.trainable_variables)
    print(f"{digits[0]} to {digits[-1]}: {trainable:,} of {model.count_params():,} parameters learn.")
    model.fit(train_pictures, train_labels, batch_size=32, epochs=epochs, verbose=2)
    accuracy = model.evaluate(pictures, labels, verbose=0)[1]
    print(f"Held-out accuracy on {len(labels)} pictures of {digits[0]} to {digits[-1]}: {accuracy:.1%}\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=8, help="of each training (default %(default)s)")
    parser.add_argument("--smoke", action="store_true", help="one epoch on 64 pictures")
    options = parser.parse_args()
    epochs, limit = (1, 64) if options.smoke else (options.epochs, None)
    keras.utils.set_random_seed(0)

    model = create_convnext_v2("atto", 6, INPUT_SHAPE, stem_stride=4)  # its 4×4 patches are the original pixels
    fit(model, [0, 1, 2, 3, 4, 5], epochs=epochs, learning_rate=1e-3, limit=limit)

    with tempfile.TemporaryDirectory() as folder:
        zoo.save(model, f"{folder}/zero_to_five.safetensors")
        tuned = zoo.create_model(
            "convnextv2_atto", weights=f"{folder}/zero_to_five.safetensors", num_classes=4, input_shape=INPUT_SHAPE
        )  # four classes where the file has six: the head is new, and a warning says so
    for layer in tuned.layers:
        layer.trainable = layer.name == "head_fc"
    fit(tuned, [6, 7, 8, 9], epochs=epochs, learning_rate=1e-2, limit=limit)


if __name__ == "__main__":
    main()
