"""`Encoder`: a pair as two functions of NumPy arrays, from images and from texts to unit vectors.

Three things make it fast and leave the results as they are: each tower is one compiled function; where the backend
compiles for every shape, batches take a few fixed sizes; and where the text tower is causal, tokens are cut after the
end of the longest text in the batch, and texts of similar length share a batch.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from clip import Tokenizer, as_tokenize, tokenize
from zoo.data import Batches, Dataset
from zoo.data.batches import default_threads
from zoo.data.preprocess import PreprocessSpec
from zoo.inference.forward import Forward, compile_forward
from zoo.models import load_pair
from zoo.utils.arrays import pad_rows, unit_rows
from zoo.utils.progress import show_progress

_LENGTHS = (8, 16, 32, 77)  # tokens; a text is cut to the first that holds it
TEXT_BATCH_SIZE = 256
_MIN_GAIN = 1.05  # in images/s, for `fastest_batch` to take a larger batch
_LONG_ENOUGH = 0.5  # seconds of a batch


class Embedded(NamedTuple):
    """The embeddings of one batch of records.

    Args:
        vectors: float32 (n, D), unit rows.
        indices: int (n,), the records embedded.
        bad: {record: reason} of the records left out.
    """

    vectors: np.ndarray
    indices: np.ndarray
    bad: dict[int, str]


@dataclass(frozen=True)
class Encoder:
    """A pair's towers, preprocessing, tokenizer and logit scale.

    Args:
        images: float32 (B, H, W, 3) → (B, D), not normalised.
        texts: int32 (B, L) → (B, D), not normalised.
        spec: image preprocessing.
        dim: D, the length of an embedding.
        scale: exp(logit_scale), from cosines to logits.
        bias: logit bias.
        activation: from logits to probabilities: "sigmoid" if the pair has a bias, else "softmax".
        shortens: whether tokens after the end of a text may be cut.
        fixed: whether every batch shape is compiled, so that batches are padded to a power of two.
        batch_size: images per batch.
        tokenizer: list of N texts → int32 (N, L).
        name: name of the model.
    """

    images: Forward
    texts: Forward
    spec: PreprocessSpec
    dim: int
    scale: float = 1.0
    bias: float = 0.0
    activation: str = "softmax"
    shortens: bool = False
    fixed: bool = False
    batch_size: int = 64
    tokenizer: Callable[[list[str]], np.ndarray] = tokenize
    name: str = "clip"

    def embed_batches(self, batches: Iterable[np.ndarray]) -> np.ndarray:
        """Return the embeddings of batches of images, float32 (N, D), unit rows.

        Args:
            batches: float32 (≤ batch_size, H, W, 3), preprocessed.
        """
        rows = [self._run(self.images, batch, self.batch_size) for batch in batches if len(batch)]
        if not rows:
            raise ValueError("there are no images to encode")
        return unit_rows(np.concatenate(rows))

    def embed_records(
        self, records: Dataset, *, progress: bool = False
    ) -> tuple[np.ndarray, np.ndarray, dict[int, str]]:
        """Return the embeddings of a data set's images; records that cannot be used are left out.

        Returns:
            (float32 (N, D) unit rows, int (N,) the records embedded, {record: reason} of the others).
        """
        parts = list(self.iterate_records(records, progress=progress))
        vectors = [np.empty((0, self.dim), np.float32), *(part.vectors for part in parts)]
        indices = [np.empty(0, int), *(part.indices for part in parts)]
        bad = {index: reason for part in parts for index, reason in part.bad.items()}
        return np.concatenate(vectors), np.concatenate(indices), bad

    def iterate_records(self, records: Dataset, *, progress: bool = False) -> Iterator[Embedded]:
        """Yield `Embedded` batch by batch, in the order of the records."""
        if not len(records):
            return
        with Batches(
            records,
            self.spec,
            batch_size=self.batch_size,
            shuffle=False,
            drop_last=False,
            replace_bad=False,
            max_bad_fraction=1.0,
        ) as batches:
            for step in show_progress(range(batches.steps), "batches", progress):
                batch, kept = batches.batch_and_indices(0, step)
                reasons, left_out = batches.bad.reasons, np.setdiff1d(batches.indices(0, step), kept)
                bad = {int(i): reasons[int(i)] for i in left_out}
                vectors = self.embed_batches([batch["images"]]) if len(kept) else np.empty((0, self.dim), np.float32)
                yield Embedded(vectors, kept, bad)

    def embed_texts(self, texts: Sequence[str], *, progress: bool = False) -> np.ndarray:
        """Return the embeddings of texts, float32 (N, D), unit rows.

        A text's embedding does not depend on the other texts, except for rounding.
        """
        texts = [texts] if isinstance(texts, str) else list(texts)
        return self.embed_tokens(np.asarray(self.tokenizer(texts), np.int32), progress=progress)

    def embed_tokens(self, tokens: np.ndarray, *, progress: bool = False) -> np.ndarray:
        """Return the embeddings of token rows, int32 (N, L) → float32 (N, D), unit rows."""
        if not len(tokens):
            raise ValueError("there are no texts to encode")
        lengths = self.token_lengths(tokens)
        chunks = []
        for length in np.unique(lengths):
            places = np.flatnonzero(lengths == length)
            chunks += np.split(places, range(TEXT_BATCH_SIZE, len(places), TEXT_BATCH_SIZE))
        features = np.empty((len(tokens), self.dim), np.float32)
        for chunk in show_progress(chunks, "batches of texts", progress):
            features[chunk] = self._run(self.texts, tokens[chunk, : lengths[chunk[0]]], TEXT_BATCH_SIZE)
        return unit_rows(features)

    def token_lengths(self, tokens: np.ndarray) -> np.ndarray:
        """Return the length that each row of int32 (N, L) is cut to, int (N,)."""
        full = tokens.shape[1]
        ends = tokens == Tokenizer.eot
        if not self.shortens or not ends.any(axis=1).all():
            return np.full(len(tokens), full)
        needed = ends.argmax(axis=1) + 1
        allowed = np.array(self.lengths(full))
        return allowed[np.searchsorted(allowed, needed)]

    def lengths(self, full: int) -> list[int]:
        """Return the lengths that rows of `full` tokens may be cut to, ascending."""
        return [*(length for length in _LENGTHS if self.shortens and length < full), full]

    def _run(self, function: Forward, batch: np.ndarray, max_rows: int) -> np.ndarray:
        """Return float32 (B, D); where shapes are fixed, of the batch padded to a power of two."""
        size = min(max_rows, 1 << (len(batch) - 1).bit_length()) if self.fixed else len(batch)
        return np.asarray(function(pad_rows(batch, size)), np.float32)[: len(batch)]


def keras_encoder(
    model,
    spec: PreprocessSpec,
    *,
    tokenizer: Callable[[list[str]], np.ndarray] | None = None,
    batch_size: int = 64,
) -> Encoder:
    """Return the `Encoder` of a `clip.CLIP` on the current backend. It follows the model's weights."""
    import keras

    layer = model.logit_scale
    bias = getattr(layer, "logit_bias", None)
    return Encoder(
        compile_forward(model.image_encoder),
        compile_forward(model.text_encoder),
        spec,
        int(model.image_encoder.output_shape[-1]),
        scale=float(np.exp(keras.ops.convert_to_numpy(layer.logit_scale))),
        bias=0.0 if bias is None else float(keras.ops.convert_to_numpy(bias)),
        activation="softmax" if bias is None else "sigmoid",
        shortens=is_causal(model),
        fixed=keras.backend.backend() == "jax",
        batch_size=batch_size,
        tokenizer=as_tokenize(tokenizer, model.text_encoder.input_shape[1]),
        name=model.name,
    )


