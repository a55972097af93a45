"""`export_onnx`: writes a model as ONNX, checks the file against the model, and only then puts it in its place."""

import contextlib
import hashlib
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from zoo.data.preprocess import PreprocessSpec
from zoo.export import verify as verification
from zoo.export.graph import FLOAT32
from zoo.export.runtime import check_installed
from zoo.export.verify import TOLERANCES, Check
from zoo.utils.files import atomic_write, sha256

if TYPE_CHECKING:
    import keras

EXTERNAL_LIMIT = 1_900_000_000  # bytes of weights above which they do not fit into one protobuf message
ALIGNMENT = 4096  # of each array in the file of weights, so that it can be mapped
PARTS = ("image", "text", "pair", "zero-shot")


@dataclass(frozen=True)
class ExportReport:
    """What was written, and what it cost against the Keras model.

    Args:
        path: of the file.
        model: the model's name.
        precision, opset: as asked for.
        bytes: of the file, with its file of weights where it has one.
        sha256: of the file.
        nodes: of the graph.
        seconds: to write the file, and to check it.
        tolerance: that no check exceeded: of the error in float32, of 1 − cosine in lower precisions.
        checks: what was compared; () with verify=False.
        note: what was not compared, and why; "" where nothing is missing.
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
        """The largest of the checks."""
        return max((check.error for check in self.checks), default=None)

    @property
    def cosine(self) -> float | None:
        """The smallest of the checks."""
        return min((check.cosine for check in self.checks), default=None)

    @property
    def top1(self) -> float | None:
        """The smallest agreement of the checks."""
        return min((check.top1 for check in self.checks if check.top1 is not None), default=None)


def export_onnx(
    model: "keras.Model",
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
    """Writes a model as one ONNX file, the same bytes from every backend, and checks it.

    The file is compared with the model in ONNX Runtime at batch 1 and 3, on random and on real inputs. A file that was
    there before is replaced only by one that passed. Batch and text length are open; token ids are int32. Weights of
    more than 1.9 GB go to a file beside it, whose name holds a part of its digest.

    Args:
        model: a functional model of this zoo, folded or not: classifier, trunk, feature maps, tower, zero-shot
            classifier or pair; or one whose layers have rules (`zoo.export.register_emission`).
        path: of the file, whose folder exists.
        precision: "float32"; "float16", with norms, GRN and softmax in float32; or "int8": the products over maps and
            sequences with a weight scale for each channel and input scales found at run time, all else float32.
        opset: 20, or 17, in which GELU is spelled out.
        fold: write `zoo.fold(model)`, which is faster and the same but for rounding.
        calibration: images as the file takes them, (N, H, W, C), or {input: array}: the report tells what the
            precision costs on these in place of scikit-learn's photographs. Scales do not depend on them.
        verify: compare the file with the model.
        part: of a pair: "image", "text", "pair" (which is what None means) or "zero-shot".
        class_names, templates: for part="zero-shot", as `clip.zero_shot_classifier` takes them.
        preprocess: the file takes uint8 pixels of the model's size and does the scaling of this `PreprocessSpec`.
        layout: "NHWC" or "NCHW", of the images that the file takes.
        normalize: L2-normalise the embeddings of a tower.
        logits: a third result of a pair, exp(logit_scale) · cosine (+ bias).
        tolerance: of the error max |ONNX − Keras| / max |Keras| in float32 (1e-4 unless given), of 1 − cosine in
            float16 and int8 (1e-3).
        progress: print a line for each step.

    Returns:
        `ExportReport`.

    Raises:
        ValueError: an option that does not fit, a layer without a rule, or a file that differs by more than the
            tolerance; nothing is replaced then. FileNotFoundError: no such folder. ImportError: onnx or onnxruntime is
            missing.
    """
    from zoo.export.emit import emit

    path = Path(path)
    tolerance = check_request(path, precision, tolerance, verify)
    model = take_part(model, part, class_names, templates)
    started = time.perf_counter()
    options = {"preprocess": preprocess, "layout": layout, "normalize": normalize, "logits": logits}
    verification.tell(progress and fold, f"Folding {model.name}")
    graph = emit(model, precision=precision, opset=opset, fold=fold, **options)
    check = {"calibration": calibration, "progress": progress, **options} if verify else None
    verification.tell(progress, f"Writing {path}, {precision}, opset {opset}")
    return _write(model, graph, path, check, tolerance, started)


def check_request(path, precision=FLOAT32, tolerance=None, verify=True):
    """The tolerance; refuses before any work what could not be written or checked."""
    check_installed("onnx", *(["onnxruntime"] if verify else []))
    if path.is_dir():
        raise IsADirectoryError(f"{str(path)!r} is a folder; the name of a file is needed.")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"There is no folder {str(path.parent)!r} to write {path.name} into.")
    if precision not in TOLERANCES:
        raise ValueError(f"precision must be one of {', '.join(map(repr, TOLERANCES))}, got {precision!r}.")
    tolerance = TOLERANCES[precision] if tolerance is None else tolerance
    if not 0 < tolerance < math.inf:
        raise ValueError(f"tolerance must be a number above 0, got {tolerance!r}.")
    return tolerance


def take_part(model, part, class_names=None, templates=None):
    """The model of a part of a pair: a tower, the pair, or a zero-shot classifier.

    Raises:
        ValueError: an unknown part, a part of what is no pair, or class names missing or not asked for.
    """
    if part not in (None, *PARTS):
        raise ValueError(f"part must be one of {', '.join(map(repr, PARTS))}, got {part!r}.")
    if part is not None and not hasattr(model, "text_encoder"):
        raise ValueError(f"part={part!r} is of a pair, and {model.name!r} is none.")
    if (part == "zero-shot") != (class_names is not None):
        raise ValueError(f"part='zero-shot' and class_names go together, got part={part!r}, {class_names=}.")
    if part == "zero-shot":
        from clip import zero_shot_classifier

        return zero_shot_classifier(model, class_names, **({"templates": templates} if templates else {}))
    return getattr(model, f"{part}_encoder") if part in ("image", "text") else model


def _write(model, graph, path, check, tolerance, started):
    """Writes a graph, checks the file, replaces what was there; the report."""
    facts = {"precision": graph.precision, "opset": graph.opset, "nodes": len(graph.nodes), "tolerance": tolerance}
    if graph.nbytes <= EXTERNAL_LIMIT:
        return place(model, lambda file: file.write(_serialize(graph)), path, check, started, **facts)
    with _weights_beside(graph, path) as (data, size):
        return place(model, lambda file: file.write(data), path, check, started, size, **facts)


def place(model, write, path, check, started, weight_bytes=0, *, precision, opset, nodes, tolerance):
    """Puts what `write` writes in its place if it passes; the report. `check`: options of `verify`, or None.

    Of the file nothing stays in memory while it is checked.
    """
    with atomic_write(path) as file:
        write(file)
        file.flush()
        written, temporary = time.perf_counter(), Path(file.name)
        size, digest = temporary.stat().st_size + weight_bytes, sha256(temporary)
        checks = [] if check is None else _check(model, temporary, check, precision, tolerance)
    seconds = (written - started, time.perf_counter() - written)
    face = (str(path), model.name, precision, opset)
    note = verification.note_on(model, checks)
    return ExportReport(*face, size, digest, nodes, seconds, tolerance, tuple(checks), note)


def _serialize(graph, store=None):
    from zoo.export.emit import to_proto

    return to_proto(graph, store).SerializeToString(deterministic=True)


@contextlib.contextmanager
def _weights_beside(graph, path):
    """(the serialised `onnx.ModelProto`, bytes of the file of weights beside it), which goes again if the block raises.

    One that was there stays: it holds the same bytes, and the older file reads it.
    """
    digest = hashlib.sha256()
    for array in graph.weights.values():
        digest.update(array.data if array.ndim else array.tobytes())
    weights = path.with_name(f"{path.name}-{digest.hexdigest()[:16]}.data")
    was_there = weights.exists()
    with atomic_write(weights) as file:

        def store(array):
            file.write(bytes(-file.tell() % ALIGNMENT))
            offset = file.tell()
            file.write(array.data)
            return {"location": weights.name, "offset": offset, "length": array.nbytes}

        data = _serialize(graph, store)
    try:
        yield data, weights.stat().st_size
    except BaseException:
        if not was_there:
            weights.unlink()
        raise


def _check(model, path, options, precision, tolerance):
    """The checks of a file.

    Raises:
        ValueError: the file is not valid, or it differs from the model.
    """
    import onnx

    verification.tell(options.get("progress"), "Checking that the file is valid")
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ValueError(f"ONNX' own checker refuses the file: {error}") from error
    checks = verification.verify(model, path, **options)
    wrong = [check for check in checks if not check.is_within(precision, tolerance)]
    if wrong:
        worst = wrong[0]
        raise ValueError(
            f"The {precision} file differs from {model.name!r}: on {worst.inputs} inputs at batch {worst.batch}, "
            f"{worst.output} has error {worst.error:.2e} and cosine {worst.cosine:.6f}; the tolerance is {tolerance:g}."
        )
    return checks
