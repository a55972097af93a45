"""Distillation: a pair learns, beside its own task, how a larger one compares the images and captions of a batch."""

from pathlib import Path

import keras
import numpy as np
from keras import ops

import clip
from zoo.data.preprocess import PreprocessSpec
from zoo.models import registry

EMBEDDINGS = ("image_embeddings", "text_embeddings")


class Teacher:
    """Called with a batch, the batch with "teacher_logits" (B, B) float32; `clip.distillation_loss` reads them.

    The teacher only ever predicts: its weights stay, and its dropout and batch statistics are those of inference.

    Args:
        pair: `clip.CLIP`.
        its_spec: how pictures are prepared for it.
        spec: how those of the batches are prepared.

    Raises:
        ValueError: it takes images of another size.
    """

    def __init__(self, pair: clip.CLIP, its_spec: PreprocessSpec, spec: PreprocessSpec):
        if its_spec.size != spec.size:
            theirs, ours = ("x".join(map(str, one.size)) for one in (its_spec, spec))
            raise ValueError(f"the teacher takes images of {theirs} pixels, the pair of {ours}; they must be the same")
        self.pair = pair
        mean, std, its_mean, its_std = (np.float32(s) for s in (spec.mean, spec.std, its_spec.mean, its_spec.std))
        self.gain, self.offset = std / its_std, (mean - its_mean) / its_std  # from our statistics to the teacher's

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        images = batch["images"] * self.gain + self.offset
        embeddings = self.pair.predict_on_batch({"images": images, "tokens": batch["tokens"]})
        logits = self.pair.logits(*(ops.convert_to_tensor(embeddings[name]) for name in EMBEDDINGS))
        return {**batch, "teacher_logits": ops.convert_to_numpy(logits)}


def load_teacher(teacher: "str | Path | clip.CLIP") -> clip.CLIP:
    """A teacher by name with weights ("clip/ViT-B-32.openai") or from a saved file; or a pair, as it is.

    Raises:
        ValueError: it is no pair, or a name without weights; FileNotFoundError: it is not there.
    """
    pair = teacher if isinstance(teacher, keras.Model) else registry.load(teacher).model
    if not isinstance(pair, clip.CLIP):
        raise ValueError(f"teacher={str(teacher)!r} is no pair of an image and a text tower, which distillation needs")
    return pair
