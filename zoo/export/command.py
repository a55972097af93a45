"""The command `zoo export`: load the model, write the file, report how it compares."""

import contextlib
import importlib.util
import inspect
import re
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

import keras
import numpy as np

from clip import CLASS_NAMES, TEMPLATES
from zoo.data import open_dataset, open_record
from zoo.export.emit import input_name
from zoo.export.exporter import ExportReport, check_request, export_onnx, place, take_part
from zoo.export.graph import FLOAT32
from zoo.export.verify import TOLERANCES, keras_outputs, prepare_images, random_inputs, sentences
from zoo.models.registry import create_model, load, model_info
from zoo.weights.locate import SUFFIXES

KERAS = "keras"
_EXPORTERS = {"tensorflow": "tf2onnx", "jax": "jax2onnx"}  # what Keras' exporter converts with; torch has its own
_NAMES_OPERATOR = re.compile(r"(?:Exporting the operator|Tensorflow op|Unsupported op|No conversion function)\b.*")
_NO_PREPROCESSING = (
    "has no stored preprocessing. Store it: zoo.save(model, 'model.safetensors', preprocess=PreprocessSpec(…))."
)
MAX_IMAGES = 64  # used of a calibration set


def export(
    name: str,
    output: str | Path | None = None,
    *,
    weights: str | None = None,
    part: str | None = None,
    classes: str | None = None,
    precision: str = FLOAT32,
    opset: int = 20,
    include_preprocessing: bool = False,
    layout: str = "NHWC",
    normalize: bool = False,
    logits: bool = False,
    fold: bool = True,
    verify: bool = True,
    calibration: str | None = None,
    tolerance: float | None = None,
    via: str = "zoo",
) -> ExportReport:
    """Export a model by name or file with `export_onnx`.

    Args:
        name: a model name or file as for `zoo.load`; or an architecture, with random weights unless `weights` is given.
        weights: tag or file, as for `zoo.create_model`.
        classes: for part="zero-shot": a key of `clip.CLASS_NAMES`, or names separated by commas.
        include_preprocessing: the file takes uint8 pixels and scales them with the model's preprocessing.
        calibration: images to compare on, the first 64 of a folder or another data set as `zoo.data.open_dataset`
            takes it, instead of scikit-learn's photographs.
        via: "zoo"; or "keras", Keras' own exporter, for models whose layers have no rule. It supports only weights,
            part, classes, opset and tolerance.

    The other options are those of `export_onnx`.

    Raises:
        ValueError: as `export_onnx`; or the model has no stored preprocessing, and an option needs it.
        FileNotFoundError, ImportError: as `export_onnx`; no such calibration images.
    """
    options: dict[str, Any] = {
        "precision": precision,
        "layout": layout,
        "normalize": normalize,
        "logits": logits,
        "fold": fold,
    }
    if via == KERAS:
        _refuse_for_keras(
            include_preprocessing=include_preprocessing, verify=verify, calibration=calibration, **options
        )
    if output is None:
        raise ValueError(f"name the file to write: zoo export {name} model.onnx")
    output = Path(output)
    tolerance = check_request(output, precision, tolerance, verify)
    if via == KERAS:
        _check_keras_exporter()
    model, spec = _find_model(name, weights)
    if include_preprocessing and spec is None:
        raise ValueError(f"{name!r} {_NO_PREPROCESSING}")
    names, templates = class_list(classes)
    exported = take_part(model, part, names, templates)
    images = calibration and read_images(exported, calibration, spec, include_preprocessing, layout)
    if via == KERAS:
        return export_via_keras(exported, output, opset=opset, tolerance=tolerance)
    return export_onnx(
        exported,
        output,
        opset=opset,
        preprocess=spec if include_preprocessing else None,
        verify=verify,
        calibration=images or None,
        tolerance=tolerance,
        progress=True,
        **options,
    )


def read_images(model, path, spec, as_pixels, layout):
    """Return {input: array} of a data set's images as the file takes them; text inputs get as many captions.

    Raises:
        FileNotFoundError: no such path.
        ValueError: no images there, an unreadable image, a model without an image input or without preprocessing.
    """
    dataset = open_dataset(path, needs="images")
    if not any(len(tensor.shape) == 4 for tensor in model.inputs):
        raise ValueError(f"--calibration needs a model with an image input; {model.name!r} has none.")
    if spec is None:
        raise ValueError(f"{model.name!r} {_NO_PREPROCESSING}")
    records = (dataset.record(index) for index in range(min(len(dataset), MAX_IMAGES)))
    images = prepare_images([open_record(record) for record in records], spec, as_pixels, layout)
    return {
        input_name(model, tensor): images if len(tensor.shape) == 4 else _captions(model, tensor, len(images))
        for tensor in model.inputs
    }


def _captions(model, tensor, count):
    """Return int32 (count, L) for a text input."""
    rows = sentences(model, tensor.shape[1])
    if rows is None:
        rows = random_inputs(model, None, "NHWC")[input_name(model, tensor)]
    return rows[np.arange(count) % len(rows)]


def _find_model(name, weights):
    """Return (model, `PreprocessSpec` or None) of a name or a file."""
    path = Path(name)
    is_file = path.exists() or path.suffix in SUFFIXES or str(name).startswith("hf-hub:")
    if weights is None and (is_file or "." in str(name)):
        loaded = load(name)
        return loaded.model, loaded.info.preprocess
    return create_model(name, weights=weights), model_info(name).preprocess


