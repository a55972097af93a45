"""Compare an ONNX file with its Keras model: on random and real inputs, at batch 1 and 3."""

import contextlib
import dataclasses
import importlib.util
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from zoo.data.preprocess import IMAGENET_MEAN, IMAGENET_STD, PreprocessSpec, batch
from zoo.export.emit import input_name, named_outputs
from zoo.export.graph import FLOAT16, FLOAT32, INT8
from zoo.export.runtime import OnnxModel
from zoo.utils.arrays import unit_rows

_RANDOM = "random"
_BATCH = 3
_SEED = 0
TOLERANCES = {FLOAT32: 1e-4, FLOAT16: 1e-3, INT8: 1e-3}  # for the error in float32, for 1 − cosine in the others
_OPEN_SIDE = 64  # pixels, for models of any image size
_OPEN_LENGTH = 16  # tokens, for models of any text length
SENTENCES = ("a photo of a temple.", "a photo of a flower", "a drawing of a small boat on a lake, seen from above")


@dataclass(frozen=True)
class Check:
    """One comparison.

    Args:
        inputs: "random", "photographs", "sentences" or "given".
        batch: rows per call of ONNX Runtime.
        output: name of the output.
        error: max |ONNX − Keras| / max |Keras|.
        cosine: smallest cosine over rows.
        top1: share of rows with the same largest entry; None for outputs that are maps.
    """

    inputs: str
    batch: int
    output: str
    error: float
    cosine: float
    top1: float | None

    def is_within(self, precision: str, tolerance: float) -> bool:
        """Return whether the distance is at most `tolerance`; False for NaN."""
        return self.distance(precision) <= tolerance

    def distance(self, precision: str) -> float:
        """Return what the tolerance limits: the error in float32, 1 − cosine in lower precisions."""
        return self.error if precision == FLOAT32 else 1 - self.cosine


def verify(
    model: keras.Model,
    path,
    *,
    preprocess=None,
    layout="NHWC",
    normalize=False,
    logits=False,
    calibration=None,
    progress=False,
) -> list[Check]:
    """Compare a file with its Keras model, at batch 1 on the first row and at batch 3 on all rows.

    Args:
        model: the Keras model.
        path: path of the file.
        preprocess, layout, normalize, logits: as given to `export_onnx`.
        calibration: images as the file takes them, at least one, or {input: array}, instead of photographs and
            sentences.
        progress: print a line for each kind of input.

    Returns:
        A list of `Check`, one for each kind of input, batch and output.
    """
    onnx_model = OnnxModel(path, seconds=None)
    kinds = {_RANDOM: random_inputs(model, preprocess, layout)}
    kinds |= _real_inputs(model, preprocess, layout) if calibration is None else {"given": _named(model, calibration)}
    checks = []
    for kind, feed in kinds.items():
        say(f"Comparing with {model.name}: {kind}", progress)
        feed = {name: array[:_BATCH] for name, array in feed.items()} if logits else feed  # logits span one batch
        expected = keras_outputs(model, feed, preprocess, layout)
        expected |= {name: unit_rows(value) for name, value in expected.items()} if normalize else {}
        for rows in (1, _BATCH):
            few = slice(1 if rows == 1 else None)
            theirs = {name: value[few] for name, value in expected.items()}
            if logits:
                pair = (theirs["image_embeddings"], theirs["text_embeddings"])
                theirs["logits"] = keras.ops.convert_to_numpy(model.logits(*pair))
            ours = _predict(onnx_model, {name: array[few] for name, array in feed.items()}, rows)
            ours = ours if set(ours) == set(theirs) else dict(zip(theirs, ours.values(), strict=True))
            checks += [compare(kind, rows, name, ours[name], theirs[name]) for name in theirs]
    return checks


def say(line, progress):
    if progress:
        print(line, flush=True)


def note_on(model, checks):
    """Return what a file was not compared on, and why; "" if nothing."""
    if not checks:
        return "The file was not compared with the model."
    if any(check.inputs != _RANDOM for check in checks):
        return ""
    takes_photographs = any(len(tensor.shape) == 4 and tensor.shape[-1] == 3 for tensor in model.inputs)
    if takes_photographs and importlib.util.find_spec("sklearn") is None:
        why = "the photographs come with scikit-learn: pip install 'convnext-clip-zoo[report]'"
    else:
        why = "the model does not take images of three channels or texts in CLIP's vocabulary"
    return f"Compared on random inputs only: {why}. Use calibration to compare on your own inputs."


def _predict(onnx_model, feed, batch):
    """Return {output: array}; inputs are matched by name, or by order if an exporter renamed them."""
    if set(feed) != set(onnx_model.inputs):
        feed = dict(zip(onnx_model.inputs, feed.values(), strict=True))
    outputs = onnx_model.predict(feed, batch_size=batch)
    return outputs if isinstance(outputs, dict) else {onnx_model.outputs[0]: outputs}


def keras_outputs(model, feed, preprocess, layout):
    """Return {output: float32 array} of the Keras model."""
    named = {name: _to_model_input(array, preprocess, layout) for name, array in feed.items()}
    x: Any = named
    if not isinstance(model.input, dict):
        x = list(named.values()) if isinstance(model.input, list) else next(iter(named.values()))
    outputs = named_outputs(model.predict(x, batch_size=_BATCH, verbose=0))
    return {name: np.asarray(value, np.float32) for name, value in outputs.items()}


