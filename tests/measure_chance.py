"""What `zoo eval zero-shot` makes of noise with a pair that has learned nothing: chance, if it is fair.

    python tests/measure_chance.py --backend torch --images 10000

Writes pictures of noise in the layout of cifar-100-python.tar.gz, as many of each of the 100 classes, saves a pair with
random weights, and runs the command on them. An evaluation that leaked labels, or broke ties its own way, would not
come to 1 %. The last line is what a public report gives of its own ConvNeXt-V2 pair.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from published_files import write_cifar100  # noqa: E402

SIDE, CLASSES = 32, 100
REPORTED = "1.03 % of CIFAR-100, with random weights"


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", default=os.environ.get("KERAS_BACKEND", "torch"))
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    os.environ["KERAS_BACKEND"] = options.backend
    import keras

    import zoo
    from clip import create_clip
    from zoo.cli import main as command
    from zoo.data.preprocess import PreprocessSpec

    keras.utils.set_random_seed(options.seed)
    rng = np.random.default_rng(options.seed)
    labels = rng.permutation(np.arange(options.images) % CLASSES)
    pictures = rng.integers(0, 256, (options.images, SIDE, SIDE, 3), np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        data = write_cifar100(Path(folder), pictures, labels)
        pair = create_clip("convnext_v2_atto", image_size=SIDE, stem_stride=4)
        model = Path(folder, "random.safetensors")
        zoo.save(pair, model, preprocess=PreprocessSpec(image_size=SIDE))
        words = ["eval", "zero-shot", "--model", str(model), "--dataset", "cifar100", "--data", str(data)]
        failed = command([*words, "--backend", options.backend])
    print(f"{'reported':<16}{REPORTED}")
    return failed


if __name__ == "__main__":
    sys.exit(main())
