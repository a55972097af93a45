"""Pictures found by sentences: scikit-learn's held-out digits, searched with a pair that `zoo demo` trained.

zoo demo                                # once; it leaves demo-output/model.safetensors
python examples/06_search.py
python examples/06_search.py --smoke    # with a pair of random weights, which can only guess
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
    parser.add_argument("--smoke", action="store_true", help="a pair with random weights instead")
    options = parser.parse_args()
    try:
        if options.smoke:
            random_pair = create_clip("convnext_v2_atto", image_size=32, stem_stride=2)
            pipeline = zoo.ClipPipeline(random_pair, preprocess=PreprocessSpec(image_size=32))
        else:
            pipeline = zoo.ClipPipeline(options.pair)
    except FileNotFoundError as error:
        parser.exit(2, f"{error} `zoo demo` makes one.\n")

    digits = load_split()[1]
    pictures, labels = (digits.pictures[:60], digits.labels[:60]) if options.smoke else (digits.pictures, digits.labels)
    with tempfile.TemporaryDirectory() as folder:
        metadata = [{"digit": int(label)} for label in labels]
        vectors = pipeline.embed_images(pictures)
        index = Index.build(vectors, f"{folder}/digits", metadata=metadata, model=pipeline.fingerprint)
        print(f"{len(index)} pictures in an index of {index.info()['bytes'] / 1e3:.0f} kB.")
        shares = []
        for digit, word in enumerate(CLASS_NAMES["digits"]):
            ids, scores = pipeline.search(index, f"a handwritten {word}.", k=10)
            found = [index.metadata(identity)["digit"] for identity in ids]
            shares.append(np.mean(np.array(found) == digit))
            print(f"a handwritten {word}. → {' '.join(map(str, found))}   (best cosine {scores[0]:.3f})")
    print(f"Precision at 10: {np.mean(shares):.1%}.")


if __name__ == "__main__":
    main()
