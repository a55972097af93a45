"""`ClipPipeline`: a pair in use: pictures and texts in, embeddings, classes and matches out."""

import functools
import hashlib
import io
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from zoo.data.preprocess import PreprocessSpec, decode_image, open_image, preprocess
from zoo.embeddings.index import Where
from zoo.evaluation.classifier import Classifier, create_classifier
from zoo.inference.encoding import Encoder, compiled, fastest_batch, keras_encoder, prepared, scale_and_bias, shown
from zoo.models.registry import load
from zoo.search import Index, TextCache
from zoo.weights import native
from zoo.weights.describe import describe

RUNTIMES = ("keras", "onnx")
PRECISIONS = {
    "keras": ("float32", "bfloat16", "float16", "mixed_bfloat16", "mixed_float16"),
    "onnx": ("float32", "float16", "int8"),
}
CLASSIFIERS = 16  # class matrices kept
BYTES = bytes | bytearray | memoryview
MOST_CHANNELS = 4


class ClipPipeline:
    """A pair that embeds, classifies and searches, with texts embedded once.

    Images are paths, PIL images, uint8 arrays (H, W[, C]), bytes of a file or open binary files, one or several; never
    URLs. Results do not depend on how many are given at a time, but for rounding.

    The weights are those of when it was made: where they change, call `refresh` before anything else.

    Args:
        model_or_name: a `clip.CLIP`, or what `zoo.load` takes.
        precision: "float32", "bfloat16", "float16" (or "mixed_…"); with ONNX "float32", "float16", "int8".
        batch_size: images at a time; "auto" for what is measured to be fastest here.
        cache: a `TextCache`, the path of one, True for one in memory, False for none.
        runtime: "keras", on the backend that runs, or "onnx", through a file that is exported first.
        preprocess: how pictures are prepared; what the model's file says unless given.
        fold: fold the weights exactly first (`zoo.fold`); with ONNX they always are.

    Raises:
        ValueError: a classifier, an unknown precision or runtime, or nothing that says how pictures are prepared.
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
            raise ValueError(f"runtime={runtime!r}; it must be one of {', '.join(RUNTIMES)}")
        if precision not in PRECISIONS[runtime]:
            raise ValueError(f"precision={precision!r}; with {runtime} it is one of {', '.join(PRECISIONS[runtime])}")
        if batch_size != "auto" and (not isinstance(batch_size, int) or batch_size < 1):
            raise ValueError(f'batch_size={batch_size!r}; it must be a positive integer or "auto"')
        self._made_of = functools.partial(_encoder, model_or_name, preprocess, runtime, precision, fold)
        self._batch_size = batch_size
        self.cache = cache if isinstance(cache, TextCache) else _cache(cache)
        self.refresh()

    def refresh(self) -> None:
        """Takes the weights as they are now, with their fingerprint, for images, texts and classifiers alike.

        Needed after a model that was handed in was trained further or given other weights. Until then new images and
        texts may come from the new weights while kept texts and classifiers are of the old ones. A name or a file is
        loaded again.
        """
        auto = self._batch_size == "auto"
        self.encoder, self.fingerprint = self._made_of(1 if auto else self._batch_size)
        if auto:
            self._batch_size = fastest_batch(self.encoder)
            self.encoder = replace(self.encoder, batch_size=self._batch_size)
        self._classifiers: dict[tuple, Classifier] = {}

    @property
    def scale(self) -> float:
        """exp(logit_scale)."""
        return self.encoder.scale

    @property
    def bias(self) -> float:
        return self.encoder.bias

    def embed_images(self, images: Sequence, *, progress: bool = False) -> np.ndarray:
        """float32 (N, D), unit rows. ValueError or OSError for an image that cannot be read."""
        images = _as_list(images)
        size = self.encoder.batch_size
        batches = prepared(images, lambda image: preprocess(open_any(image), self.encoder.spec), batch_size=size)
        steps = shown(range(-(-len(images) // size)), "batches", progress)
        return self.encoder.embed_batches(batch for _, batch in zip(steps, batches, strict=True))

    def embed_texts(self, texts: Sequence[str], *, progress: bool = False) -> np.ndarray:
        """float32 (N, D), unit rows; those that the cache holds are not encoded."""
        texts = [texts] if isinstance(texts, str) else list(texts)
        encode = functools.partial(self.encoder.embed_texts, progress=progress)
        if self.cache is None or not texts:
            return encode(texts)
        return self.cache.embed(self.fingerprint, texts, encode)

    def similarity(self, images: Sequence, texts: Sequence[str], *, progress: bool = False) -> np.ndarray:
        """Cosines, float32 (N, M)."""
        return self.embed_images(images, progress=progress) @ self.embed_texts(texts, progress=progress).T

    def classify(
        self,
        images: Sequence,
        labels: Sequence[str] | Mapping[str, Sequence[str]],
        templates: Sequence[str] = ("a photo of a {}.",),
        *,
        progress: bool = False,
    ) -> np.ndarray:
        """Probabilities, float64 (N, K).

        Args:
            labels: K names, each put into every template; or {name: prompts of its own}.
            progress: of the images.
        """
        return self.classifier(labels, templates).probabilities(self.embed_images(images, progress=progress))

    def classifier(
        self, labels: Sequence[str] | Mapping[str, Sequence[str]], templates: Sequence[str] = ("a photo of a {}.",)
    ) -> Classifier:
        """The class matrix of these labels, made once."""
        own = isinstance(labels, Mapping)
        key = (tuple((name, tuple(labels[name]) if own else None) for name in labels), tuple(templates))
        if key not in self._classifiers:
            if len(self._classifiers) >= CLASSIFIERS:
                self._classifiers.pop(next(iter(self._classifiers)))
            self._classifiers[key] = create_classifier(self, labels, templates)
        return self._classifiers[key]

    def search(
        self, index: Index | str | Path, query, k: int = 5, *, where: Where = None, approximate: bool | int = False
    ):
        """(ids, scores float32 (k,)) of the best matches of a sentence, or of an image.

        Args:
            index: an `Index`, or the path of one, which must have been made with this pipeline's model.
            query: str for a sentence; a Path, PIL image, array, bytes or file for an image.
            where, approximate: see `Index.search`.
        """
        if not isinstance(index, Index):
            index = Index.open(index, model=self.fingerprint)
        vector = self.embed_texts([query]) if isinstance(query, str) else self.embed_images([query])
        return index.search(vector[0], k, where=where, approximate=approximate)


def open_any(image) -> Image.Image | np.ndarray:
    """A picture from a path, PIL image, array, bytes or binary file, for `preprocess`."""
    if isinstance(image, Image.Image | np.ndarray):
        return image
    if isinstance(image, BYTES):
        return decode_image(io.BytesIO(image), "the image")
    if hasattr(image, "read"):
        return decode_image(image, getattr(image, "name", "the image"))
    if isinstance(image, str | os.PathLike):
        if "://" in str(image):
            raise ValueError(f"{str(image)!r} is a URL; only files are read")
        return open_image(image)
    raise TypeError(f"image is {type(image).__name__}; allowed are a path, PIL image, uint8 array, bytes, binary file")


def weights_digest(model) -> str:
    """SHA-256 over all weights of a pair, with their paths and shapes, in hexadecimal."""
    import keras

    total = hashlib.sha256()
    for variable in model.weights:
        value = keras.ops.convert_to_numpy(keras.ops.cast(variable.value, "float32"))
        total.update(f"{variable.path}{value.shape}".encode())
        total.update(np.ascontiguousarray(value).data)
    return total.hexdigest()


def in_precision(model, precision: str):
    """A copy of a pair that computes under another dtype policy; the pair itself where it is float32.

    Raises:
        ValueError: towers of one's own, which a few words do not rebuild.
    """
    import keras

    if precision == "float32":
        return model
    before = keras.config.dtype_policy()
    description = describe(model)
    keras.config.set_dtype_policy(precision)
    try:
        copy = native.build(description)
    finally:
        keras.config.set_dtype_policy(before)
    copy.set_weights(model.get_weights())
    return copy


def _resolve(model_or_name, spec: PreprocessSpec | None):
    """(pair, spec, tokenizer or None)."""
    tokenizer = None
    if isinstance(model_or_name, str | Path):
        loaded = load(model_or_name)
        model_or_name, tokenizer, spec = loaded.model, loaded.tokenizer, spec or loaded.info.preprocess
    if not hasattr(model_or_name, "text_encoder"):
        raise ValueError(f"{model_or_name.name!r} is a classifier; a pair of image and text towers is needed")
    if spec is None:
        spec = native.recall(model_or_name).preprocess
    if spec is None:
        raise ValueError(
            f"{model_or_name.name!r} does not say how pictures are prepared; give preprocess=PreprocessSpec(…)"
        )
    return model_or_name, spec, tokenizer


def _encoder(
    model_or_name, spec: PreprocessSpec | None, runtime: str, precision: str, fold: bool, batch_size: int
) -> tuple[Encoder, str]:
    """A pair's encoder, and the digest of all that its embeddings depend on."""
    model, spec, tokenizer = _resolve(model_or_name, spec)
    if runtime == "onnx":
        encoder = _onnx_encoder(model, spec, tokenizer, batch_size, precision)
    else:
        encoder = _keras_encoder(in_precision(model, precision), spec, tokenizer, batch_size, fold)
    name = getattr(encoder.tokenizer, "__qualname__", repr(encoder.tokenizer))
    facts = f"{weights_digest(model)}|{name}|{spec}|{runtime}|{precision}"
    return encoder, hashlib.sha256(facts.encode()).hexdigest()


