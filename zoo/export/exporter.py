"""`export_onnx`: write a model as ONNX, check the file against the model, and only then replace the target file."""

import contextlib
import hashlib
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras

from clip import zero_shot_classifier
from zoo.data.preprocess import PreprocessSpec
from zoo.export import verify as verification
from zoo.export.emit import emit, to_proto
from zoo.export.graph import FLOAT32
from zoo.export.verify import TOLERANCES, Check
from zoo.utils.env import require_packages
from zoo.utils.files import atomic_write, sha256

EXTERNAL_LIMIT = 1_900_000_000  # bytes; more weights do not fit into one protobuf message (2 GB)
_ALIGNMENT = 4096  # bytes; of each array in the weights file, so that it can be memory-mapped
PARTS = ("image", "text", "pair", "zero-shot")


@dataclass(frozen=True)
class ExportReport:
    """The written file and how it compares with the Keras model.

    Args:
        path: path of the file.
        model: name of the model.
        precision, opset: options of the export.
        bytes: size of the file, with its weights file if there is one.
        sha256: digest of the file.
        nodes: number of nodes.
        seconds: time to write the file, time to check it.
        tolerance: largest allowed error in float32, or 1 − cosine in lower precisions.
        checks: the comparisons; () with verify=False.
        note: what was not compared, and why; "" if nothing.
    """

    path: str
    model: str
    precision: str
    opset: int
    bytes: int
    sha256: str
    nodes: int
    seconds: tuple[float, float]
    tolerance: float
    checks: tuple[Check, ...]
    note: str

    @property
    def error(self) -> float | None:
        """Largest error of the checks."""
        return max((check.error for check in self.checks), default=None)

    @property
    def cosine(self) -> float | None:
        """Smallest cosine of the checks."""
        return min((check.cosine for check in self.checks), default=None)

    @property
    def top1(self) -> float | None:
        """Smallest top-1 agreement of the checks."""
        return min((check.top1 for check in self.checks if check.top1 is not None), default=None)


def export_onnx(
    model: keras.Model,
    path: str | Path,
    *,
    precision: str = FLOAT32,
    opset: int = 20,
    fold: bool = True,
    calibration=None,
    verify: bool = True,
    part: str | None = None,
    class_names: Sequence[str] | None = None,
    templates: Sequence[str] | None = None,
    preprocess: PreprocessSpec | None = None,
    layout: str = "NHWC",
    normalize: bool = False,
    logits: bool = False,
    tolerance: float | None = None,
    progress: bool = False,
) -> ExportReport:
    """Write a model as one ONNX file, the same bytes from every backend, and check it.

    The file is compared with the model in ONNX Runtime at batch 1 and 3, on random and on real inputs; an existing
    file is replaced only if the new one passes. Batch size and text length are dynamic; token ids are int32. Weights
    of more than 1.9 GB go to a second file beside it, with a part of its digest in the name.

    Args:
        model: a functional model of this package, folded or not: classifier, trunk, feature maps, tower, zero-shot
            classifier or CLIP model; or any whose layers have rules (`zoo.export.register_emission`).
        path: path of the file; its folder must exist.
        precision: "float32"; "float16", with norms, GRN and softmax in float32; or "int8", with the products over maps
            and sequences quantised (weights per channel, inputs dynamically) and everything else in float32.
        opset: 20; or 17, where GELU is written as its formula.
        fold: write `zoo.fold(model)`, which is faster and differs only by rounding.
        calibration: images as the file takes them, (N, H, W, C), or {input: array}; compare on these instead of
            scikit-learn's photographs. They do not influence the file: int8 scales are dynamic.
        verify: compare the file with the model.
        part: part of a CLIP model: "image", "text", "pair" (same as None) or "zero-shot".
        class_names, templates: for part="zero-shot", as in `clip.zero_shot_classifier`.
        preprocess: `PreprocessSpec`; the file then takes uint8 pixels of the model's size and scales them itself.
        layout: layout of the image input, "NHWC" or "NCHW".
        normalize: L2-normalise the embeddings of a tower.
        logits: add a third output to a CLIP model, exp(logit_scale) · cosine (+ bias).
        tolerance: largest allowed max |ONNX − Keras| / max |Keras| in float32 (default 1e-4), or 1 − cosine in float16
            and int8 (default 1e-3).
        progress: print a line for each step.

    Returns:
        `ExportReport`.

    Raises:
        ValueError: an option that does not fit, a layer without a rule, or a file that exceeds the tolerance; an
            existing file is unchanged. FileNotFoundError: no such folder. ImportError: onnx or onnxruntime is missing.
    """
    path = Path(path)
    tolerance = check_request(path, precision, tolerance, verify)
    model = take_part(model, part, class_names, templates)
    started = time.perf_counter()
    options: dict[str, Any] = {"preprocess": preprocess, "layout": layout, "normalize": normalize, "logits": logits}
    verification.say(f"Folding {model.name}", progress and fold)
    graph = emit(model, precision=precision, opset=opset, fold=fold, **options)
    check = {"calibration": calibration, "progress": progress, **options} if verify else None
    verification.say(f"Writing {path}, {precision}, opset {opset}", progress)
    return _write(model, graph, path, check, tolerance, started)