def load_encoder(model_or_name, *, batch_size: int = 64) -> Encoder:
    """Return the `Encoder` of what `zoo.models.load_pair` takes, and raise what it raises."""
    pair = load_pair(model_or_name)
    return keras_encoder(pair.model, pair.preprocess, tokenizer=pair.tokenizer, batch_size=batch_size)


def is_causal(model) -> bool:
    """Whether the text tower is known to ignore tokens after the end: true of our causal towers, not of custom ones."""
    return model.architecture is not None and model.text_encoder.input_shape[1] is None


def fastest_batch(encoder: Encoder, largest: int = 64) -> int:
    """Return the smallest batch size that is within 5 % of the fastest in images/s.

    Sizes are doubled until a batch takes _LONG_ENOUGH, where a larger one can gain little.
    """
    image = encoder.spec.eval_transform()(np.zeros((8, 8, 3), np.uint8))
    rates: dict[int, float] = {}
    size, seconds = 1, 0.0
    while size <= largest and seconds < _LONG_ENOUGH:
        seconds = _seconds(encoder, np.repeat(image[None], size, axis=0))
        rates[size] = size / seconds
        size *= 2
    return next(size for size, rate in rates.items() if _MIN_GAIN * rate >= max(rates.values()))


def _seconds(encoder: Encoder, batch: np.ndarray) -> float:
    """Return the time of a batch, without compilation."""
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        encoder.images(batch)
        seconds.append(time.perf_counter() - start)
    return min(seconds[2:])


def prepare_batches(
    images: Sequence, prepare: Callable[..., np.ndarray], *, batch_size: int, threads: int | None = None
) -> Iterator[np.ndarray]:
    """Yield batches float32 (≤ batch_size, H, W, 3) of `prepare(image)`; threads prepare one batch ahead.

    An exception of `prepare` is raised here.
    """
    with ThreadPoolExecutor(threads or default_threads(), thread_name_prefix="zoo-encode") as pool:
        ahead: list[list] = []
        for first in range(0, len(images), batch_size):
            ahead.append([pool.submit(prepare, image) for image in images[first : first + batch_size]])
            if len(ahead) == 2:
                yield np.stack([future.result() for future in ahead.pop(0)])
        for futures in ahead:
            yield np.stack([future.result() for future in futures])
