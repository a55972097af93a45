"""What a search costs beyond the networks: texts encoded with and without the cache, an index asked."""

import atexit
import functools
import tempfile
from collections.abc import Callable

import numpy as np

from zoo.bench.cases import Case
from zoo.data.preprocess import PreprocessSpec
from zoo.inference.encoding import keras_encoder
from zoo.search import Index, TextCache

VECTORS = 1000  # of the index
BEST = 5


def create_call(pair, case: Case) -> Callable:
    """The work of a case's part with a `clip.CLIP`: as many texts as the batch size, encoded or searched for.

    "cached" parts find their texts in a cache in memory, which the first call fills.
    """
    encoder = keras_encoder(pair, PreprocessSpec(case.image_size))
    texts = [f"a photo of thing number {i}" for i in range(case.batch_size)]
    embed = encoder.embed_texts
    if case.part.startswith("cached-"):
        embed = functools.partial(TextCache().embed, "benchmark", encode=encoder.embed_texts)
    if case.part.endswith("texts"):
        return lambda: embed(texts)
    index = build_index(pair.text_encoder.output_shape[-1])
    return lambda: [index.search(vector, BEST) for vector in embed(texts)]


def build_index(dim: int) -> Index:
    """An `Index` of random unit vectors, in a folder that goes when the process ends."""
    vectors = np.random.default_rng(0).standard_normal((VECTORS, dim), np.float32)
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    return Index.build(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), f"{folder.name}/index")
