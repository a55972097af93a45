"""CLIP: two towers with one embedding space, L2 normalisation and a temperature.

Papers: "Learning Transferable Visual Models From Natural Language Supervision", arXiv:2103.00020; sigmoid loss:
arXiv:2303.15343. The code is Apache-2.0; published weights carry their own licences.
"""

import inspect
import math
from collections.abc import Mapping
from typing import Any

import keras
from keras import ops

from clip.batches import check_keys, checked, vocabulary_size
from clip.layers import MAX_LOGIT_SCALE, PACKAGE, LogitScale, l2_normalize, resolve_activation
from clip.losses import LOSSES, agreement, distillation_loss
from clip.towers import tower_of
from clip.variants import VARIANTS, Pair, canonical_name
from convnext import AdamW, build_optimizer, closest, follow_remat_scope
from convnext.keras_internals import clones_as_itself, graph_of, put_in_scope

INIT_LOGIT_SCALE = math.log(1 / 0.07)


@keras.saving.register_keras_serializable(PACKAGE)
@clones_as_itself
class CLIP(keras.Model):
    """An image tower and a text tower with one embedding space.

    Args:
        image_tower: `keras.Model` from images to (B, D), not normalised.
        text_tower: `keras.Model` from int32 token ids to (B, D), not normalised.
        init_logit_scale: initial logarithm of the temperature factor, in [0, ln 100].
        init_logit_bias: initial bias of the logits, for the sigmoid loss (−10 in the paper); None for no bias.
        architecture: the arguments of `create_clip` that rebuild the towers, with the `Pair` spelled out if it is not
            in `clip.VARIANTS`; None for towers of your own.

    Call it on {"images", "tokens"}; it returns {"image_embeddings", "text_embeddings"}, both (B, D) float32,
    normalised. `predict` returns the same.

    Raises:
        ValueError: the towers' outputs differ in size or are not (B, D).
    """

    def __new__(cls, *args, **kwargs):
        if args and isinstance(args[0], Mapping) and _parts_of_graph(*args) is None:
            return keras.Model(*args, **kwargs)  # clone_model was given functions that change the layers
        return super().__new__(cls, *args, **kwargs)

    def __init__(
        self,
        image_tower: keras.Model,
        text_tower: keras.Model,
        *,
        init_logit_scale: float = INIT_LOGIT_SCALE,
        init_logit_bias: float | None = None,
        architecture: dict | None = None,
        name: str = "clip",
    ):
        inputs: Any = None
        outputs: Any = None
        logit_scale: Any = None
        if isinstance(image_tower, Mapping):  # inputs and outputs, as keras.models.clone_model gives them
            inputs, outputs = image_tower, text_tower
            image_tower, text_tower, logit_scale = _parts_of_graph(inputs, outputs)
            init_logit_scale, init_logit_bias = logit_scale.init_value, logit_scale.init_bias
            architecture = logit_scale.architecture
        _check_towers(image_tower, text_tower)
        _give_own_paths(image_tower, text_tower)
        if not 0.0 <= init_logit_scale <= MAX_LOGIT_SCALE:
            raise ValueError(
                f"init_logit_scale must be in [0, ln 100 = {MAX_LOGIT_SCALE:.4f}], got {init_logit_scale}."
            )
        if inputs is None:
            logit_scale = LogitScale(init_logit_scale, init_logit_bias, architecture, name="logit_scale")
            inputs, outputs = _connect(image_tower, text_tower, logit_scale)
        super().__init__(inputs=inputs, outputs=outputs, name=name)
        self.image_encoder = image_tower
        self.text_encoder = text_tower
        self.logit_scale = logit_scale
        self.init_logit_scale = init_logit_scale
        self.init_logit_bias = init_logit_bias
        self.architecture = architecture
        follow_remat_scope(self)
        self.accuracy_tracker = keras.metrics.Mean(name="accuracy")
        self.logit_scale_tracker = keras.metrics.Mean(name="logit_scale")

    def call(self, inputs, training=None, mask=None):
        pair = {"images": inputs["images"], "tokens": inputs["tokens"]}  # a batch may also hold labels
        return super().call(pair, training=training, mask=mask)

    def encode_image(self, images, normalize: bool = True):
        """Images (B, H, W, 3) float32, already normalised → embeddings (B, D), L2-normalised in float32 by default."""
        features = self.image_encoder(images)
        return l2_normalize(features) if normalize else features

    def encode_text(self, tokens, normalize: bool = True):
        """Token ids (B, L) int32 → embeddings (B, D), L2-normalised in float32 by default."""
        features = self.text_encoder(tokens)
        return l2_normalize(features) if normalize else features

    def logits(self, image_embeddings, text_embeddings):
        """Return exp(logit_scale) · cosine (+ bias) of normalised embeddings: (N, D), (M, D) → (N, M) float32."""
        return self.logit_scale.logits(image_embeddings, text_embeddings)

    def compile(self, optimizer="adamw", loss="clip", *, distill_weight=1.0, **kwargs):
        """Configure training as `keras.Model.compile` does, with a contrastive loss by name.

        Args:
            optimizer: as in Keras; "adamw" is `convnext.AdamW`, faster on TensorFlow.
            loss: "clip" (softmax in both directions) or "siglip" (sigmoid; needs a logit bias).
            distill_weight: weight of `distillation_loss`, which is added for batches with "teacher_logits".

        `fit` takes batches {"images", "tokens"} with optional "label" (B,) int32, where pairs of equal labels are
        positives of each other, and optional "teacher_logits" (B, B) float32. Metrics: accuracy, the fraction of images
        and captions whose best match in the batch is a positive; logit_scale, the factor exp(logit_scale).
        """
        if loss not in LOSSES:
            raise ValueError(f"Unknown loss {loss!r}.{closest(str(loss), LOSSES)}")
        if loss == "siglip" and self.init_logit_bias is None:
            raise ValueError("loss='siglip' needs a logit bias: create the model with init_logit_bias=-10.0.")
        self.contrastive_loss, self.distill_weight = loss, distill_weight
        if isinstance(optimizer, str) and optimizer.lower() == "adamw":
            optimizer = AdamW()
        super().compile(optimizer=optimizer, loss=None, **kwargs)

    def compile_from_config(self, config):
        config = keras.saving.deserialize_keras_object(config)
        self.compile(**{**config, "loss": config.get("loss") or "clip"})
        if getattr(self, "optimizer", None) is not None and self.built:
            self.optimizer.build(self.trainable_variables)

    def get_compile_config(self):
        config = super().get_compile_config()
        return {**config, "loss": self.contrastive_loss, "distill_weight": self.distill_weight} if config else config

    def make_train_function(self, force=False):
        build_optimizer(self)
        return super().make_train_function(force)

    def fit(self, *args, **kwargs):
        """Train as `keras.Model.fit` does. Arrays are checked first, batches of data sets and generators one by one.

        Raises:
            ValueError: an unknown key, a token id beyond the vocabulary, labels of another shape than (N,), targets or
                sample weights.
        """
        return self._on_checked_data(super().fit, args, kwargs)

    def evaluate(self, *args, **kwargs):
        """Return loss and metrics as `keras.Model.evaluate` does; checks and errors as in `fit`."""
        return self._on_checked_data(super().evaluate, args, kwargs)

    def train_on_batch(self, *args, **kwargs):
        """Make one step as `keras.Model.train_on_batch` does; checks and errors as in `fit`."""
        return self._on_checked_data(super().train_on_batch, args, kwargs)

    def test_on_batch(self, *args, **kwargs):
        """Return loss and metrics as `keras.Model.test_on_batch` does; checks and errors as in `fit`."""
        return self._on_checked_data(super().test_on_batch, args, kwargs)

    def _on_checked_data(self, method, args, kwargs):
        """Call a method with its data checked, or such that batches are checked as they are made."""
        bound = inspect.signature(method).bind(*args, **kwargs)
        given, vocabulary = bound.arguments, vocabulary_size(self.text_encoder)
        _check_no_targets(*(given.get(name) for name in ("y", "sample_weight", "class_weight")))
        if given.get("x") is not None:
            given["x"] = checked(given["x"], vocabulary)
        held_out = given.get("validation_data")
        if isinstance(held_out, tuple | list):
            _check_no_targets(*held_out[1:])
            given["validation_data"] = (checked(held_out[0], vocabulary), *held_out[1:])
        elif held_out is not None:
            given["validation_data"] = checked(held_out, vocabulary)
        return method(*bound.args, **bound.kwargs)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):  # noqa: ARG002
        _check_no_targets(y, sample_weight)
        check_keys(x)
        logits = _divided_by_rows(self.logits(y_pred["image_embeddings"], y_pred["text_embeddings"]))
        labels = x.get("label")
        self.accuracy_tracker.update_state(in_batch_accuracy(logits, labels))
        self.logit_scale_tracker.update_state(ops.exp(self.logit_scale.logit_scale))
        loss = LOSSES[self.contrastive_loss](logits, labels)
        if "teacher_logits" in x:
            loss = loss + self.distill_weight * distillation_loss(logits, x["teacher_logits"])
        return loss

    def get_config(self):
        return {
            "image_tower": keras.saving.serialize_keras_object(self.image_encoder),
            "text_tower": keras.saving.serialize_keras_object(self.text_encoder),
            "init_logit_scale": self.init_logit_scale,
            "init_logit_bias": self.init_logit_bias,
            "architecture": self.architecture,
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        towers = {}
        for key in ("image_tower", "text_tower"):
            with keras.name_scope(config[key]["config"].get("name") or key):
                towers[key] = keras.saving.deserialize_keras_object(config[key], custom_objects=custom_objects)
        return cls(**{**config, **towers})


keras.saving.get_custom_objects().setdefault("CLIP", CLIP)  # a .h5 file names a model's class without its package


def _connect(image_tower, text_tower, logit_scale):
    """Return a pair's (inputs, outputs)."""
    images = keras.Input(image_tower.input_shape[1:], name="images")
    tokens = keras.Input(text_tower.input_shape[1:], dtype="int32", name="tokens")
    image_embeddings, text_embeddings = logit_scale(image_tower(images), text_tower(tokens))
    inputs = {"images": images, "tokens": tokens}
    return inputs, {"image_embeddings": image_embeddings, "text_embeddings": text_embeddings}


def _parts_of_graph(inputs, outputs):
    """Inverse of `_connect`: (image tower, text tower, logit scale), or None if the graph has other layers."""
    graph = graph_of(keras.Model(inputs, outputs))
    if len(graph.calls) != 3 or not isinstance(graph.calls[-1].operation, LogitScale):
        return None
    towers = [graph.source(features) for features in graph.calls[-1].inputs]
    return (*towers, graph.calls[-1].operation) if all(isinstance(tower, keras.Model) for tower in towers) else None


def _give_own_paths(image_tower, text_tower):
    """Let the paths of two towers' variables start with the towers' names if they have paths in common."""
    if {v.path for v in image_tower.variables}.isdisjoint(v.path for v in text_tower.variables):
        return
    for tower in (image_tower, text_tower):
        put_in_scope(tower, tower.name)


def _divided_by_rows(logits):
    """Let each of the P devices of a `keras.distribution` compute the rows of its own images: N² / P of N² logits."""
    distribution = keras.distribution.distribution()
    if distribution is None:
        return logits
    return keras.distribution.distribute_tensor(logits, distribution.get_data_layout(logits.shape))


def in_batch_accuracy(logits, labels=None):
    """Return the fraction of the N images and N captions whose highest logit is a positive, a scalar in [0, 1]."""
    positives = ops.cast(agreement(logits, labels), logits.dtype)
    hits = []
    for axis in (0, 1):
        best = ops.expand_dims(ops.argmax(logits, axis=axis), axis)
        hits.append(ops.mean(ops.take_along_axis(positives, best, axis=axis)))
    return (hits[0] + hits[1]) / 2


def _check_no_targets(*given):
    """Raise ValueError if targets or sample weights are given."""
    if any(value is not None for value in given):
        raise ValueError(
            "CLIP trains on pairs: pass x={'images', 'tokens'[, 'label']}, without y, sample_weight or class_weight."
        )


def _check_towers(image_tower, text_tower):
    """Raise ValueError unless both towers return (B, D) with the same D; it names the Dense layer to add."""
    shapes = {"image_tower": image_tower.output_shape, "text_tower": text_tower.output_shape}
    for name, shape in shapes.items():
        if not isinstance(shape, tuple) or len(shape) != 2:
            raise ValueError(f"{name} must return (B, D), got output shape {shape}.")
    image_dim, text_dim = image_tower.output_shape[-1], text_tower.output_shape[-1]
    if image_dim != text_dim:
        raise ValueError(
            f"The towers' embeddings differ in size: image {image_dim}, text {text_dim}. Add a projection to one: "
            f"keras.Model(image_tower.input, keras.layers.Dense({text_dim}, use_bias=False)(image_tower.output))."
        )


def create_clip(
    variant: str | Pair | None = None,
    *,
    image_tower: keras.Model | None = None,
    text_tower: keras.Model | None = None,
    image_size: int | None = None,
    stem_stride: int | None = None,
    activation: str | None = None,
    init_logit_scale: float = INIT_LOGIT_SCALE,
    init_logit_bias: float | None = None,
    name: str | None = None,
) -> CLIP:
    """Build a published pair with random weights, or a pair of your own towers.

    Args:
        variant: a name of `clip.VARIANTS` ("ViT-B-32", "convnext_base_w", "convnext_v2_tiny", …), also as "ViT-B/32",
            "ViT-L/14@336px" or with "-quickgelu", or a `Pair`; None if both towers are given.
        image_tower: `keras.Model` from images to (B, D), not normalised; not with a variant.
        text_tower: `keras.Model` from int32 token ids to (B, D), not normalised; not with a variant.
        image_size: side of the square images in pixels; by default that of the variant.
        stem_stride: stem stride of a ConvNeXt image tower, as in `create_convnext_v1`; None means "auto".
        activation: activation of the transformers, "gelu" (exact) or "quick_gelu"; by default that of the variant:
            QuickGELU for OpenAI's own models, exact for all others.
        init_logit_scale: initial logarithm of the temperature factor.
        init_logit_bias: initial bias of the logits, for `loss="siglip"`; None for no bias.
        name: name of the model; by default that of the variant.

    Raises:
        ValueError: an unknown variant, or options that contradict each other.
    """
    options: dict[str, Any] = {"init_logit_scale": init_logit_scale, "init_logit_bias": init_logit_bias}
    if variant is None:
        _check_own_towers(
            image_tower, text_tower, image_size=image_size, stem_stride=stem_stride, activation=activation
        )
        return CLIP(image_tower, text_tower, name=name or "clip", **options)
    if image_tower is not None or text_tower is not None:
        raise ValueError("Pass a variant or both towers, not a variant and a tower.")
    label, pair, named_activation = _resolve_pair(variant)
    activation = activation or named_activation or pair.activation
    resolve_activation(activation)
    architecture = {
        "variant": label or pair.to_dict(),
        "image_size": image_size or pair.image_size,
        "stem_stride": stem_stride,
        "activation": activation,
    }
    given = {key: value for key, value in architecture.items() if key != "variant" and value is not None}
    image_tower, text_tower = _create_towers(pair, **given)
    return CLIP(image_tower, text_tower, architecture=architecture, name=name or label or "clip", **options)


def _resolve_pair(variant):
    """Return (name or None, row, activation that the name asks for or None) of a pair's name or of a `Pair`."""
    if isinstance(variant, Pair):
        return next((label for label, row in VARIANTS.items() if row == variant), None), variant, None
    if not isinstance(variant, str):
        raise ValueError(f"variant must be a name of clip.VARIANTS or a clip.Pair, got a {type(variant).__name__}.")
    label, activation = canonical_name(variant)
    return label, VARIANTS[label], activation


def _create_towers(pair: Pair, **options) -> tuple[keras.Model, keras.Model]:
    """Build both towers of a row; each takes those of the options that its builder has.

    Raises:
        ValueError: stem_stride for an image tower that has no such option.
    """
    image, text = tower_of(pair.image), tower_of(pair.text)
    if "stem_stride" in options and "stem_stride" not in image.options:
        kind = type(pair.image).__name__
        raise ValueError(
            f"stem_stride belongs to ConvNeXt image towers, this one is a {kind}; got {options['stem_stride']!r}."
        )
    image_tower, text_tower = (
        tower.build(row, pair.embed_dim, **{key: options[key] for key in options if key in tower.options})
        for tower, row in ((image, pair.image), (text, pair.text))
    )
    return image_tower, text_tower


def _check_own_towers(image_tower, text_tower, **options):
    """Raise ValueError unless both towers are given, without options that only a variant takes."""
    if image_tower is None or text_tower is None:
        raise ValueError(f"create_clip needs a variant, or image_tower and text_tower.{closest('', VARIANTS)}")
    given = [key for key, value in options.items() if value is not None]
    if given:
        raise ValueError(f"{', '.join(given)} only apply to a variant; build your own towers accordingly.")
