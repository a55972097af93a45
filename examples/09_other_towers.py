"""Build a CLIP model from towers of other Keras libraries, train a step, and classify with prompts.

    python examples/09_other_towers.py --smoke                     # an image tower of keras.applications
    pip install 'convnext-clip-zoo[keras-hub]'
    python examples/09_other_towers.py --smoke --keras-hub         # image tower, text tower and tokenizer of KerasHub

Any `keras.Model` from images or token ids to (B, D) is a tower. Weights are random here; `weights="imagenet"` and
`from_preset(…)` give published ones.
"""

import argparse

import keras
import numpy as np
from keras import layers, ops

import clip

DIM, SIDE = 64, 64


def projected(features, inputs, name):
    """A tower: features (B, C), projected to (B, D)."""
    return keras.Model(inputs, layers.Dense(DIM, use_bias=False, name=f"{name}_proj")(features), name=name)


def applications_image_tower():
    backbone = keras.applications.MobileNetV3Small(
        (SIDE, SIDE, 3), weights=None, include_top=False, pooling="avg", include_preprocessing=False
    )
    return projected(backbone.output, backbone.input, "image_encoder")


def hub_image_tower():
    import keras_hub

    backbone = keras_hub.models.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[7],
        stackwise_num_filters=[64, 64],
        stackwise_num_blocks=[1, 1],
        stackwise_num_strides=[1, 2],
        block_type="basic_block",
        image_shape=(SIDE, SIDE, 3),
    )
    pooled = layers.GlobalAveragePooling2D(name="image_pool")(backbone.output)
    return projected(pooled, backbone.input, "image_encoder")


def hub_text_tower():
    """A text transformer, read at the end-of-text token, which has the largest id."""
    import keras_hub

    encoder = keras_hub.models.CLIPTextEncoder(
        vocabulary_size=clip.Tokenizer.vocab_size,
        embedding_dim=32,
        hidden_dim=32,
        num_layers=2,
        num_heads=2,
        intermediate_dim=128,
    )
    tokens = keras.Input((77,), dtype="int32", name="token_ids")
    end = ops.expand_dims(ops.expand_dims(ops.argmax(tokens, axis=-1), 1), 1)  # (B, 1, 1)
    features = ops.squeeze(ops.take_along_axis(encoder({"token_ids": tokens}), end, axis=1), axis=1)
    return projected(features, tokens, "text_encoder")


def hub_tokenizer():
    """KerasHub's CLIP tokenizer with OpenAI's vocabulary; `CLIPTokenizer.from_preset(…)` downloads the same."""
    import keras_hub

    vocabulary, merges = clip.Tokenizer().tables()
    return keras_hub.models.CLIPTokenizer(vocabulary=vocabulary, merges=merges)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keras-hub", action="store_true", help="towers and tokenizer of KerasHub")
    parser.add_argument("--smoke", action="store_true", help="one epoch instead of five")
    options = parser.parse_args()
    if options.keras_hub:
        image_tower, text_tower, tokenizer = hub_image_tower(), hub_text_tower(), hub_tokenizer()
    else:
        image_tower, text_tower = applications_image_tower(), clip.create_text_tower(clip.Text(32, 2, 2), DIM)
        tokenizer = None
    pair = clip.create_clip(image_tower=image_tower, text_tower=text_tower)

    colors = {"red": (1, -1, -1), "green": (-1, 1, -1), "blue": (-1, -1, 1)}
    images = np.stack([np.full((SIDE, SIDE, 3), color, "float32") for color in colors.values()])
    tokens = clip.as_tokenize(tokenizer)([f"a {name} wall" for name in colors])
    pair.compile(keras.optimizers.Adam(1e-3), loss="clip")
    pair.fit({"images": images, "tokens": tokens}, epochs=1 if options.smoke else 5, verbose=0)

    classifier = clip.zero_shot_classifier(pair, list(colors), ("a {} wall",), tokenizer=tokenizer)
    for name, scores in zip(colors, classifier.predict(images, verbose=0), strict=True):
        print(f"{name:>5} image: " + ", ".join(f"{k} {p:.2f}" for k, p in zip(colors, scores, strict=True)))


if __name__ == "__main__":
    main()
