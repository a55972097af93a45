"""Images a second of a training step, of the input pipeline alone, and of both together: which of them is the limit.

    KERAS_BACKEND=jax python tests/bench_training.py [--model convnextv2_atto | clip/convnext_v2_atto] [--threads 1]

The images are JPEG files of scikit-learn's two photographs (640 x 427), augmented as training does. A pair's captions
are of usual length.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import keras

import zoo
from zoo.data import CLASSIFICATION, CONTRASTIVE, Batches, read_csv
from zoo.data.throughput import write_photographs
from zoo.training.contrastive import Tokenize, preprocessing
from zoo.training.loop import Steps
from zoo.training.optimizer import create_optimizer
from zoo.training.setup import prepare

CAPTION = "a photograph of a temple in China among trees, or of a yellow flower, taken on a clear day"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="convnextv2_atto")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=6, help="of each measurement (default %(default)s)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        print(json.dumps(measure(options, write(Path(scratch), 4 * options.batch_size)), indent=1))


def write(folder, count):
    """A table of photographs with captions and classes."""
    write_photographs(folder, count)
    rows = [f'{path.relative_to(folder)},"{CAPTION}",{path.parent.name}' for path in sorted(folder.rglob("*.jpg"))]
    (folder / "train.csv").write_text("\n".join(["filepath,caption,class", *rows]))
    return folder / "train.csv"


class Again:
    """The same batch at every place: steps without a pipeline."""

    def __init__(self, batch):
        self.batch = batch

    def __getitem__(self, place):
        return self.batch


def measure(options, table):
    """Rates of the step, of the pipeline, and of both; each after a first, unmeasured round."""
    model, batches, arrange = create(options, table)
    count, rates = options.steps, {}

    def fit(source, first):
        model.fit(Steps(source, range(first, first + count), arrange), shuffle=False, verbose=0)

    with batches:
        jobs = {
            "step": lambda first: fit(Again(batches[0]), first),
            "step and pipeline": lambda first: fit(batches, first),
            "pipeline": lambda first: [batches[place] for place in range(first, first + count)],
        }
        for name, job in jobs.items():
            job(0)
            start = time.perf_counter()
            job(count)
            rates[name] = round(count * options.batch_size / (time.perf_counter() - start), 1)
    return {"backend": keras.backend.backend(), **vars(options), **rates}


def create(options, table):
    """(compiled model, batches, from a batch to what `fit` takes)"""
    keras.utils.set_random_seed(0)
    shape = {"batch_size": options.batch_size, "threads": options.threads}
    optimizer, state = create_optimizer(1e-4, 1000), {"precision": "float32", "ema": None}
    if options.model.startswith("clip/"):
        model = zoo.create_model(options.model, image_size=options.image_size)
        prepare(model, optimizer, loss="clip", **state)
        data = read_csv(table, "filepath", "caption")
        return (
            model,
            Batches(data, preprocessing(model), augment=CONTRASTIVE, tokenize=Tokenize(), **shape),
            lambda b: b,
        )
    size = (options.image_size, options.image_size, 3)
    model = zoo.create_model(options.model, num_classes=2, input_shape=size, classifier_activation=None)
    prepare(model, optimizer, loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True), **state)
    data, spec = read_csv(table, "filepath", None, label_key="class"), zoo.model_info(options.model).preprocess
    batches = Batches(data, type(spec)(options.image_size, spec.mean, spec.std), augment=CLASSIFICATION, **shape)
    return model, batches, lambda b: (b["images"], b["label"])


if __name__ == "__main__":
    main()
