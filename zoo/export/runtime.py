"""Prediction with ONNX Runtime."""

import importlib.util
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from zoo.utils.env import available_cores

DTYPES = {"tensor(float)": np.float32, "tensor(uint8)": np.uint8, "tensor(int32)": np.int32, "tensor(int64)": np.int64}
PREFERRED = ("CUDAExecutionProvider", "CPUExecutionProvider")


class OnnxModel:
    """An ONNX file, ready to predict.

    Args:
        path: of the file, which `zoo.export_onnx` or another exporter wrote.
        threads: of one prediction; the cores that this process may use unless given.
        providers: ONNX Runtime's names, the preferred first; CUDA where there is one, then the CPU, unless given.

    Attributes:
        session: `onnxruntime.InferenceSession`.
        inputs, outputs: names.

    Raises:
        FileNotFoundError: no such file. ValueError: it is no ONNX model, or a provider is not there. ImportError:
            onnxruntime is missing.
    """

    def __init__(self, path: str | Path, *, threads: int | None = None, providers: list[str] | None = None):
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"No ONNX file at {str(path)!r}.")
        self.session = start_session(self.path, threads=threads, providers=providers)
        self.inputs = [entry.name for entry in self.session.get_inputs()]
        self.outputs = [entry.name for entry in self.session.get_outputs()]

    def predict(self, inputs, batch_size: int = 32):
        """What the model makes of its inputs.

        Args:
            inputs: array (N, …), or {name: array} where the model has several inputs. Floating-point numbers are
                cast as needed; a file with the preprocessing inside takes uint8 pixels.
            batch_size: rows at a time; the last batch may be smaller.

        Returns:
            float32 (N, …), or {name: array} where the model has several outputs.

        Raises:
            ValueError: names, kinds or shapes of inputs that are not the model's, or no rows.
        """
        feed = self._feed(inputs)
        rows = {len(array) for array in feed.values()}
        if len(rows) != 1 or not min(rows):
            raise ValueError(f"All inputs need the same number of rows, at least one, got {sorted(rows)}.")
        batches = [
            self.session.run(None, {name: array[start : start + batch_size] for name, array in feed.items()})
            for start in range(0, rows.pop(), batch_size)
        ]
        joined = [np.concatenate(parts) for parts in zip(*batches, strict=True)]
        return joined[0] if len(joined) == 1 else dict(zip(self.outputs, joined, strict=True))

    def _feed(self, inputs):
        given = dict(inputs) if isinstance(inputs, Mapping) else {self.inputs[0]: inputs}
        if set(given) != set(self.inputs):
            raise ValueError(f"{self.path.name} takes {', '.join(self.inputs)}, got {', '.join(map(str, given))}.")
        return {entry.name: self._cast(entry, np.asarray(given[entry.name])) for entry in self.session.get_inputs()}

    def _cast(self, entry, array):
        sides = zip(entry.shape[1:], array.shape[1:], strict=False)
        if array.ndim != len(entry.shape) or any(isinstance(side, int) and side != given for side, given in sides):
            wanted = ", ".join(map(str, entry.shape))
            raise ValueError(f"{entry.name} of {self.path.name} are ({wanted}), got {array.shape}.")
        dtype = DTYPES.get(entry.type)
        if dtype is None or array.dtype == dtype:
            return np.ascontiguousarray(array)
        if np.issubdtype(dtype, np.integer) and not np.issubdtype(array.dtype, np.integer):
            raise ValueError(f"{entry.name} of {self.path.name} are {np.dtype(dtype)}, got {array.dtype}.")
        if dtype == np.uint8:
            raise ValueError(f"{entry.name} of {self.path.name} are uint8 pixels of 0 to 255, got {array.dtype}.")
        return np.ascontiguousarray(array.astype(dtype))


def check_installed(*libraries):
    """ImportError that names what to install."""
    missing = [name for name in libraries if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f"ONNX files need {' and '.join(missing)}: pip install 'convnext-clip-zoo[onnx]'")


def start_session(model, *, threads=None, providers=None):
    """An `onnxruntime.InferenceSession` of a path or of bytes."""
    check_installed("onnxruntime")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or available_cores()  # its own default asks for all of them
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.force_spinning_stop", "1")  # between runs the cores are for others
    options.log_severity_level = 3  # errors
    source = str(model) if isinstance(model, Path) else model
    try:
        return onnxruntime.InferenceSession(source, options, providers=choose_providers(providers))
    except Exception as error:  # its classes share no base but Exception
        if type(error).__module__.startswith("onnxruntime"):
            raise ValueError(f"ONNX Runtime cannot run {getattr(model, 'name', 'the model')}: {error}") from error
        raise


def choose_providers(asked=None):
    """Those asked for, or the preferred ones that this ONNX Runtime has."""
    import onnxruntime

    there = onnxruntime.get_available_providers()
    missing = [name for name in asked or () if name not in there]
    if missing:
        raise ValueError(f"This ONNX Runtime has no {', '.join(missing)}. It has {', '.join(there)}.")
    return list(asked or [name for name in PREFERRED if name in there])