def check_request(path, precision=FLOAT32, tolerance=None, verify=True):
    """Check, before any work, that a file can be written and verified; return the tolerance."""
    require_packages("ONNX", ("onnx", "onnxruntime") if verify else ("onnx",), extras="onnx")
    if path.is_dir():
        raise IsADirectoryError(f"{str(path)!r} is a folder; the path of a file is needed.")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"There is no folder {str(path.parent)!r} for {path.name}.")
    if precision not in TOLERANCES:
        raise ValueError(f"precision must be one of {', '.join(map(repr, TOLERANCES))}, got {precision!r}.")
    tolerance = TOLERANCES[precision] if tolerance is None else tolerance
    if not 0 < tolerance < math.inf:
        raise ValueError(f"tolerance must be a finite number above 0, got {tolerance!r}.")
    return tolerance


def take_part(model, part, class_names=None, templates=None):
    """Return the model of a part: a tower, the pair itself, or a zero-shot classifier.

    Raises:
        ValueError: an unknown part, a part of a model that is not a CLIP model, class names missing or not used.
    """
    if part not in (None, *PARTS):
        raise ValueError(f"part must be one of {', '.join(map(repr, PARTS))}, got {part!r}.")
    if part is not None and not hasattr(model, "text_encoder"):
        raise ValueError(f"part={part!r} needs a CLIP model; {model.name!r} is not one.")
    if (part == "zero-shot") != (class_names is not None):
        raise ValueError(f"part='zero-shot' and class_names need each other, got part={part!r}, {class_names=}.")
    if part == "zero-shot":
        return zero_shot_classifier(model, class_names, **({"templates": templates} if templates else {}))
    return getattr(model, f"{part}_encoder") if part in ("image", "text") else model


def _write(model, graph, path, check, tolerance, started):
    """Write a graph, check the file, replace the target; return the report."""
    facts = {"precision": graph.precision, "opset": graph.opset, "nodes": len(graph.nodes), "tolerance": tolerance}
    if graph.nbytes <= EXTERNAL_LIMIT:
        return place(model, lambda file: file.write(_serialize(graph)), path, check, started, **facts)
    with _weights_beside(graph, path) as (data, size):
        return place(model, lambda file: file.write(data), path, check, started, size, **facts)


def place(model, write, path, check, started, weight_bytes=0, *, precision, opset, nodes, tolerance):
    """Write a file by `write`, check it, and move it to `path` if it passes; return the report.

    The file's contents are not in memory while it is checked. `check` holds the options of `verify`, or None.
    """
    with atomic_write(path) as file:
        write(file)
        file.flush()
        written, temporary = time.perf_counter(), Path(file.name)
        size, digest = temporary.stat().st_size + weight_bytes, sha256(temporary)
        checks = [] if check is None else _check(model, temporary, check, precision, tolerance)
    seconds = (written - started, time.perf_counter() - written)
    note = verification.note_on(model, checks)
    facts = (size, digest, nodes, seconds, tolerance, tuple(checks), note)
    return ExportReport(str(path), model.name, precision, opset, *facts)


def _serialize(graph, store=None):
    return to_proto(graph, store).SerializeToString(deterministic=True)


@contextlib.contextmanager
def _weights_beside(graph, path):
    """Write the weights to a file beside `path`; yield (serialised `onnx.ModelProto`, size of the weights file).

    If the block raises, the weights file is removed, unless it existed: then it holds the same bytes, and the existing
    ONNX file reads it.
    """
    digest = hashlib.sha256()
    for array in graph.weights.values():
        digest.update(array.data if array.ndim else array.tobytes())
    weights = path.with_name(f"{path.name}-{digest.hexdigest()[:16]}.data")
    existed = weights.exists()
    with atomic_write(weights) as file:

        def store(array):
            file.write(bytes(-file.tell() % _ALIGNMENT))
            offset = file.tell()
            file.write(array.data)
            return {"location": weights.name, "offset": offset, "length": array.nbytes}

        data = _serialize(graph, store)
    try:
        yield data, weights.stat().st_size
    except BaseException:
        if not existed:
            weights.unlink()
        raise


def _check(model, path, options, precision, tolerance):
    """Return the checks of a file.

    Raises:
        ValueError: the file is invalid, or differs from the model by more than the tolerance.
    """
    import onnx

    verification.say("Checking that the file is valid", options.get("progress"))
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ValueError(f"onnx.checker rejects the file: {error}") from error
    checks = verification.verify(model, path, **options)
    wrong = [check for check in checks if not check.is_within(precision, tolerance)]
    if wrong:
        worst = wrong[0]
        raise ValueError(
            f"The {precision} file differs from {model.name!r}: on {worst.inputs} inputs at batch {worst.batch}, "
            f"{worst.output} has error {worst.error:.2e} and cosine {worst.cosine:.6f}; the tolerance is {tolerance:g}."
        )
    return checks
