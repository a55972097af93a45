"""What a batch of a pair may hold, checked before it is trained on: the keys, the token ids, the labels' shape."""

import copy
import functools
import types
from collections.abc import Callable, Mapping
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


def _check_batch(batch: Mapping[str, Any], vocabulary: int | None) -> None:
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


def checked(data: Any, vocabulary: int | None) -> Any:
    """Return data for `fit` whose batches are checked by `_check_batch`: arrays now, others when a batch is made.

    Args:
        data: a dict of arrays, a generator, a `keras.utils.PyDataset`, a `tf.data.Dataset` or a torch `DataLoader`;
            anything else is returned as it is.
        vocabulary: as in `_check_batch`.
    """
    check = functools.partial(_check_element, vocabulary)
    if isinstance(data, Mapping):
        _check_batch(data, vocabulary)
    elif isinstance(data, types.GeneratorType):
        return (check(element) for element in data)
    elif isinstance(data, keras.utils.PyDataset):
        return _CheckedDataset(data, check)
    elif hasattr(data, "collate_fn"):  # torch's DataLoader
        data = copy.copy(data)
        data.collate_fn = functools.partial(_collate, check, data.collate_fn)
    elif hasattr(data, "element_spec"):  # tf.data's Dataset
        return _checked_tensors(data, vocabulary)
    return data


def _check_element(vocabulary: int | None, element: Any) -> Any:
    """Check a batch, or the first part of (batch, targets, weights); return the element."""
    batch = element[0] if isinstance(element, tuple | list) and element else element
    if isinstance(batch, Mapping):
        _check_batch(batch, vocabulary)
    return element


def _collate(check: Callable, collate: Callable, samples: list) -> Any:
    return check(collate(samples))


class _CheckedDataset(keras.utils.PyDataset):
    """The batches of another `PyDataset`, checked."""

    def __init__(self, data: keras.utils.PyDataset, check: Callable):
        super().__init__(data.workers, data.use_multiprocessing, data.max_queue_size)
        self.data, self.check = data, check

    @property
    def num_batches(self):
        return self.data.num_batches

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        return self.check(self.data[index])

    def on_epoch_begin(self):
        self.data.on_epoch_begin()

    def on_epoch_end(self):
        self.data.on_epoch_end()


def _checked_tensors(data: Any, vocabulary: int | None) -> Any:
    """A `tf.data.Dataset` that checks the token ids in its graph; keys and shapes are checked now."""
    import tensorflow as tf

    first = data.element_spec[0] if isinstance(data.element_spec, tuple) else data.element_spec
    if not isinstance(first, Mapping):
        return data
    check_keys(first)
    if "label" in first and first["label"].shape.rank is not None:
        check_labels(first["label"])
    if vocabulary is None:
        return data

    @tf.autograph.experimental.do_not_convert
    def check(*parts):
        tokens = parts[0]["tokens"]
        text = f"tokens hold an id beyond the text tower's vocabulary, which has ids 0 to {vocabulary - 1}"
        with tf.control_dependencies(
            [
                tf.debugging.assert_non_negative(tokens, text),
                tf.debugging.assert_less(tokens, tf.cast(vocabulary, tokens.dtype), text),
            ]
        ):
            parts = ({**parts[0], "tokens": tf.identity(tokens)}, *parts[1:])
        return parts if len(parts) > 1 else parts[0]

    return data.map(check)


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
