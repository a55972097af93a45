"""A pair as two functions of NumPy arrays: pictures and texts to unit vectors, the same whatever the batching.

What makes it fast without changing the result: one compiled function a tower; batches of a few fixed shapes where the
backend compiles for each; and, where the text tower is causal, tokens cut after the end of the longest text of a
batch, which the embedding does not see (texts of like length share a batch).
"""

import itertools
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from clip import Tokenizer, tokenize
from zoo.data import Batches, Dataset
from zoo.data.preprocess import PreprocessSpec
from zoo.inference.torch_graph import kernels_of

LENGTHS = (8, 16, 32, 77)  # of token rows: each text goes with the first that it fits
TEXT_BATCH_SIZE = 256
MAX_THREADS = 8
MOST_SHAPES = 16  # of one row that have a function of their own, and as many of several
TIMES_ALONE, TIMES_TOGETHER = 2, 8  # that a shape has come then
MOST_ROWS = 64
WORTH_DOUBLING = 1.05  # more pictures a second


@dataclass(frozen=True)
class Encoder:
    """What encodes pictures and texts, and how their products become logits.

    Args:
        images: float32 (B, H, W, 3) → (B, D), not normalised.
        texts: int32 (B, L) → (B, D), not normalised.
        spec: how pictures are prepared.
        scale: exp(logit_scale), from cosines to logits.
        bias: added to them.
        shortens: whether tokens may be cut after the end of the text.
        fixed: whether each shape of a batch costs a compilation, so that batches are filled up to a power of two.
        batch_size: pictures at a time.
        tokenizer: texts → int32 (N, L).
        name: of the model.
    """

    images: Callable[[np.ndarray], np.ndarray]
    texts: Callable[[np.ndarray], np.ndarray]
    spec: PreprocessSpec
    scale: float = 1.0
    bias: float = 0.0
    shortens: bool = False
    fixed: bool = False
    batch_size: int = 64
    tokenizer: Callable[[list[str]], np.ndarray] = tokenize
    name: str = "clip"

    def embed_batches(self, batches: Iterable[np.ndarray]) -> np.ndarray:
        """float32 (N, D), unit rows, of batches float32 (≤ batch_size, H, W, 3), one after the other."""
        rows = [self._run(self.images, batch, self.batch_size) for batch in batches if len(batch)]
        if not rows:
            raise ValueError("there are no pictures to encode")
        return unit(np.concatenate(rows))

    def embed_records(self, records: Dataset, *, progress: bool = False) -> tuple[np.ndarray, np.ndarray, dict]:
        """The pictures of a data set, those that cannot be used left out.

        Returns:
            (float32 (N, D) unit rows, int (N,) which records they are, {record: why it was left out}); where all are
            left out, (0, 0) and (0,).
        """
        kept = []
        with self._batches(records) as batches:
            steps = shown(range(batches.steps), "batches", progress)
            pictures = self._kept(batches, steps, kept)
            first = next((batch for batch in pictures if len(batch)), None)
            vectors = np.empty((0, 0), np.float32)
            if first is not None:
                vectors = self.embed_batches(itertools.chain([first], pictures))
            reasons = batches.bad.reasons
        return vectors, np.concatenate(kept), reasons

    def _batches(self, records: Dataset) -> Batches:
        return Batches(
            records,
            self.spec,
            batch_size=self.batch_size,
            shuffle=False,
            drop_last=False,
            replace_bad=False,
            max_bad_fraction=1.0,
        )

    def _kept(self, batches: Batches, steps: Iterable[int], kept: list[np.ndarray]) -> Iterator[np.ndarray]:
        for step in steps:
            batch = batches.batch(0, step)["images"]
            reasons = batches.bad.reasons
            kept.append(np.array([i for i in batches.indices(0, step) if int(i) not in reasons], int))
            yield batch

    def embed_texts(self, texts: Sequence[str], *, progress: bool = False) -> np.ndarray:
        """float32 (N, D), unit rows. A text's row does not depend on the others, but for rounding."""
        tokens = np.asarray(self.tokenizer(list(texts)), np.int32)
        lengths = self._lengths(tokens)
        features, chunks = None, []
        for length in np.unique(lengths):
            places = np.flatnonzero(lengths == length)
            chunks += np.split(places, range(TEXT_BATCH_SIZE, len(places), TEXT_BATCH_SIZE))
        for chunk in shown(chunks, "batches of texts", progress):
            rows = self._run(self.texts, tokens[chunk, : lengths[chunk[0]]], TEXT_BATCH_SIZE)
            if features is None:
                features = np.empty((len(tokens), rows.shape[1]), np.float32)
            features[chunk] = rows
        if features is None:
            raise ValueError("there are no texts to encode")
        return unit(features)

    def _lengths(self, tokens: np.ndarray) -> np.ndarray:
        """int (N,): how many of its tokens each row is cut to."""
        full = tokens.shape[1]
        ends = tokens == Tokenizer.eot
        if not self.shortens or not ends.any(axis=1).all():
            return np.full(len(tokens), full)
        needed = ends.argmax(axis=1) + 1
        allowed = np.array([*(length for length in LENGTHS if length < full), full])
        return allowed[np.searchsorted(allowed, needed)]

    def _run(self, function, batch: np.ndarray, most: int) -> np.ndarray:
        """float32 (B, D); where shapes are fixed, of a batch filled up with copies of its last row."""
        count = len(batch)
        if self.fixed and count < most:
            size = min(most, 1 << (count - 1).bit_length())
            batch = np.concatenate([batch, np.repeat(batch[-1:], size - count, axis=0)])
        return np.asarray(function(batch), np.float32)[:count]


