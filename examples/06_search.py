"""Search images by text: an index of handwritten digits, embedded by the CLIP model that `zoo demo` trained.

zoo demo                                # once; writes demo-output/model.safetensors
python examples/06_search.py
python examples/06_search.py --smoke    # with random weights, at chance precision
"""

import argparse
import tempfile

import numpy as np

import zoo
from clip import CLASS_NAMES, create_clip
from zoo.data.digits import load_split
from zoo.data.preprocess import PreprocessSpec
from zoo.search import Index


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pair", nargs="?", default="demo-output/model.safetensors", help="default: %(default)s")
    parser.add_argument("--smoke", action="store_true", help="use a pair with random weights")
    options = parser.parse_args()
    try:
        if options.smoke:
            random_pair = create_clip("convnext_v2_atto", image_size=32, stem_stride=2)
            pipeline = zoo.ClipPipeline(random_pair, preprocess=PreprocessSpec(image_size=32))
        else:
            pipeline = zoo.ClipPipeline(options.pair)
    except FileNotFoundError as error:
        parser.exit(2, f"{error} Run `zoo demo` first.\n")

    digits = load_split()[1]
    count = 60 if options.smoke else len(digits)
    images, labels = digits.images[:count], digits.labels[:count]
    with tempfile.TemporaryDirectory() as folder:
        metadata = [{"digit": int(label)} for label in labels]
        vectors = pipeline.embed_images(images)
        index = Index.build(vectors, f"{folder}/digits", metadata=metadata, model=pipeline.fingerprint)
        print(f"{len(index)} images in an index of {index.info()['bytes'] / 1e3:.0f} kB.")
        precisions = []
        for digit, word in enumerate(CLASS_NAMES["digits"]):
            ids, scores = pipeline.search(index, f"a handwritten {word}.", k=10)
            found = [index.metadata(identity)["digit"] for identity in ids]
            precisions.append(np.mean(np.array(found) == digit))
            print(f"a handwritten {word}. → {' '.join(map(str, found))}   (best cosine {scores[0]:.3f})")
    print(f"Precision at 10: {np.mean(precisions):.1%}.")


if __name__ == "__main__":
    main()
