"""Zero-shot classification: prompts become a class matrix, and that matrix the head of an ordinary `keras.Model`.

Paper: arXiv:2103.00020, section 3.1; prompt ensembles: section 3.1.4.
"""

from collections.abc import Callable, Sequence

import keras
import numpy as np
from keras import ops

from clip.layers import PACKAGE, l2_normalize
from clip.model import CLIP
from clip.prompts import prompts_for
from clip.tokenizer import tokenize

Tokenize = Callable[[list[str]], np.ndarray]
DEFAULT_TEMPLATES = ("a photo of a {}.",)


@keras.saving.register_keras_serializable(PACKAGE)
class ZeroShotHead(keras.layers.Layer):
    """Image features to class scores: softmax over exp(logit_scale) · cosine with each class.

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


def class_matrix(
    model: CLIP,
    class_names: Sequence[str],
    templates: Sequence[str] = DEFAULT_TEMPLATES,
    *,
    tokenizer: Tokenize = tokenize,
    batch_size: int = 256,
) -> np.ndarray:
    """One normalised column a class, (D, K) float32: each prompt normalised, averaged over templates, normalised.

    Args:
        model: `clip.CLIP`.
        class_names: K strings.
        templates: strings with one "{}" each, where a name goes.
        tokenizer: from a list of strings to int32 (N, L).
        batch_size: prompts encoded at a time. Every distinct prompt is encoded once.
    """
    prompts = prompts_for(class_names, templates)  # K lists of T
    distinct = list(dict.fromkeys(prompt for row in prompts for prompt in row))
    tokens = tokenizer(distinct)
    features = model.text_encoder.predict(tokens, batch_size=batch_size, verbose=0).astype(np.float32)
    embedding = dict(zip(distinct, normalize(features), strict=True))
    means = [np.mean([embedding[prompt] for prompt in row], axis=0) for row in prompts]
    return normalize(np.stack(means)).T


def normalize(x):
    """x / ‖x‖₂ over the last axis, NumPy."""
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def zero_shot_classifier(
    model: CLIP,
    class_names: Sequence[str],
    templates: Sequence[str] = DEFAULT_TEMPLATES,
    *,
    activation: str | None = "softmax",
    tokenizer: Tokenize = tokenize,
    batch_size: int = 256,
    name: str = "zero_shot_classifier",
) -> keras.Model:
    """A `keras.Model` from images to class scores, made of prompts alone.

    It shares the image tower's weights, keeps its class matrix and temperature, and saves and loads without the text
    tower. `model.get_layer("zero_shot_head").class_names` are the names in the order of the scores.

    Args:
        model: `clip.CLIP`.
        class_names: K strings.
        templates: strings with one "{}" each; several make an ensemble.
        activation: "softmax" gives probabilities, None logits.
        tokenizer: from a list of strings to int32 (N, L).
        batch_size: prompts encoded at a time.

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
    # A copy: JAX hands a shared buffer away when either model runs.
    head.logit_scale.assign(ops.convert_to_numpy(model.logit_scale.logit_scale))
    return classifier