def keras_encoder(
    model,
    spec: PreprocessSpec,
    *,
    tokenizer: Callable[[list[str]], np.ndarray] | None = None,
    batch_size: int = 64,
) -> Encoder:
    """The `Encoder` of a `clip.CLIP`, on the backend that runs."""
    import keras

    return Encoder(
        compiled(model.image_encoder),
        compiled(model.text_encoder),
        spec,
        **scale_and_bias(model),
        shortens=is_causal(model),
        fixed=keras.backend.backend() == "jax",
        batch_size=batch_size,
        tokenizer=tokenizer or tokenize,
        name=model.name,
    )


def scale_and_bias(model) -> dict[str, float]:
    """{"scale": exp(logit_scale), "bias"} of a `clip.CLIP`."""
    import keras

    layer = model.logit_scale
    bias = getattr(layer, "logit_bias", None)
    return {
        "scale": float(np.exp(keras.ops.convert_to_numpy(layer.logit_scale))),
        "bias": 0.0 if bias is None else float(keras.ops.convert_to_numpy(bias)),
    }


def is_causal(model) -> bool:
    """Whether what follows the end of a text is known not to matter: in our causal towers, not in one's own."""
    return model.architecture is not None and model.text_encoder.input_shape[1] is None


def compiled(model) -> Callable[[np.ndarray], np.ndarray]:
    """A Keras model in inference as a function from an array to an array, compiled as its backend compiles best.

    It reads the weights anew at every call, so that it follows a model that is trained further. `predict` gives the
    same; it costs 10 to 60 ms a call, which a search has not got.
    """
    import keras

    make = {"jax": _jax_function, "tensorflow": _tensorflow_function, "torch": _torch_function}
    return make[keras.backend.backend()](model)


def _jax_function(model):
    import jax

    @jax.jit
    def forward(trainable, rest, x):
        return model.stateless_call(trainable, rest, x, training=False)[0]

    def run(x):
        trainable = [variable.value for variable in model.trainable_variables]
        rest = [variable.value for variable in model.non_trainable_variables]
        return np.asarray(forward(trainable, rest, x).astype("float32"))

    return run


def _tensorflow_function(model):
    """A tower without convolutions runs one row at a time, from the second time on, through XLA: between TensorFlow's
    own kernels two threads lose more than half of what a sentence takes (24 ms become 10 ms with the text tower of
    convnext_v2_tiny: tests/bench_search.py). XLA's convolutions are the slow ones."""
    import tensorflow as tf

    entry = model.inputs[0]

    def forward(x):
        return tf.cast(model(x, training=False), tf.float32)

    def through_xla(x):
        function = tf.function(forward, jit_compile=True)
        try:
            function(x)
        except Exception:  # whatever a tower of one's own does that XLA has no kernel for
            return whatever_the_batch
        return function

    whatever_the_batch = tf.function(forward, input_signature=[tf.TensorSpec(entry.shape, entry.dtype)])
    convolves = any(len(variable.shape) == 4 for variable in model.weights)
    run = whatever_the_batch if convolves else by_shape(whatever_the_batch, through_xla)
    return lambda x: run(tf.convert_to_tensor(x, entry.dtype)).numpy()


