"""What a batch of a pair may hold, checked before training: the keys, the token ids, the labels' shape."""

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from convnext import closest

REQUIRED = ("images", "tokens")
OPTIONAL = ("label", "teacher_logits")


def check_keys(batch: Mapping[str, Any]) -> None:
    """Raise ValueError for a key that a pair does not read, which would be ignored, or for a missing one."""
    unknown = [key for key in batch if key not in REQUIRED + OPTIONAL]
    if unknown:
        raise ValueError(f"a batch of a pair has no key {unknown[0]!r}.{closest(str(unknown[0]), REQUIRED + OPTIONAL)}")
    missing = [key for key in REQUIRED if key not in batch]
    if missing:
        raise ValueError(f"a batch of a pair needs 'images' and 'tokens'; {missing[0]!r} is missing, got {list(batch)}")


def check_batch(batch: Mapping[str, Any], vocabulary: int | None) -> None:
    """Check arrays for a pair: keys, the range of the token ids, the shape of the labels.

    Args:
        batch: {"images", "tokens"[, "label"][, "teacher_logits"]}, arrays or tensors.
        vocabulary: number of token ids; None if unknown.

    Raises:
        ValueError: names the key, the value and what is allowed.
    """
    check_keys(batch)
    tokens = np.asarray(keras.ops.convert_to_numpy(batch["tokens"]))
    if vocabulary is not None and tokens.size:
        low, high = tokens.min(), tokens.max()
        if low < 0 or high >= vocabulary:
            wrong = low if low < 0 else high
            raise ValueError(f"tokens hold the id {wrong}; the text tower's vocabulary has ids 0 to {vocabulary - 1}")
    if "label" in batch:
        check_labels(batch["label"], tokens.shape[0])


def check_labels(labels: Any, count: Any = None) -> None:
    """Raise ValueError unless labels have the shape (N,); N is compared where both are known."""
    shape = tuple(labels.shape) if hasattr(labels, "shape") else np.shape(labels)
    wrong_count = len(shape) == 1 and isinstance(count, int) and isinstance(shape[0], int) and shape[0] != count
    if len(shape) != 1 or wrong_count:
        wanted = f"({count},)" if isinstance(count, int) else "(N,)"
        hint = "; labels[:, 0] has it" if len(shape) == 2 and shape[1] == 1 else ""
        raise ValueError(f"labels have the shape {shape}; {wanted} is needed, one label for each pair{hint}")


def vocabulary_size(text_tower: keras.Model) -> int | None:
    """Return the number of token ids of a text tower, of the embedding that reads its input; None if there is none."""
    for layer in text_tower.layers:
        if isinstance(layer, keras.layers.Embedding):
            try:
                is_first = layer.input is text_tower.inputs[0]
            except (AttributeError, ValueError):  # it is called several times
                continue
            if is_first:
                return layer.input_dim
    return None
