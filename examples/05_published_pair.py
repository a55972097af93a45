"""Classify two photographs zero-shot with a published CLIP model.

python examples/05_published_pair.py                                  # downloads 605 MB, once
python examples/05_published_pair.py convnext_base_w.laion2b_s13b_b82k_augreg   # more: zoo list 'clip/*' --weights
python examples/05_published_pair.py path/to/folder                   # with open_clip_config.json and weights
python examples/05_published_pair.py --smoke    # a small pair with random weights
"""

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
from sklearn.datasets import load_sample_images

import zoo
from clip import create_clip, zero_shot_classifier

NAMES = ("temple", "flower", "cat", "bicycle", "mountain lake")
TEMPLATES = ("a photo of a {}.", "a picture of a {}.")


def random_folder(folder):
    """Write a small pair with random weights in open_clip's layout: weights and config."""
    pair = create_clip("convnext_v2_atto", image_size=64, stem_stride=4)
    zoo.export_weights(pair, folder, format="open_clip")
    config = json.loads((folder / "open_clip_config.json").read_text(encoding="utf-8"))
    print(f"{folder.name}: {config['model_cfg']['vision_cfg']['timm_model_name']} with random weights")


def load(options):
    if not options.smoke:
        return zoo.load(options.pair)
    with tempfile.TemporaryDirectory(prefix="pair-") as folder:
        random_folder(Path(folder))
        return zoo.load(folder)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pair", nargs="?", default="ViT-B-32.laion2b_s34b_b79k", help="default: %(default)s")
    parser.add_argument("--smoke", action="store_true", help="use a folder with random weights")
    options = parser.parse_args()
    try:
        pair = load(options)
    except (OSError, ValueError) as error:
        parser.exit(2, f"{error}\n")
    print(f"{pair.info.name}: {pair.info.parameters:,} parameters, licence {pair.info.licence or 'not stated'}")

    classifier = zero_shot_classifier(pair.model, NAMES, TEMPLATES, tokenizer=pair.tokenizer)
    photographs = load_sample_images()  # from scikit-learn: china.jpg and flower.jpg
    images = np.stack([pair.transform(photograph) for photograph in photographs.images])
    for filename, scores in zip(photographs.filenames, classifier.predict(images, verbose=0), strict=True):
        best = np.argsort(-scores)
        print(f"{Path(filename).name}: " + ", ".join(f"{NAMES[k]} {scores[k]:.1%}" for k in best))


if __name__ == "__main__":
    main()
