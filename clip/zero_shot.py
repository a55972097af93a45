"""Zero-shot classification: an image tower with a class matrix as its head. Paper: arXiv:2103.00020, section 3.1."""

from collections.abc import Mapping, Sequence

import keras
from keras import ops

from clip.layers import PACKAGE, l2_normalize
from clip.model import CLIP
from clip.prompts import SIMPLE_TEMPLATES, Tokenize, class_matrix


@keras.saving.register_keras_serializable(PACKAGE)
class ZeroShotHead(keras.layers.Layer):
    """Class scores of image features: softmax over exp(logit_scale) · cosine with each class.

    Args:
        class_names: K names, in the order of the scores.
        activation: of the scores; "softmax", or None for logits.

    Input (B, D); output (B, K) float32. Weights, not trained: class_matrix (D, K), normalised columns; logit_scale ().
    """

    def __init__(self, class_names, activation="softmax", **kwargs):
        super().__init__(**{**kwargs, "dtype": "float32"})
        self.class_names = list(class_names)
        self.activation = keras.activations.get(activation)

    def build(self, input_shape):
        shape = (input_shape[-1], len(self.class_names))
        self.class_matrix = self.add_weight(shape=shape, initializer="zeros", trainable=False, name="class_matrix")
        self.logit_scale = self.add_weight(shape=(), initializer="zeros", trainable=False, name="logit_scale")

    def call(self, features):
        return self.activation(ops.exp(self.logit_scale) * ops.matmul(l2_normalize(features), self.class_matrix))

    def compute_output_shape(self, input_shape):
        return (input_shape[0], len(self.class_names))

    def get_config(self):
        activation = keras.activations.serialize(self.activation)
        return {**super().get_config(), "class_names": self.class_names, "activation": activation}


def zero_shot_classifier(
    model: CLIP,
    class_names: Sequence[str] | Mapping[str, Sequence[str]],
    templates: Sequence[str] = SIMPLE_TEMPLATES,
    *,
    activation: str | None = "softmax",
    tokenizer: Tokenize | None = None,
    batch_size: int = 256,
    name: str = "zero_shot_classifier",
) -> keras.Model:
    """Build a `keras.Model` from images to class scores out of prompts.

    It shares the image tower's weights, holds a copy of the class matrix and the temperature, and saves and loads
    without the text tower. `model.get_layer("zero_shot_head").class_names` lists the names in the order of the scores.

    Args:
        model: `clip.CLIP`.
        class_names, templates: K classes, as in `class_matrix`.
        activation: "softmax" gives probabilities, None logits.
        tokenizer: from a list of strings to int32 (N, L); default `clip.tokenize`.
        batch_size: prompts per batch.

    Returns:
        A model from (B, H, W, 3) float32, normalised, to (B, K) float32.

    Raises:
        ValueError: no class names, no templates, or a template without exactly one "{}".
    """
    matrix = class_matrix(model, class_names, templates, tokenizer=tokenizer, batch_size=batch_size)
    images = keras.Input(model.image_encoder.input_shape[1:], name="images")
    head = ZeroShotHead(class_names, activation, name="zero_shot_head")
    classifier = keras.Model(images, head(model.image_encoder(images)), name=name)
    head.class_matrix.assign(matrix)
    # A copy: on JAX a shared buffer would be donated when either model runs.
    head.logit_scale.assign(ops.convert_to_numpy(model.logit_scale.logit_scale))
    return classifier
