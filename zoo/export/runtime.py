"""Inference with ONNX Runtime."""

import os
import threading
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from zoo.utils.env import available_cores, import_onnxruntime, require_packages
from zoo.utils.files import check_regular
from zoo.utils.text import quoted, shown

_DTYPES = {"tensor(float)": np.float32, "tensor(uint8)": np.uint8, "tensor(int32)": np.int32, "tensor(int64)": np.int64}
FIRST_RUN_SECONDS = 120.0  # a file may hold a loop without end; a large model takes about 10 s for a batch on one core
_PREFERRED = ("CUDAExecutionProvider", "CPUExecutionProvider")
_TENSORRT = ("TensorrtExecutionProvider", *_PREFERRED)  # each takes the nodes that those before it cannot run


class OnnxModel:
    """An ONNX file loaded for inference.

    Args:
        path: path of a file written by `zoo.export_onnx` or another exporter.
        threads: CPU threads per call; default all cores that this process may use.
        providers: ONNX Runtime's provider names, the preferred first; default CUDA if available, then the CPU.
            "tensorrt" for TensorRT and then these two, where this ONNX Runtime has it; it builds an engine at the
            first call, which takes minutes.
        seconds: limit of the first batch, which shows whether the file ends at all; None for none.

    Attributes:
        session: `onnxruntime.InferenceSession`.
        inputs, outputs: names of the inputs and outputs.

    Raises:
        FileNotFoundError: no such file. ValueError: not an ONNX model, one without inputs, or a provider is not
            available. ImportError: onnxruntime is missing.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        threads: int | None = None,
        providers: list[str] | str | None = None,
        seconds: float | None = FIRST_RUN_SECONDS,
    ):
        self.path, self._seconds = Path(path), seconds
        if not os.path.exists(self.path) or self.path.is_dir():
            raise FileNotFoundError(f"There is no file {quoted(str(path))}.")
        check_regular(self.path, self.path.stat())
        self.session = start_session(self.path, threads=threads, providers=providers)
        self.inputs = [entry.name for entry in self.session.get_inputs()]
        self.outputs = [entry.name for entry in self.session.get_outputs()]
        if not self.inputs or not self.outputs:
            raise ValueError(f"{shown(self.path.name)} has {len(self.inputs)} inputs and {len(self.outputs)} outputs.")

    def predict(self, inputs, batch_size: int = 32):
        """Run the model on arrays.

        Args:
            inputs: array (N, …), or {name: array} for a model with several inputs. Floating-point arrays are cast as
                needed; a file with the preprocessing inside takes uint8 pixels.
            batch_size: rows per call; the last batch may be smaller.

        Returns:
            float32 (N, …), or {name: array} for a model with several outputs.

        Raises:
            ValueError: wrong names, dtypes or shapes, no rows, or different numbers of rows.
        """
        feed = self._feed(inputs)
        rows = {len(array) if array.ndim else 0 for array in feed.values()}
        if len(rows) != 1 or not min(rows):
            raise ValueError(f"All inputs must have the same number of rows, at least one, got {sorted(rows)}.")
        batches = [
            self._run({name: array[start : start + batch_size] for name, array in feed.items()})
            for start in range(0, rows.pop(), batch_size)
        ]
        joined = [np.concatenate(parts) for parts in zip(*batches, strict=True)]
        return joined[0] if len(joined) == 1 else dict(zip(self.outputs, joined, strict=True))

    def _run(self, feed):
        """Return the outputs of one batch; ValueError for an error, or a first run without end."""
        onnxruntime = import_onnxruntime()
        options, limit = onnxruntime.RunOptions(), None
        options.log_severity_level = 4
        if self._seconds is not None:
            limit = threading.Timer(self._seconds, setattr, (options, "terminate", True))
            limit.daemon = True
            limit.start()
        try:
            outputs = self.session.run(None, feed, options)
        except Exception as error:  # onnxruntime's errors share no other base class
            if options.terminate:
                raise ValueError(
                    f"{shown(self.path.name)} did not end in {self._seconds:g} s; pass seconds=None for no limit."
                ) from error
            raise ValueError(f"ONNX Runtime cannot run {shown(self.path.name)}: {shown(error)}") from error
        finally:
            if limit is not None:
                limit.cancel()
        self._seconds = None
        return outputs

    def _feed(self, inputs):
        given = dict(inputs) if isinstance(inputs, Mapping) else {self.inputs[0]: inputs}
        if set(given) != set(self.inputs):
            names = ", ".join(map(shown, self.inputs)), ", ".join(map(shown, given))
            raise ValueError(f"{shown(self.path.name)} takes {names[0]}, got {names[1]}.")
        return {entry.name: self._cast(entry, np.asarray(given[entry.name])) for entry in self.session.get_inputs()}

    def _cast(self, entry, array):
        name = f"{shown(entry.name)} of {shown(self.path.name)}"
        if array.dtype.kind not in "biuf" and array.dtype.name not in ("bfloat16", "float8_e4m3fn"):
            raise ValueError(f"{name} must be numbers, got {array.dtype}: {quoted(array.ravel()[:1].tolist())}.")
        sides = zip(entry.shape[1:], array.shape[1:], strict=False)
        if array.ndim != len(entry.shape) or any(isinstance(side, int) and side != given for side, given in sides):
            wanted = ", ".join(map(shown, entry.shape))
            raise ValueError(f"{name} must have shape ({wanted}), got {array.shape}.")
        dtype = _DTYPES.get(entry.type)
        if dtype is None or array.dtype == dtype:
            return np.ascontiguousarray(array)
        if np.issubdtype(dtype, np.integer) and not np.issubdtype(array.dtype, np.integer):
            raise ValueError(f"{name} must be {np.dtype(dtype)}, got {array.dtype}.")
        if dtype == np.uint8:
            raise ValueError(f"{name} must be uint8 pixels, 0 to 255, got {array.dtype}.")
        return np.ascontiguousarray(array.astype(dtype))


def start_session(model, *, threads=None, providers=None):
    """Return an `onnxruntime.InferenceSession` of a path or of bytes."""
    require_packages("ONNX", ("onnxruntime",), extras="onnx")
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or available_cores()  # ONNX Runtime's default ignores CPU affinity
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.force_spinning_stop", "1")  # leave the cores to others between runs
    options.log_severity_level = 4  # errors are raised anyway; printed names from a file could hold terminal codes
    source = str(model) if isinstance(model, Path) else model
    try:
        return onnxruntime.InferenceSession(source, options, providers=choose_providers(providers))
    except Exception as error:  # onnxruntime's errors share no other base class
        if type(error).__module__.startswith("onnxruntime"):
            name = shown(getattr(model, "name", "the model"))
            raise ValueError(f"ONNX Runtime cannot run {name}: {shown(error)}") from error
        raise


def choose_providers(requested=None):
    """Return the requested providers, or by default CUDA if available, and the CPU."""
    onnxruntime = import_onnxruntime()
    available = onnxruntime.get_available_providers()
    if requested == "tensorrt":
        requested = [name for name in _TENSORRT if name in available or name == _TENSORRT[0]]
    missing = [name for name in requested or () if name not in available]
    if missing:
        raise ValueError(f"This ONNX Runtime has no {', '.join(missing)}. Available: {', '.join(available)}.")
    return list(requested or [name for name in _PREFERRED if name in available])
