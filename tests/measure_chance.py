"""Check that `zoo eval zero-shot` gives chance accuracy for random images and a pair with random weights.

    python tests/measure_chance.py --backend torch --images 10000

Writes random images in the layout of cifar-100-python.tar.gz, equally many per class, saves a pair with random weights
and runs the command. An evaluation that leaks labels or breaks ties in favour of a class does not give 1 %. The last
line is the figure of a public report for its own ConvNeXt-V2 pair.
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
    images = rng.integers(0, 256, (options.images, SIDE, SIDE, 3), np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        data = write_cifar100(Path(folder), images, labels)
        pair = create_clip("convnext_v2_atto", image_size=SIDE, stem_stride=4)
        model = Path(folder, "random.safetensors")
        zoo.save(pair, model, preprocess=PreprocessSpec(image_size=SIDE))
        words = ["eval", "zero-shot", "--model", str(model), "--dataset", "cifar100", "--data", str(data)]
        failed = command([*words, "--backend", options.backend])
    print(f"{'reported':<16}{REPORTED}")
    return failed


if __name__ == "__main__":
    sys.exit(main())
