"""Distillation: a CLIP model also learns the similarities that a larger one computes for the batch."""

import dataclasses
from pathlib import Path

import numpy as np
from keras import ops

import clip
from zoo.data.preprocess import PreprocessSpec
from zoo.models import load_pair
from zoo.models.registry import Loaded, load
from zoo.training.two_pass import EMBEDDINGS
from zoo.weights import native


class Teacher:
    """A function from a batch to the batch with "teacher_logits" (B, B) float32, read by `clip.distillation_loss`.

    The teacher runs in inference mode; its weights do not change.

    Args:
        pair: `clip.CLIP`.
        teacher_spec: the teacher's image preprocessing.
        spec: preprocessing of the batches.

    Raises:
        ValueError: the image sizes differ.
    """

    def __init__(self, pair: clip.CLIP, teacher_spec: PreprocessSpec, spec: PreprocessSpec):
        if teacher_spec.size != spec.size:
            theirs, ours = ("x".join(map(str, one.size)) for one in (teacher_spec, spec))
            raise ValueError(
                f"the teacher takes images of {theirs} pixels, the student of {ours}; they must be the same"
            )
        self.pair = pair
        mean, std = np.asarray(spec.mean, np.float32), np.asarray(spec.std, np.float32)
        teacher_mean = np.asarray(teacher_spec.mean, np.float32)
        teacher_std = np.asarray(teacher_spec.std, np.float32)
        self.gain, self.offset = std / teacher_std, (mean - teacher_mean) / teacher_std  # between the statistics

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        images = batch["images"] * self.gain + self.offset
        embeddings = self.pair.predict_on_batch({"images": images, "tokens": batch["tokens"]})
        logits = self.pair.logits(*(ops.convert_to_tensor(embeddings[name]) for name in EMBEDDINGS))
        return {**batch, "teacher_logits": ops.convert_to_numpy(logits)}


def load_teacher(teacher: "str | Path | clip.CLIP", spec: PreprocessSpec) -> Teacher:
    """Return a teacher for batches preprocessed by `spec`.

    Args:
        teacher: the name of published weights ("clip/ViT-B-32.openai"), a saved file, or an existing pair.

    Raises:
        ValueError: not a pair, a name without weights, or another image size. FileNotFoundError: no such file.
    """
    loaded = load(teacher) if isinstance(teacher, str | Path) else teacher
    model = loaded.model if isinstance(loaded, Loaded) else loaded
    known = preprocessing(model) if isinstance(model, clip.CLIP) else None
    pair = load_pair(loaded, preprocess=known)
    return Teacher(pair.model, pair.preprocess, spec)


def preprocessing(model: clip.CLIP) -> PreprocessSpec:
    """Return the image preprocessing of a pair's weights, at the tower's size; OpenAI's statistics if unknown."""
    height, width = model.image_encoder.input_shape[1:3]
    known = native.recall(model).preprocess
    size = height if height == width else (height, width)
    return PreprocessSpec(image_size=size) if known is None else dataclasses.replace(known, image_size=size)
