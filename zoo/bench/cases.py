"""What is timed and what came out: `Case`, `Result`, `Ratio`, `Report`; and how options combine into cases."""

import dataclasses
import itertools
from collections.abc import Iterable
from dataclasses import dataclass

OURS = "zoo"
SEARCHES = ("texts", "cached-texts", "search", "cached-search")  # text encoding and search, see uses.py
CAPTIONS = ("captions", "mixed-captions")  # tokenisation: ASCII only, or every second caption with other characters
FORWARD = ("classifier", "image", "text", "pair", "zero-shot")  # a forward pass of the model
PARTS = (*FORWARD, "pictures", *SEARCHES, *CAPTIONS)
DTYPES = ("float32", "tfloat32", "bfloat16", "float16", "int8")  # int8 needs ONNX Runtime, tfloat32 needs CUDA
MODES = ("eager", "compiled", "predict", "predictor")
WHOLE = ("predict", "predictor")  # modes that take a whole NumPy array of images and batch it themselves
RUNTIMES = ("keras", "folded", "onnx")
PREDICTED = 256  # images in that array
DEFAULT_MODE = {"jax": "compiled", "tensorflow": "compiled", "torch": "eager"}  # what most users of the backend do


@dataclass(frozen=True)
class Library:
    """A library to compare with: its module, its package on PyPI, whether it runs on Keras."""

    module: str
    package: str
    on_keras: bool = False


