"""The models that the service runs: a pair or a classifier, each as asynchronous functions over one `Batcher`."""

import asyncio
import base64
import io
import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np

from clip import class_matrix, prompts_for
from zoo.data.preprocess import decode_image, preprocess
from zoo.embeddings.expression import combine, parse_query
from zoo.embeddings.text_cache import make_key
from zoo.inference.classifier import Classifier
from zoo.inference.encoder import Encoder, fastest_batch
from zoo.inference.forward import CALLS_MANY_ROWS, CALLS_ONE_ROW, Forward, compile_forward, onnx_forward
from zoo.inference.pipeline import ClipPipeline
from zoo.models import load
from zoo.serve.batching import Batcher, Kind
from zoo.serve.limits import ApiError, Limits
from zoo.utils.text import quoted

TEXT_BATCH = 16  # texts of one length; larger batches gain little and make others wait
TEXTS, IMAGES = "texts", "images"
Observe = Callable[[str, int, float], None]


def open_model(
    name_or_path: str, *, runtime: str = "keras", precision: str = "float32", batch_size: int | str = "auto"
) -> ClipPipeline | Encoder:
    """Return the pair for what `zoo.load` takes; for a classifier, such as a ConvNeXt, an encoder whose images become
    its outputs (B, K), probabilities or logits.

    Raises:
        ValueError: a classifier whose preprocessing is unknown, a precision that the runtime does not have; further
            errors as of `load`.
    """
    loaded = load(name_or_path)
    if loaded.tokenizer is not None:
        return ClipPipeline(loaded, precision=precision, batch_size=batch_size, runtime=runtime)
    spec = loaded.info.preprocess
    if spec is None:
        raise ValueError(f"The preprocessing of {name_or_path!r} is unknown, so images cannot be prepared for it.")
    if runtime == "onnx":
        forward = onnx_forward(loaded.model, precision)
    elif precision == "float32":
        forward = compile_forward(loaded.model)
    else:
        raise ValueError(f"precision={precision!r}; a classifier with runtime='keras' is served in float32")
    outputs = forward(np.zeros((1, *spec.size, 3), np.float32))
    encoder = Encoder(forward, forward, spec, outputs.shape[-1], fixed=True, name=loaded.info.name)
    size = batch_size if isinstance(batch_size, int) else fastest_batch(encoder)
    return replace(encoder, batch_size=size)


def encoder_of(model: ClipPipeline | Encoder) -> Encoder:
    """Return the encoder of a model that `open_model` returns."""
    return model.encoder if isinstance(model, ClipPipeline) else model


