"""Work around the networks: tokenising captions, classifying image files, and text search, each as one call to time."""

import atexit
import functools
import itertools
import random
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from zoo.bench.cases import Case
from zoo.utils.arrays import unit_rows

# Tokenising.

WORDS = """
    a the of in on with and two three small large old new red blue green dark bright wooden stone street house garden
    river mountain beach dog cat horse bird child woman man bicycle car train boat table chair window door flower tree
    cloud sunset winter summer standing sitting running holding looking photograph painting drawing close-up view,
    portrait, landscape. isn't background; (detail) #12 1920s 3d
"""
NON_ASCII = "café naïve Zürich 東京 мост façade — “quoted” … 😀 &amp; ½ schloß ñandú Ελλάδα"
CAPTION_SETS = 8  # drawn in advance; calls cycle through them
SHORTEST, LONGEST = 6, 24  # words per caption; web captions have about a dozen


def tokenize_call(tokenize: Callable, case: Case) -> Callable:
    """Return a call that tokenises one batch of captions to ids (B, 77)."""
    rng, is_mixed = random.Random(0), case.part != "captions"
    batches = itertools.cycle([draw_captions(rng, case.batch_size, is_mixed) for _ in range(CAPTION_SETS)])
    return lambda: tokenize(next(batches))


def draw_captions(rng: random.Random, count: int, is_mixed: bool) -> list[str]:
    """Return captions of common words; if `is_mixed`, every second caption has a word that is not ASCII."""
    captions, vocabulary, others = [], WORDS.split(), NON_ASCII.split()
    for number in range(count):
        words = rng.choices(vocabulary, k=rng.randint(SHORTEST, LONGEST))
        if is_mixed and number % 2:
            words.insert(rng.randrange(len(words)), rng.choice(others))
        captions.append(f"{' '.join(words).capitalize()} {rng.randrange(10**6)}")
    return captions


# Zero-shot classification of image files.

PEER_BATCH = 32  # a peer's batch size; our pipeline chooses its own
CLASS_NAMES = [f"thing number {i}" for i in range(100)]
PROMPT = "a photo of a {}."


def write_photographs(count: int, folder: str | Path | None = None) -> list[str]:
    """Write JPEG copies of scikit-learn's two photographs (640 × 427) and return their paths.

    Args:
        folder: by default one that is removed at exit.
    """
    from sklearn.datasets import load_sample_images

    photographs = [Image.fromarray(image) for image in load_sample_images().images]
    folder = Path(folder or _temporary_folder())
    for i in range(count):
        path = folder / str(i % 2) / f"{i:05d}.jpg"
        path.parent.mkdir(exist_ok=True)
        photographs[i % 2].save(path, quality=90)
    return sorted(map(str, folder.rglob("*.jpg")))


def classify_call(pair, case: Case, paths: Sequence[str]) -> Callable:
    """Return a call that classifies image files with a `clip.CLIP`; each call encodes the class texts again."""
    from zoo.data.preprocess import PreprocessSpec
    from zoo.inference.classifier import create_classifier
    from zoo.inference.pipeline import ClipPipeline

    spec = PreprocessSpec(case.image_size)
    options: dict[str, Any] = {"precision": case.dtype, "runtime": case.runtime, "preprocess": spec}
    pipeline = ClipPipeline(pair, batch_size="auto", cache=False, **options)

    def call():
        return create_classifier(pipeline, CLASS_NAMES, (PROMPT,)).probabilities(pipeline.embed_images(paths))

    return call


# Text search.

INDEX_SIZE = 1000  # vectors
TOP_K = 5


def search_call(pair, case: Case) -> Callable:
    """Return a call that encodes one batch of texts with a `clip.CLIP`, or searches an index for them.

    Parts named "cached-…" look the texts up in an in-memory cache, which the first call fills.
    """
    from zoo.data.preprocess import PreprocessSpec
    from zoo.embeddings import TextCache
    from zoo.inference.encoder import keras_encoder

    encoder = keras_encoder(pair, PreprocessSpec(case.image_size))
    texts = [f"a photo of thing number {i}" for i in range(case.batch_size)]
    embed = encoder.embed_texts
    if case.part.startswith("cached-"):
        embed = functools.partial(TextCache().embed, "benchmark", encode=encoder.embed_texts)
    if case.part.endswith("texts"):
        return lambda: embed(texts)
    index = _build_index(pair.text_encoder.output_shape[-1])
    return lambda: [index.search(vector, TOP_K) for vector in embed(texts)]


def _build_index(dim: int):
    """Return a `zoo.embeddings.Index` of random unit vectors in a folder that is removed at exit."""
    from zoo.embeddings import Index

    vectors = np.random.default_rng(0).standard_normal((INDEX_SIZE, dim), np.float32)
    return Index.build(unit_rows(vectors), f"{_temporary_folder()}/index")


def _temporary_folder() -> str:
    """Return the path of a new folder that is removed when the process ends."""
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    return folder.name
