"""Zero-shot classification: an image tower with a class matrix as its head. Paper: arXiv:2103.00020, section 3.1."""

from collections.abc import Mapping, Sequence
from typing import Any

import keras
from keras import ops

from clip.layers import PACKAGE, l2_normalize
from clip.model import CLIP
from clip.prompts import SIMPLE_TEMPLATES, Tokenize, check_classes, class_matrix


@keras.saving.register_keras_serializable(PACKAGE)
class ZeroShotHead(keras.layers.Layer):
    """Class scores of image features: an activation of exp(logit_scale) · cosine with each class (+ logit_bias).

    Args:
        class_names: K names, in the order of the scores.
        activation: activation of the scores; "softmax", "sigmoid", or None for logits.
        use_bias: whether there is a logit_bias.

    Input (B, D); output (B, K) float32. Weights, not trained: class_matrix (D, K), normalised columns; logit_scale ();
    logit_bias (), if any.
    """

    def __init__(self, class_names, activation="softmax", use_bias=False, **kwargs):
        super().__init__(**{**kwargs, "dtype": "float32"})
        self.class_names = list(class_names)
        self.use_bias = use_bias
        self.activation = keras.activations.get(activation)

    def build(self, input_shape):
        shape = (input_shape[-1], len(self.class_names))
        self.class_matrix = self.add_weight(shape=shape, initializer="zeros", trainable=False, name="class_matrix")
        self.logit_scale = self.add_weight(shape=(), initializer="zeros", trainable=False, name="logit_scale")
        self.logit_bias: Any = None
        if self.use_bias:
            self.logit_bias = self.add_weight(shape=(), initializer="zeros", trainable=False, name="logit_bias")

    def call(self, features):
        logits = ops.exp(self.logit_scale) * ops.matmul(l2_normalize(features), self.class_matrix)
        return self.activation(logits if self.logit_bias is None else logits + self.logit_bias)

    def compute_output_shape(self, input_shape):
        return (input_shape[0], len(self.class_names))

    def get_config(self):
        activation = keras.activations.serialize(self.activation)
        own = {"class_names": self.class_names, "activation": activation, "use_bias": self.use_bias}
        return {**super().get_config(), **own}


def zero_shot_classifier(
    model: CLIP,
    class_names: Sequence[str] | Mapping[str, Sequence[str]],
    templates: Sequence[str] = SIMPLE_TEMPLATES,
    *,
    activation: str | None = "auto",
    tokenizer: Tokenize | None = None,
    batch_size: int = 256,
    name: str = "zero_shot_classifier",
) -> keras.Model:
    """Build a `keras.Model` from images to class scores, with classes described by prompts.

    It shares the image tower's weights, holds a copy of the class matrix, the temperature and the bias, and saves and
    loads without the text tower. Its logits are those of `model.logits`.
    `model.get_layer("zero_shot_head").class_names` lists the names in the order of the scores.

    Args:
        model: `clip.CLIP`.
        class_names, templates: K classes, as in `class_matrix`.
        activation: "softmax" gives probabilities that sum to 1; "sigmoid" gives each class its own; None gives logits.
            "auto" is what the pair was trained with: "sigmoid" if it has a logit bias, else "softmax".
        tokenizer: from a list of strings to int32 (N, L), or a tokenizer of KerasHub; default `clip.tokenize`.
        batch_size: prompts per batch.

    Returns:
        A model from (B, H, W, 3) float32, normalised, to (B, K) float32.

    Raises:
        ValueError: classes or templates that `class_matrix` refuses.
    """
    names, templates = check_classes(class_names, templates)
    matrix = class_matrix(model, names, templates, tokenizer=tokenizer, batch_size=batch_size)
    images = keras.Input(model.image_encoder.input_shape[1:], name="images")
    bias = model.logit_scale.logit_bias
    if activation == "auto":
        activation = "softmax" if bias is None else "sigmoid"
    head = ZeroShotHead(names, activation, use_bias=bias is not None, name="zero_shot_head")
    classifier = keras.Model(images, head(model.image_encoder(images)), name=name)
    head.class_matrix.assign(matrix)
    # A copy: on JAX a shared buffer would be donated when either model runs.
    head.logit_scale.assign(ops.convert_to_numpy(model.logit_scale.logit_scale))
    if bias is not None:
        head.logit_bias.assign(ops.convert_to_numpy(bias))
    return classifier
