"""Zero-shot classification as it is used: picture files and class names in, probabilities out."""

import atexit
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from zoo.bench.cases import Case
from zoo.data.throughput import write_photographs

BATCH = 32  # of a peer; ours takes what it finds to be fastest
CLASSES = [f"thing number {i}" for i in range(100)]
PROMPT = "a photo of a {}."


def write_files(count: int) -> list[str]:
    """Paths of that many JPEG files, scikit-learn's photographs, in a folder that goes when the process ends."""
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    write_photographs(Path(folder.name), count)
    return sorted(map(str, Path(folder.name).rglob("*.jpg")))


def create_call(pair, case: Case, paths: Sequence[str]) -> Callable:
    """The work of a case with a `clip.CLIP`: the class texts are encoded anew at each call."""
    from zoo.data.preprocess import PreprocessSpec
    from zoo.evaluation.classifier import create_classifier
    from zoo.inference.pipeline import ClipPipeline

    spec = PreprocessSpec(case.image_size)
    options = {"precision": case.dtype, "runtime": case.runtime, "preprocess": spec}
    pipeline = ClipPipeline(pair, batch_size="auto", cache=False, **options)

    def call():
        return create_classifier(pipeline, CLASSES, (PROMPT,)).probabilities(pipeline.embed_images(paths))

    return call