def _torch_function(model):
    """A shape that comes again runs as a graph of torch's kernels: what Keras' layers spend between them is half of
    what a sentence takes (tests/bench_search.py), and of what 64 pictures of 32 pixels do."""
    import torch
    from keras import ops

    packed = {}

    def forward(x):
        return model(x, training=False).float()

    def kernels(x):
        try:
            return kernels_of(forward, x, packed)
        except Exception:  # whatever a tower of one's own does that cannot be written down
            return forward

    run = by_shape(forward, kernels, most_rows=MOST_ROWS)

    def without_gradients(x):
        with torch.no_grad():
            return run(ops.convert_to_tensor(x)).cpu().numpy()

    return without_gradients


def by_shape(function: Callable, specialise: Callable, *, most_rows: int = 1) -> Callable:
    """`function`, but for a shape that comes again what `specialise` makes for it: for one row at a time from the
    second time on, for up to `most_rows` from the eighth.

    Args:
        function: of a batch of any shape.
        specialise: a batch → a function of batches of its shape. What it takes is not spent on a shape that comes once.
    """
    seen, made = Counter(), {}  # by shape

    def chosen(x):
        shape = tuple(x.shape)
        if shape in made:
            return made[shape]
        alike = [other for other in made if (other[0] == 1) == (len(x) == 1)]
        if len(x) > most_rows or len(alike) >= MOST_SHAPES:
            return function
        seen[shape] += 1
        if seen[shape] < (TIMES_ALONE if len(x) == 1 else TIMES_TOGETHER):
            return function
        made[shape] = specialise(x)
        return made[shape]

    return lambda x: chosen(x)(x)


def fastest_batch(encoder: Encoder, largest: int = 64) -> int:
    """How many pictures at a time: doubled from 1 on for as long as that encodes at least 5 % more a second."""
    picture = encoder.spec.eval_transform()(np.zeros((8, 8, 3), np.uint8))
    size, rate = 1, _rate(encoder, picture, 1)
    while 2 * size <= largest:
        faster = _rate(encoder, picture, 2 * size)
        if faster < WORTH_DOUBLING * rate:
            break
        size, rate = 2 * size, faster
    return size


def _rate(encoder: Encoder, picture: np.ndarray, size: int) -> float:
    """Pictures a second, compilation left out."""
    batch = np.repeat(picture[None], size, axis=0)
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        encoder.images(batch)
        seconds.append(time.perf_counter() - start)
    return size / min(seconds[2:])


def prepared(
    images: Sequence, prepare: Callable[[object], np.ndarray], *, batch_size: int, threads: int | None = None
) -> Iterator[np.ndarray]:
    """Batches float32 (≤ batch_size, H, W, 3) of what `prepare` makes of each image; the next is made meanwhile.

    Threads decode; what they raise is raised here.
    """
    threads = threads or min(MAX_THREADS, _cores())
    with ThreadPoolExecutor(threads, thread_name_prefix="zoo-encode") as pool:
        ahead = []
        for first in range(0, len(images), batch_size):
            ahead.append([pool.submit(prepare, image) for image in images[first : first + batch_size]])
            if len(ahead) == 2:
                yield np.stack([future.result() for future in ahead.pop(0)])
        for futures in ahead:
            yield np.stack([future.result() for future in futures])


def shown(steps: Sequence, what: str, wanted: bool = True) -> Iterator:
    """The steps, with a line on a terminal that says how many are done."""
    quiet = not wanted or not sys.stderr.isatty()
    for done, step in enumerate(steps, 1):
        yield step
        if not quiet:
            end = "\n" if done == len(steps) else ""
            print(f"\r{done} of {len(steps)} {what}", end=end, file=sys.stderr, flush=True)


def unit(x: np.ndarray) -> np.ndarray:
    """x / ‖x‖₂ over the last axis, float32; ValueError for rows that are not finite or have no direction."""
    x = np.asarray(x, np.float32)
    norms = np.linalg.norm(x, axis=-1, keepdims=True)
    if not (np.isfinite(norms).all() and (norms > 0).all()):
        raise ValueError(f"{int((~np.isfinite(norms) | (norms == 0)).sum())} of {len(x)} embeddings are zero or NaN")
    return x / norms


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
