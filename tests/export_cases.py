"""Tiny models of every family, with weights that depend only on a seed.

`python tests/export_cases.py` prints {case: {precision: SHA-256 of the ONNX file}} on the current backend; given names
of the zoo, those of these models with weights drawn in the same way.
"""

import dataclasses
import hashlib
import json
import math
import sys

import keras
import numpy as np

import clip
from convnext import TABLES, ResNetVariant, Variant, create_convnext_v1, create_convnext_v2, create_resnet, feature_maps
from zoo import create_model
from zoo.export import emit, to_proto
from zoo.models.names import find

ROW = Variant(depths=(1, 2), dims=(8, 16))
TEXT = clip.Text(width=16, heads=2, layers=2, context_length=10, vocabulary_size=50)
MOBILE_TEXT = clip.Text(16, 2, 3, 10, 50, causal=False, mixer_kernel=5)
MOBILE = clip.MCi((1, 1, 1, 1), (8, 16, 32, 64))
WIDE = clip.MCi((1, 1, 1, 1, 1), (8, 8, 16, 32, 64), 4, 2, 0, "layer", stem_scale=False)
SIZE = (32, 32, 3)


def resnet(block):
    return create_resnet(ResNetVariant(depths=(1, 1), dims=(8, 16), block=block, stem_dim=8), 5, SIZE)


def pair(image, size=32, text=TEXT, **options):
    return clip.create_clip(clip.Pair(12, size, image, text), **options)


def zero_shot():
    model = pair(clip.ConvNeXt("convnext", ROW), text=clip.Text(16, 2, 1))
    return clip.zero_shot_classifier(seeded(model), ["cat", "dog", "bird"])


def convnext(create, **options):
    return create(ROW, 5, SIZE, classifier_activation=None, **options)


CASES = {
    "convnext v1": lambda: convnext(create_convnext_v1, drop_path_rate=0.1),
    "convnext v2": lambda: convnext(create_convnext_v2),
    "fine stem": lambda: convnext(create_convnext_v2, stem_stride=2),
    "softmax": lambda: create_convnext_v1(ROW, 5, SIZE),
    "trunk": lambda: create_convnext_v1(ROW, 5, SIZE, include_top=False, pooling="max"),
    "open size": lambda: create_convnext_v2(ROW, 5, (None, None, 3)),
    "feature maps": lambda: feature_maps(create_convnext_v1(ROW, 5, SIZE)),
    "resnet basic": lambda: resnet("basic"),
    "resnet bottleneck": lambda: resnet("bottleneck"),
    "vit pair": lambda: pair(clip.ViT(width=16, layers=2, patch_size=8, head_width=8)),
    "quick gelu": lambda: pair(clip.ViT(16, 1, 16, 8), activation="quick_gelu"),
    "convnext pair": lambda: pair(clip.ConvNeXt("convnextv2", ROW), init_logit_bias=-1.0),
    "mlp pair": lambda: pair(clip.ConvNeXt("convnext", ROW, "mlp")),
    "resnet pair": lambda: pair(clip.ResNet((1, 1, 1, 1), 4)),
    "mobile pair": lambda: pair(MOBILE, 70, MOBILE_TEXT),
    "wide mobile pair": lambda: pair(WIDE, 65),
    "stem of convolutions": lambda: pair(clip.ViT(16, 2, 16, 8, stem_dim=8, stem_padding=1, projection_bias=True)),
    "zero-shot": zero_shot,
}


def build(case):
    """Return the model of a case, or of a zoo name."""
    return seeded(CASES[case]() if case in CASES else create_model(case))


def narrow(name):
    """Return a model shaped like a zoo model, with an eighth of its blocks and few channels."""
    entry = find(name)
    if entry.family != "clip":
        create = {"convnext": create_convnext_v1, "convnextv2": create_convnext_v2, "resnet": create_resnet}
        return create[entry.family](narrow_row(TABLES[entry.family][entry.label]))
    row = clip.VARIANTS[entry.label]
    text = dataclasses.replace(row.text, width=2 * row.text.width // row.text.heads, heads=2, layers=2)
    return clip.create_clip(clip.Pair(64, row.image_size, narrow_image(row.image), text, row.activation))


def narrow_row(row):
    depths = tuple(math.ceil(depth / 8) for depth in row.depths)
    return dataclasses.replace(row, depths=depths, dims=tuple(dim // 8 for dim in row.dims))


def narrow_image(image):
    """Return a narrow row of an image tower."""
    if isinstance(image, clip.ConvNeXt):
        return dataclasses.replace(image, variant=narrow_row(TABLES[image.family][image.variant]))
    if isinstance(image, clip.ResNet):
        layers = tuple(math.ceil(count / 8) for count in image.layers)
        return dataclasses.replace(image, layers=layers, width=image.width // 8)
    if isinstance(image, clip.MCi):
        return narrow_row(image)
    return dataclasses.replace(image, layers=2, width=2 * image.head_width)


def seeded(model, scale=0.2):
    """Draw every weight from NumPy's generator; gains and variances near one."""
    rng = np.random.default_rng(0)
    for weight in model.weights:
        if "seed" in weight.name:
            continue
        noise = scale * rng.standard_normal(weight.shape).astype(np.float32)
        around_one = any(word in weight.name for word in ("variance", "gamma", "logit_scale"))
        weight.assign(1 + np.clip(noise, -0.5, 0.5) if around_one else noise)
    return model


def digests(cases=CASES):
    found = {}
    for case in cases:
        model = build(case)
        found[case] = {
            precision: hashlib.sha256(to_proto(emit(model, precision=precision)).SerializeToString()).hexdigest()
            for precision in ("float32", "float16", "int8")
        }
        keras.utils.clear_session(free_memory=False)
    return found


if __name__ == "__main__":
    print(json.dumps(digests(sys.argv[1:] or CASES)))