def _to_model_input(array, preprocess, layout):
    """Convert an input of the file to an input of the Keras model."""
    if array.ndim != 4:
        return array
    array = array.transpose(0, 2, 3, 1) if layout == "NCHW" else array
    if preprocess:
        array = (array / np.float32(255) - np.float32(preprocess.mean)) / np.float32(preprocess.std)
    return array


def compare(kind, batch, name, ours, theirs):
    """Return the `Check` of two arrays; NaN if the shapes differ."""
    if ours.shape != theirs.shape:
        return Check(kind, batch, name, float("nan"), float("nan"), None)
    a, b = (array.astype(np.float64).reshape(len(array), -1) for array in (ours, theirs))
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosine = float(np.min(np.sum(a * b, axis=1) / np.maximum(norms, np.finfo(np.float64).tiny)))
    error = float(np.max(np.abs(a - b)) / max(np.max(np.abs(b)), np.finfo(np.float64).tiny))
    top1 = float(np.mean(a.argmax(1) == b.argmax(1))) if ours.ndim == 2 else None
    return Check(kind, batch, name, error, cosine, top1)


def _named(model, calibration):
    """Return the user's calibration inputs as {input: array}."""
    if isinstance(calibration, dict):
        return calibration
    names = [input_name(model, tensor) for tensor in model.inputs]
    if len(names) > 1:
        raise ValueError(f"calibration must be {{name: array}} for a model with inputs {', '.join(names)}.")
    return {names[0]: np.asarray(calibration)}


def random_inputs(model, preprocess, layout):
    """Return {input: array} of three rows: noise, or token ids with the end-of-text id at random positions."""
    rng = np.random.default_rng(_SEED)
    feed = {}
    for tensor in model.inputs:
        name, shape = input_name(model, tensor), tensor.shape[1:]
        if len(shape) == 1 and keras.backend.is_int_dtype(tensor.dtype):
            feed[name] = _random_tokens(model, shape[0] or _OPEN_LENGTH, rng)
        elif preprocess and len(shape) == 3:
            feed[name] = _to_layout(rng.integers(0, 256, (_BATCH, *_open_shape(shape)), np.uint8), layout)
        else:
            feed[name] = _to_layout(rng.standard_normal((_BATCH, *_open_shape(shape)), np.float32), layout)
    return feed


def _open_shape(shape):
    """Return an input shape with 64 pixels for sizes that are None."""
    return tuple(side or _OPEN_SIDE for side in shape)


def _to_layout(images, layout):
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2)) if images.ndim == 4 and layout == "NCHW" else images


def _random_tokens(model, length, rng):
    """Return int32 (3, L): random ids, the last one of the vocabulary once in each row."""
    size = _vocabulary_size(model)
    length = min(length, _context_length(model) or length)
    tokens = rng.integers(1, size - 1, (_BATCH, length)).astype(np.int32)
    tokens[np.arange(_BATCH), rng.integers(1, length, _BATCH)] = size - 1
    return tokens


def _vocabulary_size(model):
    """Return the rows of the model's first embedding table; 100 without one."""
    return next((layer.input_dim for layer in _flat_layers(model) if hasattr(layer, "input_dim")), 100)


def _context_length(model):
    """Return the positions of the last positional embedding; None without one."""
    tables = [layer for layer in _flat_layers(model) if hasattr(layer, "positional_embedding")]
    lengths = [layer.length for layer in tables if hasattr(layer, "length")]
    return lengths[-1] if lengths else None


def _flat_layers(model):
    """Yield the model's layers, and those of models inside it."""
    for layer in model.layers:
        yield from _flat_layers(layer) if isinstance(layer, keras.Model) else [layer]


def _real_inputs(model, preprocess, layout):
    """Return {"photographs": feed}, {"sentences": feed} or, for a pair, both in one; {} for other inputs."""
    feed, kinds = {}, []
    for tensor in model.inputs:
        name, shape = input_name(model, tensor), tensor.shape[1:]
        if len(shape) == 3 and shape[-1] == 3:
            feed[name] = _photographs(_open_shape(shape)[:2], preprocess, layout)
            kinds.append("photographs")
        elif len(shape) == 1 and keras.backend.is_int_dtype(tensor.dtype):
            feed[name] = sentences(model, shape[0])
            kinds.append("sentences")
    whole = len(feed) == len(model.inputs) and all(array is not None for array in feed.values())
    return {" and ".join(kinds): feed} if whole else {}


def _photographs(size, preprocess, layout):
    """Return three of scikit-learn's photographs as the file takes them; None if scikit-learn is not installed."""
    with contextlib.suppress(ImportError):
        from sklearn.datasets import load_sample_images

        temple, flower = load_sample_images().images
        spec = PreprocessSpec(image_size=size, mean=IMAGENET_MEAN, std=IMAGENET_STD)
        return prepare_images((temple, flower, flower[:, ::-1].copy()), spec, bool(preprocess), layout)
    return None


def prepare_images(images, spec, as_pixels, layout):
    """Return images as a file takes them: normalised float32, or uint8 pixels if the file has the preprocessing."""
    if as_pixels:
        raw = dataclasses.replace(spec, mean=(0.0,) * 3, std=(1 / 255,) * 3)
        return _to_layout(np.rint(batch(images, raw)).astype(np.uint8), layout)
    return _to_layout(batch(images, spec), layout)


def sentences(model, length):
    """Return three captions as CLIP's token ids (3, L); None if the model has another vocabulary."""
    from clip import Text, tokenize

    if _vocabulary_size(model) != Text.vocabulary_size:
        return None
    return tokenize(list(SENTENCES), context_length=length or _context_length(model) or _OPEN_LENGTH, truncate=True)