class ServedModel:
    """A model with its queues and threads.

    Args:
        model: a pair's pipeline, or a classifier of `open_model`.
        name: what requests call it.
        limits: bounds.
        max_wait: see `Batcher`.
        observe: see `Batcher`.

    Attributes:
        ready: whether every batch shape has been run.
    """

    def __init__(self, model: ClipPipeline | Encoder, name: str, limits: Limits, max_wait: float, observe: Observe):
        self.name, self._limits, self.ready = name, limits, False
        self._fingerprint = model.fingerprint if isinstance(model, ClipPipeline) else ""
        self._cache = model.cache if isinstance(model, ClipPipeline) else None
        self.is_pair = isinstance(model, ClipPipeline)
        encoder = self.encoder = replace(encoder_of(model), fixed=True)
        self.max_batch = 1 << (encoder.batch_size.bit_length() - 1)
        images = (lambda batch: encoder.embed_batches([batch])) if self.is_pair else encoder.images
        kinds = [Kind(IMAGES, images, self.max_batch, limits.max_waiting_images)]
        if self.is_pair:
            kinds.insert(0, Kind(TEXTS, self.encoder.embed_tokens, TEXT_BATCH, limits.max_waiting_texts))
        self.batcher = Batcher(kinds, max_wait=max_wait, observe=observe)
        self._threads = ThreadPoolExecutor(4, thread_name_prefix="zoo-request")
        self._decoders = ThreadPoolExecutor(limits.max_decodes, thread_name_prefix="zoo-decode")

    def start(self) -> None:
        """Run every batch shape until it is compiled; then the model is `ready`."""
        self.batcher.call(self._warm)

    def close(self) -> None:
        """Finish what waits and stop the threads."""
        self.batcher.close()
        for pool in (self._threads, self._decoders):
            pool.shutdown(cancel_futures=True)

    def _warm(self) -> None:
        height, width = self.encoder.spec.size
        _repeat(self.encoder.images, np.zeros((1, height, width, 3), np.float32), self.max_batch)
        if self.is_pair:
            tokens = np.asarray(self.encoder.tokenizer(["a"]), np.int32)
            for length in self.encoder.lengths(tokens.shape[1]):
                _repeat(self.encoder.texts, tokens[:, :length], TEXT_BATCH)
        self.ready = True

    async def in_thread(self, function: Callable, *arguments: Any) -> Any:
        """Run a short function on a thread of the requests."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *arguments)

    async def draw(self, function: Callable, *arguments: Any) -> Any:
        """Run a function that decodes an image on a thread of the decoders."""
        return await asyncio.get_running_loop().run_in_executor(self._decoders, function, *arguments)

    async def run_images(self, images: Sequence[str | bytes], field: str) -> np.ndarray:
        """Return the embeddings of images, as data URIs or the bytes of files, float32 (N, D), unit rows; of a
        classifier its outputs (N, K)."""

        def prepare(value: str | bytes) -> np.ndarray:
            data = value if isinstance(value, bytes) else _decode_data_uri(value, field)
            try:
                image = decode_image(io.BytesIO(data), "the image", max_pixels=self._limits.max_pixels)
                return preprocess(image, self.encoder.spec)
            except (ValueError, OSError) as error:
                raise ApiError(400, f"{field}: {error}", field) from error

        return await self.batcher.run(IMAGES, images, prepare, self._decoders)

    async def embed_texts(self, texts: Sequence[str], field: str) -> np.ndarray:
        """Return the embeddings of texts, float32 (N, D), unit rows; those in the cache are not encoded again."""
        keys, found, rows = await self.in_thread(self._look_up, texts, field)
        if rows:
            vectors = await self.batcher.run(TEXTS, list(rows.values()))
            fresh = dict(zip(rows, vectors, strict=True))
            found |= fresh
            if self._cache is not None:
                await self.in_thread(self._cache.put, fresh)
        return np.stack([found[key] for key in keys])

    def _look_up(self, texts: Sequence[str], field: str) -> tuple[list, dict, dict]:
        """Return (the N keys, {key: vector} of the cache, {key: token row} of the distinct others)."""
        keys = [make_key(self._fingerprint, text) for text in texts]
        found = self._cache.get(keys) if self._cache is not None else {}
        missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in found}
        if not missing:
            return keys, found, {}
        try:
            tokens = np.asarray(self.encoder.tokenizer(list(missing.values())), np.int32)
        except ValueError as error:
            raise ApiError(400, f"{field}: {error}", field) from error
        lengths = self.encoder.token_lengths(tokens)
        return keys, found, {key: row[:end] for key, row, end in zip(missing, tokens, lengths, strict=True)}

    async def embed_query(self, query: str, field: str) -> np.ndarray:
        """Return the embedding of an expression of texts, such as "red car - truck + 2:night", float32 (D,)."""
        try:
            terms = parse_query(query, images=False)
            vectors = await self.embed_texts([term.text for term in terms], field)
            return combine([term.weight for term in terms], vectors)
        except ValueError as error:
            raise ApiError(400, f"{field}: {error}", field) from error

    async def classify(
        self, image: str | bytes, labels: Sequence[str], templates: Sequence[str], activation: str, field: str
    ) -> np.ndarray:
        """Return the probabilities of K labels, float64 (K,)."""
        try:
            prompts = list(dict.fromkeys(itertools.chain.from_iterable(prompts_for(labels, templates))))
        except ValueError as error:
            raise ApiError(400, str(error), "templates" if "template" in str(error) else "labels") from error
        if any(len(text) > self._limits.max_text for text in prompts):
            raise ApiError(400, f"a label in its template has more than {self._limits.max_text} characters", "labels")
        texts, images = await asyncio.gather(self.embed_texts(prompts, "labels"), self.run_images([image], field))
        # It asks once, for the distinct prompts in this order.
        matrix = await self.in_thread(class_matrix, lambda _: texts, labels, templates)
        encoder = self.encoder
        chosen = encoder.activation if activation == "auto" else activation
        return Classifier(matrix, tuple(labels), encoder.scale, encoder.bias, None, chosen).probabilities(images)[0]


def _repeat(forward: Forward, row: np.ndarray, largest: int) -> None:
    count = 1
    while count <= largest:
        for _ in range(CALLS_ONE_ROW if count == 1 else CALLS_MANY_ROWS):
            forward(np.repeat(row, count, axis=0))
        count *= 2


def _decode_data_uri(text: str, field: str) -> bytes:
    """Return the bytes of a `data:image/…;base64,…` URI.

    Raises:
        ApiError: anything else; in particular, no URL is fetched.
    """
    head, comma, body = text.partition(",")
    if not comma or not head.startswith("data:image/") or not head.endswith(";base64"):
        message = f"{field} is {quoted(text, 60)}; it must be data:image/TYPE;base64,DATA, since no URL is fetched"
        raise ApiError(400, message, field)
    try:
        return base64.b64decode(body, validate=True)
    except ValueError as error:
        raise ApiError(400, f"{field} is not valid base64: {error}", field) from error