PEERS = {
    "timm": Library("timm", "timm"),
    "open_clip": Library("open_clip", "open_clip_torch"),
    "transformers": Library("transformers", "transformers"),
    "keras_applications": Library("keras", "keras", on_keras=True),
    "keras_hub": Library("keras_hub", "keras-hub", on_keras=True),
    "zeromodels": Library("zeromodels", "zeromodels", on_keras=True),
}
KERAS_APPLICATIONS = {  # our name → keras.applications' builder of the same architecture
    **{f"convnext_{size}": f"ConvNeXt{name}" for size, name in (
        ("tiny", "Tiny"), ("small", "Small"), ("base", "Base"), ("large", "Large"), ("xlarge", "XLarge"),
    )},
    **{f"resnet{depth}": f"ResNet{depth}" for depth in (50, 101, 152)},
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """What one process times.

    Args:
        name: a zoo model; a peer builds the same architecture.
        library: OURS, or one of PEERS.
        backend: Keras backend; "torch" for peers written in torch.
        part: one of PARTS; or "matmul", a matrix product that measures the machine's rate.
        batch_size: images, texts or pairs per call; per batch if `predict` makes several.
        image_size: image side in pixels.
        dtype: dtype of weights and activations; training keeps float32 weights.
        mode: "eager"; "compiled" by the backend (jax.jit, tf.function, torch.compile); "predict", Keras' own loop;
            "predictor", the loop of `zoo.create_predictor`.
        runtime: "keras"; "folded", `zoo.fold` of the model in Keras; or "onnx", the file of `zoo.export_onnx` in
            ONNX Runtime.
        train: time a training step instead of a forward pass.
        threads: CPU threads that a call may use.
        is_short: skip nearly all warm-up, for tests.
    """

    name: str
    library: str = OURS
    backend: str = "torch"
    part: str = "classifier"
    batch_size: int = 8
    image_size: int = 224
    dtype: str = "float32"
    mode: str = "eager"
    runtime: str = "keras"
    train: bool = False
    threads: int = 1
    is_short: bool = False

    @property
    def runs_on(self) -> str:
        """Backend or runtime, for display."""
        if self.part in CAPTIONS:
            return "–"
        return {"onnx": "ONNX Runtime", "folded": f"{self.backend}, folded"}.get(self.runtime, self.backend)

    @property
    def items(self) -> int:
        """Images, texts or pairs per call."""
        return max(PREDICTED, self.batch_size) if self.mode in WHOLE and not self.is_short else self.batch_size


@dataclass(frozen=True)
class Result:
    """What one case measured.

    Args:
        case: what was timed.
        device: name of the device.
        parameters: trainable parameters.
        flops: FLOPs per item from the model tables, two per multiply–add, three forward passes per training step;
            None if unknown.
        build_seconds: time to build the model with random weights (for ONNX: to write and load the file), without
            imports.
        first_seconds: time of the first call, with tracing and compilation.
        rounds: seconds of each call, by round.
        p50, p90: percentiles over all calls, in seconds.
        items_per_second: items per call / p50.
        library_bytes, host_bytes: resident memory before the model was built, and its peak.
        device_bytes: peak accelerator memory; None on a CPU.
        share: achieved FLOP/s / the best matrix-product rate of the same run, in [0, 1].
        similarities: cosines of the first outputs with directions shared by all cases; of our models only.
        difference: largest difference of those cosines from the same case in float32 Keras; None without such a case.
        error: why the case was not timed; all figures are then None.
    """

    case: Case
    device: str | None = None
    parameters: int | None = None
    flops: int | None = None
    build_seconds: float | None = None
    first_seconds: float | None = None
    rounds: tuple[tuple[float, ...], ...] = ()
    p50: float | None = None
    p90: float | None = None
    items_per_second: float | None = None
    library_bytes: int | None = None
    host_bytes: int | None = None
    device_bytes: int | None = None
    share: float | None = None
    similarities: tuple[float, ...] | None = None
    difference: float | None = None
    error: str | None = None


@dataclass(frozen=True)
class Ratio:
    """How many times as fast one case is as another, per item: median over rounds, and range.

    Args:
        case, other: indices into the results.
    """

    case: int
    other: int
    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Report:
    """One run of the benchmark.

    Args:
        command: command line that repeats the run.
        machine: {label: value} of hardware, system and versions.
        rates: {"backend, dtype": FLOP/s} of matrix products.
        results: by group, ours first.
        ratios: between results whose cases took turns.
        preset: name of the preset, or None.
        commands: {command line: least seconds}, measured by the preset `bars`.
    """

    command: str
    machine: dict[str, str]
    rates: dict[str, float]
    results: tuple[Result, ...]
    ratios: tuple[Ratio, ...]
    preset: str | None = None
    commands: dict[str, float] = dataclasses.field(default_factory=dict)


def combine(names: Iterable[str], options: dict) -> list[Case]:
    """Return every combination of options as a `Case`, ours before the peers, without unsupported combinations.

    Args:
        names: model names.
        options: {field: tuple of values}; `peer` lists the libraries besides OURS. Absent or None means the default.

    Raises:
        ValueError: unknown model name, or a part that the model does not have.
    """
    from zoo.models.info import model_info

    cases = []
    for name in names:
        info = model_info(name)
        parts = options.get("part") or ("pair" if info.family == "clip" else "classifier",)
        for part in parts:
            _check_part(info, part)
        axes = {
            "library": (OURS, *_peers(info.name, options.get("peer"))),
            "part": parts,
            "image_size": options.get("image_size") or (info.input[0] or 0,),
            **{field: options.get(field) or default for field, default in DEFAULTS.items()},
        }
        fields = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
        cases += [case for case in map(_complete, [{"name": info.name, **own} for own in fields]) if case]
    return list(dict.fromkeys(cases))


DEFAULTS = {
    "batch_size": (8,),
    "train": (False,),
    "backend": ("torch",),
    "runtime": ("keras",),
    "dtype": ("float32",),
    "mode": (None,),
    "threads": (1,),
    "is_short": (False,),
}


def _complete(fields):
    """Return the `Case` of these fields, or None if the combination is unsupported."""
    library, runtime = fields["library"], fields["runtime"]
    if runtime == "onnx":
        impossible = fields["train"] or fields["dtype"] in ("bfloat16", "tfloat32")
        fields = {**fields, "backend": "torch", "mode": "compiled"} if library == OURS else fields
    else:
        impossible = fields["dtype"] == "int8"
        impossible |= runtime == "folded" and (fields["train"] or fields["part"] not in FORWARD)
    if library != OURS:  # peers have no runtime or int8 of their own
        fields = {**fields, "runtime": "keras", "dtype": fields["dtype"].replace("int8", "float32")}
        if not PEERS[library].on_keras:
            impossible |= fields["mode"] in WHOLE
            fields = {**fields, "backend": "torch"}
    impossible |= fields["mode"] == "predictor" and (library != OURS or fields["part"] == "pair")
    if fields["part"] == "pictures":
        impossible |= library not in (OURS, "open_clip") or fields["mode"] in WHOLE or fields["train"]
    if fields["part"] in CAPTIONS:  # tokenizers need no backend
        impossible |= runtime == "onnx" or fields["mode"] in WHOLE or library not in (OURS, "open_clip")
        fields = {**fields, "backend": "torch", "mode": "eager"}
    impossible |= fields["part"] in SEARCHES and (library != OURS or runtime == "onnx" or fields["dtype"] != "float32")
    if fields["train"]:
        impossible |= fields["part"] not in ("classifier", "pair") or fields["mode"] in WHOLE
    if impossible:
        return None
    return Case(**{**fields, "mode": fields["mode"] or DEFAULT_MODE[fields["backend"]]})


def _peers(name, peers):
    if peers is None:
        return ("keras_applications",) if name in KERAS_APPLICATIONS else ()
    return tuple(peer for peer in peers if peer != "none")


def _check_part(info, part):
    if part not in PARTS:
        raise ValueError(f"part must be one of {', '.join(map(repr, PARTS))}, got {part!r}.")
    is_pair = info.family == "clip"
    if is_pair == (part == "classifier"):
        raise ValueError(f"{info.name} is {'a CLIP model' if is_pair else 'a classifier'} and has no part {part!r}.")


def flops_of(case: Case) -> int | None:
    """Return the FLOPs per item from the model tables; None for searches (texts are cut) and tokenisation."""
    if case.part in (*SEARCHES, *CAPTIONS):
        return None
    import clip
    from zoo.models import config_of, find, info_of

    config = config_of(find(case.name)._replace(tag=None))
    if case.part == "classifier":
        arguments = {**config.arguments, "input_shape": [case.image_size, case.image_size, 3]}
        forward = info_of(dataclasses.replace(config, arguments=arguments)).flops
    else:
        row = config.row
        image, text = clip.image_flops(row, case.image_size), clip.text_flops(row.text, row.embed_dim)
        forward = {"text": text, "pair": image + text}.get(case.part, image)
    return None if forward is None else 3 * forward if case.train else forward