def _keras_encoder(model, spec, tokenizer, batch_size: int, fold: bool) -> Encoder:
    encoder = keras_encoder(model, spec, tokenizer=tokenizer, batch_size=batch_size)
    if not fold:
        return encoder
    from zoo.models.folding import fold as folded

    faster = folded(model)
    return replace(encoder, images=compiled(faster.image_encoder), texts=compiled(faster.text_encoder))


def _onnx_encoder(model, spec, tokenizer, batch_size: int, precision: str) -> Encoder:
    """The towers through ONNX Runtime; the files are exported, loaded and dropped."""
    from zoo.export import OnnxModel, export_onnx

    keras_side = keras_encoder(model, spec, tokenizer=tokenizer, batch_size=batch_size)
    with tempfile.TemporaryDirectory() as folder:
        towers = {}
        for part in ("image", "text"):
            path = Path(folder) / f"{part}.onnx"
            export_onnx(model, path, part=part, precision=precision, verify=False)
            towers[part] = OnnxModel(path)
    return replace(
        keras_side,
        images=lambda batch: towers["image"].predict(batch, batch_size=len(batch)),
        texts=lambda tokens: towers["text"].predict(tokens, batch_size=len(tokens)),
        **scale_and_bias(model),
        fixed=False,
    )


def _cache(cache) -> TextCache | None:
    if cache is False or cache is None:
        return None
    return TextCache() if cache is True else TextCache(cache)


def _as_list(images) -> list:
    one = isinstance(images, BYTES | str | os.PathLike | Image.Image) or hasattr(images, "read")
    if isinstance(images, np.ndarray):  # (H, W) or (H, W, C), not (N, H, W)
        one = images.ndim == 2 or (images.ndim == 3 and images.shape[-1] <= MOST_CHANNELS)
    return [images] if one else list(images)
