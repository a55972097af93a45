"""`ClipPipeline`: embeds, classifies and searches images and texts with a CLIP model."""

import functools
import hashlib
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from clip import check_classes
from zoo.data.preprocess import PreprocessSpec, decode_image, open_image, preprocess
from zoo.data.records import refuse_url
from zoo.embeddings import Index, TextCache, combine, parse_query
from zoo.embeddings.entries import Where
from zoo.inference.classifier import Classifier, create_classifier
from zoo.inference.encoder import Encoder, fastest_batch, keras_encoder, prepare_batches
from zoo.inference.forward import Forward, compile_forward, onnx_forward
from zoo.models import load_pair
from zoo.utils.env import require_packages
from zoo.utils.progress import show_progress
from zoo.weights.describe import describe

RUNTIMES = ("keras", "onnx", "tensorrt")
PRECISIONS = {
    "keras": ("float32", "bfloat16", "float16", "mixed_bfloat16", "mixed_float16"),
    "onnx": ("float32", "float16", "int8"),
    "tensorrt": ("float32", "float16"),
}
_MAX_CLASSIFIERS = 16  # kept
_BYTES = bytes | bytearray | memoryview
_MAX_CHANNELS = 4


class ClipPipeline:
    """A CLIP model that embeds, classifies and searches, with a cache of text embeddings.

    Images are paths, PIL images, uint8 arrays (H, W[, C]), bytes of an image file or open binary files, one or several;
    URLs are refused. Results do not depend on the number of images in a call, except for rounding.

    The pipeline uses the weights as they are when it is created. After changing them, call `refresh`.

    Args:
        model_or_name: a `clip.CLIP`, or a name or path for `zoo.load`.
        precision: "float32", "bfloat16", "float16" (or "mixed_…"); with ONNX "float32", "float16", "int8".
        batch_size: images per batch; "auto" measures which is fastest.
        cache: a `TextCache`, the path of one, True for one in memory, False for none.
        runtime: "keras", on the current backend; "onnx", which exports the towers to ONNX Runtime first; "tensorrt",
            the same with ONNX Runtime's TensorRT provider, where it has one.
        preprocess: image preprocessing; by default the one saved with the model.
        fold: fold the weights exactly first (`zoo.fold`). ONNX always does.

    Raises:
        ValueError: a classifier, an unknown precision or runtime, or no preprocessing.
    """

    def __init__(
        self,
        model_or_name,
        *,
        precision: str = "float32",
        batch_size: int | str = 64,
        cache: TextCache | str | Path | bool = True,
        runtime: str = "keras",
        preprocess: PreprocessSpec | None = None,
        fold: bool = False,
    ):
        if runtime not in RUNTIMES:
            raise ValueError(f"runtime={runtime!r}; allowed are {', '.join(RUNTIMES)}")
        if precision not in PRECISIONS[runtime]:
            allowed = ", ".join(PRECISIONS[runtime])
            raise ValueError(f"precision={precision!r}; with runtime={runtime!r} allowed are {allowed}")
        if batch_size != "auto" and (not isinstance(batch_size, int) or batch_size < 1):
            raise ValueError(f'batch_size={batch_size!r}; it must be a positive integer or "auto"')
        self._make_encoder = functools.partial(_encoder, model_or_name, preprocess, runtime, precision, fold)
        self._batch_size = batch_size
        self.cache = cache if isinstance(cache, TextCache) else _open_cache(cache)
        self.refresh()

    def refresh(self) -> None:
        """Update the pipeline to the model's current weights, and its fingerprint.

        Call it after the model was trained further or got other weights: until then, new embeddings may come from the
        new weights, and cached texts and classifiers from the old ones. A name or a file is loaded again.
        """
        batch_size = self._batch_size if isinstance(self._batch_size, int) else 1
        self.encoder, self.fingerprint = self._make_encoder(batch_size)
        if self._batch_size == "auto":
            self._batch_size = fastest_batch(self.encoder)
            self.encoder = replace(self.encoder, batch_size=self._batch_size)
        self._classifiers: dict[tuple, Classifier] = {}

    @property
    def scale(self) -> float:
        """exp(logit_scale)."""
        return self.encoder.scale

    @property
    def bias(self) -> float:
        """The logit bias."""
        return self.encoder.bias

    @property
    def activation(self) -> str:
        """The function from logits to probabilities: "sigmoid" if the model has a logit bias, else "softmax"."""
        return self.encoder.activation

    def embed_images(self, images: Sequence, *, progress: bool = False) -> np.ndarray:
        """Return image embeddings, float32 (N, D), unit rows.

        Raises:
            ValueError, OSError: an image that cannot be read.
        """
        images = _as_list(images)
        size = self.encoder.batch_size
        batches = prepare_batches(
            images, lambda image: preprocess(_open_any(image), self.encoder.spec), batch_size=size
        )
        steps = show_progress(range(-(-len(images) // size)), "batches", progress)
        return self.encoder.embed_batches(batch for _, batch in zip(steps, batches, strict=True))

    def embed_texts(self, texts: Sequence[str], *, progress: bool = False) -> np.ndarray:
        """Return text embeddings, float32 (N, D), unit rows; texts in the cache are not encoded again."""
        texts = [texts] if isinstance(texts, str) else list(texts)
        encode = functools.partial(self.encoder.embed_texts, progress=progress)
        if self.cache is None or not texts:
            return encode(texts)
        return self.cache.embed(self.fingerprint, texts, encode)

    def similarity(self, images: Sequence, texts: Sequence[str], *, progress: bool = False) -> np.ndarray:
        """Return the cosines of N images and M texts, float32 (N, M)."""
        return self.embed_images(images, progress=progress) @ self.embed_texts(texts, progress=progress).T

    def classify(
        self,
        images: Sequence,
        labels: Sequence[str] | Mapping[str, Sequence[str]],
        templates: Sequence[str] = ("a photo of a {}.",),
        *,
        activation: str = "auto",
        progress: bool = False,
    ) -> np.ndarray:
        """Return class probabilities, float64 (N, K).

        Args:
            labels: K names, which fill each template; or {name: its prompts}, without templates.
            templates: strings with one "{}" each.
            activation: "softmax", whose probabilities sum to 1, or "sigmoid", which gives each class its own; "auto"
                is what the pair was trained with: "sigmoid" if it has a logit bias, else "softmax".
            progress: show how many batches of images are done.

        Raises:
            ValueError: a string where several belong, a set of labels, or a template without exactly one "{}".
        """
        classifier = self.classifier(labels, templates, activation=activation)
        return classifier.probabilities(self.embed_images(images, progress=progress))

    def classifier(
        self,
        labels: Sequence[str] | Mapping[str, Sequence[str]],
        templates: Sequence[str] = ("a photo of a {}.",),
        *,
        activation: str = "auto",
    ) -> Classifier:
        """Return the `Classifier` of these labels; the last 16 are kept."""
        names, templates = check_classes(labels, templates)
        key = (tuple(names.items()) if isinstance(names, dict) else names, templates, activation)
        if key not in self._classifiers:
            if len(self._classifiers) >= _MAX_CLASSIFIERS:
                self._classifiers.pop(next(iter(self._classifiers)))
            self._classifiers[key] = create_classifier(self, names, templates, activation=activation)
        return self._classifiers[key]

    def embed_query(self, query, *, images: bool = True) -> np.ndarray:
        """Return the embedding of a search query, float32 (D,), a unit vector.

        Args:
            query: a str is an expression, such as "red car - truck + 2:night" (`zoo.embeddings.expression`); a Path,
                PIL image, array, bytes or file is an image.
            images: whether terms of an expression may name image files. For queries from other people, pass False:
                then every term is a text.

        Raises:
            ValueError, FileNotFoundError: an invalid expression, terms that cancel each other, an unreadable image.
        """
        if not isinstance(query, str):
            return self.embed_images([query])[0]
        terms = parse_query(query, images=images)
        vectors = np.empty((len(terms), self.encoder.dim), np.float32)
        files = [i for i, term in enumerate(terms) if term.is_image]
        if files:
            vectors[files] = self.embed_images([Path(terms[i].text) for i in files])
        texts = [i for i, term in enumerate(terms) if not term.is_image]
        if texts:
            vectors[texts] = self.embed_texts([terms[i].text for i in texts])
        return combine([term.weight for term in terms], vectors)

    def search(
        self,
        index: Index | str | Path,
        query,
        k: int = 5,
        *,
        where: Where = None,
        approximate: bool | int = False,
        min_score: float | None = None,
        false_rate: float | None = None,
    ) -> tuple[list[str], np.ndarray]:
        """Return (ids, scores float32 (k,)) of the best matches of a query.

        Args:
            index: an `Index` or its path, built with this pipeline's model.
            query: see `embed_query`.
            where, approximate, min_score: see `Index.search`.
            false_rate: leave out results below `Index.score_limit` of this rate too.
        """
        if not isinstance(index, Index):
            index = Index.open(index, model=self.fingerprint)
        vector = self.embed_query(query)
        if false_rate is not None:
            limit = index.score_limit(false_rate)
            min_score = limit if min_score is None else max(limit, min_score)
        return index.search(vector, k, where=where, approximate=approximate, min_score=min_score)


def _open_any(image) -> Image.Image | np.ndarray:
    """Return the image of a path, PIL image, array, bytes or binary file, for `preprocess`."""
    if isinstance(image, Image.Image | np.ndarray):
        return image
    if isinstance(image, _BYTES):
        return decode_image(io.BytesIO(image), "the image")
    if hasattr(image, "read"):
        return decode_image(image, getattr(image, "name", "the image"))
    if isinstance(image, str | os.PathLike):
        refuse_url(str(image))
        return open_image(Path(image))
    raise TypeError(f"image is {type(image).__name__}; allowed are a path, PIL image, uint8 array, bytes, binary file")


def weights_digest(model) -> str:
    """Return the SHA-256 of all weights of a pair with their paths and shapes, in hexadecimal."""
    import keras

    total = hashlib.sha256()
    for variable in model.weights:
        value = keras.ops.convert_to_numpy(keras.ops.cast(variable.value, "float32"))
        total.update(f"{_path_in_digest(model, variable)}{value.shape}".encode())
        total.update(np.ascontiguousarray(value).data)
    return total.hexdigest()


_BRANCHES = ("conv_kxk", "conv_scale", "large_conv", "small_conv")


def _path_in_digest(model, variable) -> str:
    """Return a variable's path without the towers' and branches' names.

    Earlier versions had no such names in paths, and the digests in caches and indices that they wrote have to stay.
    """
    added = (model.image_encoder.name, model.text_encoder.name, *_BRANCHES)
    return "/".join(part for part in variable.path.split("/") if part not in added)


def _in_precision(model, precision: str):
    """Return a copy of a pair under another dtype policy; for float32, the pair itself.

    Raises:
        ValueError: a pair of custom towers, which cannot be rebuilt.
    """
    import keras

    if precision == "float32":
        return model
    before = keras.config.dtype_policy()
    description = describe(model)
    keras.config.set_dtype_policy(precision)
    try:
        copy = description.build()
    finally:
        keras.config.set_dtype_policy(before)
    copy.set_weights(model.get_weights())
    return copy


def _encoder(
    model_or_name, spec: PreprocessSpec | None, runtime: str, precision: str, fold: bool, batch_size: int
) -> tuple[Encoder, str]:
    """Return a pair's encoder, and a digest of everything its embeddings depend on."""
    model, spec, tokenizer, _ = load_pair(model_or_name, preprocess=spec)
    own = _in_precision(model, precision) if runtime == "keras" else model
    encoder = keras_encoder(own, spec, tokenizer=tokenizer, batch_size=batch_size)
    if runtime != "keras":
        images, texts = _onnx_towers(model, runtime, precision)
        encoder = replace(encoder, images=images, texts=texts, fixed=False)
    elif fold:
        from zoo.models import fold as fold_weights

        folded = fold_weights(own)
        images, texts = compile_forward(folded.image_encoder), compile_forward(folded.text_encoder)
        encoder = replace(encoder, images=images, texts=texts)
    name = getattr(encoder.tokenizer, "__qualname__", repr(encoder.tokenizer))
    facts = f"{weights_digest(model)}|{name}|{spec}|{runtime}|{precision}"
    return encoder, hashlib.sha256(facts.encode()).hexdigest()


def _onnx_towers(model, runtime: str, precision: str) -> tuple[Forward, Forward]:
    """Return the image tower and the text tower, run by ONNX Runtime."""
    from zoo.export.runtime import choose_providers

    require_packages("ONNX", ("onnx", "onnxruntime"), extras="onnx")
    providers = "tensorrt" if runtime == "tensorrt" else None
    choose_providers(providers)  # fails before the export does
    images, texts = (onnx_forward(tower, precision, providers) for tower in (model.image_encoder, model.text_encoder))
    return images, texts


def _open_cache(cache) -> TextCache | None:
    if cache is False or cache is None:
        return None
    return TextCache() if cache is True else TextCache(cache)


def _as_list(images) -> list:
    one = isinstance(images, _BYTES | str | os.PathLike | Image.Image) or hasattr(images, "read")
    if isinstance(images, np.ndarray):  # (H, W) or (H, W, C), not (N, H, W)
        one = images.ndim == 2 or (images.ndim == 3 and images.shape[-1] <= _MAX_CHANNELS)
    return [images] if one else list(images)