def class_list(classes):
    """Return (names, templates or None) of --classes; (None, None) if it is not given."""
    if classes is None:
        return None, None
    if classes in CLASS_NAMES:
        return CLASS_NAMES[classes], TEMPLATES.get(classes)
    names = [name.strip() for name in classes.split(",") if name.strip()]
    if len(names) < 2:
        raise ValueError(
            f"--classes needs names separated by commas or one of {', '.join(CLASS_NAMES)}, got {classes!r}."
        )
    return names, None


def _refuse_for_keras(**options):
    """Raise ValueError for options that differ from their default and that Keras' exporter does not support."""
    defaults = {name: parameter.default for name, parameter in inspect.signature(export).parameters.items()}
    given = [name for name, value in options.items() if value != defaults[name]]
    if given:
        flags = (f"--{'no-' if defaults[name] is True else ''}{name.replace('_', '-')}" for name in given)
        raise ValueError(
            f"--via keras does not support {', '.join(flags)}; it supports --weights, --part, --classes, --opset and "
            "--tolerance."
        )


def _check_keras_exporter():
    """Raise ImportError, which says what to install, if Keras' exporter lacks a library on this backend."""
    backend = keras.backend.backend()
    library = _EXPORTERS.get(backend)
    if library is not None and importlib.util.find_spec(library) is None:
        extra = "'convnext-clip-zoo[tf2onnx]'" if library == "tf2onnx" else library
        raise ImportError(
            f"--via keras needs {library} on {backend}: pip install {extra}. On torch it needs nothing, and --via zoo "
            "needs it on no backend."
        )


def export_via_keras(model, path, *, opset, tolerance=TOLERANCES[FLOAT32]):
    """Write a model with Keras' own exporter and check the file like ours. It traces the model on the backend."""
    import onnx

    started = time.perf_counter()
    print(f"Writing {path} with Keras' exporter, opset {opset}", flush=True)
    keras_outputs(model, random_inputs(model, None, "NHWC"), None, "NHWC")  # Keras only exports models called before
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "model.onnx")
        try:
            with contextlib.ExitStack() as patched:
                for operator in _exportable_operations():
                    patched.enter_context(mock.patch.object(*operator))
                model.export(file, format="onnx", verbose=False, opset_version=opset)
        except Exception as error:  # the backends' exporters raise different classes
            raise ValueError(f"Keras' exporter failed on {model.name!r}: {_reason_of(error)}") from error
        data, nodes = file.read_bytes(), len(onnx.load(file).graph.node)
    facts = {"precision": FLOAT32, "opset": opset, "nodes": nodes, "tolerance": tolerance}
    return place(model, lambda target: target.write(data), path, {"progress": True}, started, **facts)


def _exportable_operations():
    """Return (module, name, replacement) of a backend's operators that Keras' exporter cannot write.

    On torch these are Keras' own LayerNormalization, whose sizes Keras reads from the traced tensor, and
    `take_along_axis`; on TensorFlow the exact GELU, which Keras computes by erfc.
    """
    backend = keras.backend.backend()
    if backend == "torch":
        import torch

        layer_norm = torch.nn.functional.layer_norm

        def with_constants(x, sizes, *arguments, **options):
            return layer_norm(x, [int(size) for size in sizes], *arguments, **options)

        def by_gather(x, indices, dim):
            sizes = [(indices if axis == dim % x.ndim else x).shape[axis] for axis in range(x.ndim)]
            return torch.gather(x, dim, indices.expand(sizes))

        return [(torch.nn.functional, "layer_norm", with_constants), (torch, "take_along_dim", by_gather)]
    if backend == "tensorflow":
        import tensorflow as tf

        gelu = tf.nn.gelu

        def by_erf(features, approximate=False, name=None):
            if approximate:
                return gelu(features, approximate, name)
            return 0.5 * features * (1.0 + tf.math.erf(features * tf.cast(0.5**0.5, features.dtype)))

        return [(tf.nn, "gelu", by_erf)]
    return []


def _reason_of(error):
    """Return an exporter's error in one line; of a long one the part that names the operator at fault."""
    text = " ".join(str(error).split())
    named = _NAMES_OPERATOR.search(text)
    return f"{type(error).__name__}: {(named[0] if named else text)[:200]}"


def to_text(report: ExportReport) -> str:
    """Return the report as text: the file, then a table of the checks."""
    facts = {
        "file": f"{report.path}, {report.bytes / 1e6:,.1f} MB, {report.nodes} nodes",
        "model": f"{report.model}, {report.precision}, opset {report.opset}",
        "sha256": report.sha256,
        "seconds": "{:.1f} to write, {:.1f} to check".format(*report.seconds),
    }
    lines = [f"{key:<9}{value}" for key, value in facts.items()]
    if not report.checks:
        return "\n".join([*lines, report.note])
    lines += ["", "| inputs | batch | output | error | cosine | largest entry agrees |", "|---|--:|---|--:|--:|--:|"]
    lines += [
        f"| {check.inputs} | {check.batch} | {check.output} | {check.error:.1e} | {check.cosine:.6f} "
        f"| {'–' if check.top1 is None else f'{check.top1:.1%}'} |"
        for check in report.checks
    ]
    of = "error" if report.precision == FLOAT32 else "1 − cosine"
    lines += ["", f"All within the tolerance: {of} at most {report.tolerance:g}."]
    return "\n".join([*lines, *([report.note] if report.note else [])])
