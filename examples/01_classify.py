"""A ConvNeXt V2 looks at scikit-learn's two photographs: its parts, its feature maps, its five likeliest classes.

    python examples/01_classify.py                                     # random weights
    python examples/01_classify.py --model convnextv2_base --weights FILE

FILE is a checkpoint as timm, transformers or `zoo.save` writes it. Another backend: KERAS_BACKEND=torch in front.
"""

import argparse

import numpy as np
from sklearn.datasets import load_sample_images

import zoo
from convnext import feature_maps


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="convnextv2_tiny", help="a classifier of `zoo list` (default %(default)s)")
    parser.add_argument("--weights", metavar="PATH", help="a weight file; without one the weights are random")
    parser.add_argument("--smoke", action="store_true", help="the smallest model instead")
    options = parser.parse_args()
    name = "convnextv2_atto" if options.smoke else options.model

    model = zoo.create_model(name, weights=options.weights)
    first_block = [layer.name for layer in model.layers if layer.name.endswith("_out")][0]
    model.summary(layer_range=[model.layers[0].name, first_block])
    print(f"Shown: stem and first block. All of {name}: {model.count_params():,} parameters.")

    transform = zoo.model_info(name).preprocess.eval_transform()
    photographs = load_sample_images()
    images = np.stack([transform(photograph) for photograph in photographs.images])  # (2, 224, 224, 3)

    for number, features in enumerate(feature_maps(model).predict(images, verbose=0)):
        print(f"Stage {number}: {features.shape[1:]}, mean {features.mean():+.3f}, deviation {features.std():.3f}")

    print("Classes by " + (options.weights or "random weights, which is to say at random") + ":")
    for path, scores in zip(photographs.filenames, model.predict(images, verbose=0), strict=True):
        best = np.argsort(-scores)[:5]
        print(f"{path[-10:]:>10}  " + "  ".join(f"class {k}: {scores[k]:.2%}" for k in best))


if __name__ == "__main__":
    main()
