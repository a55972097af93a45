"""Run a ConvNeXt V2 classifier on two photographs: model summary, feature maps, five most probable classes.

    python examples/01_classify.py                                     # random weights
    python examples/01_classify.py --model convnextv2_base --weights FILE

FILE is a checkpoint of timm or transformers, or a file written by `zoo.save`. The photographs come with scikit-learn.
Set KERAS_BACKEND=torch to use another backend.
"""

import argparse

import numpy as np
from sklearn.datasets import load_sample_images

import zoo
from convnext import feature_maps


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="convnextv2_tiny", help="a classifier from `zoo list` (default %(default)s)")
    parser.add_argument("--weights", metavar="PATH", help="weight file (default: random weights)")
    parser.add_argument("--smoke", action="store_true", help="use the smallest model")
    options = parser.parse_args()
    name = "convnextv2_atto" if options.smoke else options.model

    model = zoo.create_model(name, weights=options.weights)
    first_block = [layer.name for layer in model.layers if layer.name.endswith("_out")][0]
    model.summary(layer_range=[model.layers[0].name, first_block])
    print(f"Above: the stem and the first block. {name} has {model.count_params():,} parameters.")

    transform = zoo.model_info(name).preprocess.eval_transform()
    photographs = load_sample_images()
    images = np.stack([transform(photograph) for photograph in photographs.images])  # (2, 224, 224, 3)

    for number, features in enumerate(feature_maps(model).predict(images, verbose=0)):
        print(f"Stage {number}: {features.shape[1:]}, mean {features.mean():+.3f}, std {features.std():.3f}")

    print(f"Most probable classes with {options.weights or 'random weights'}:")
    for path, scores in zip(photographs.filenames, model.predict(images, verbose=0), strict=True):
        best = np.argsort(-scores)[:5]
        print(f"{path[-10:]:>10}  " + "  ".join(f"class {k}: {scores[k]:.2%}" for k in best))


if __name__ == "__main__":
    main()
