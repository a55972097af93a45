"""What is timed, and what came out: `Case`, `Result`, `Ratio`, `Report`; and the options that make up cases."""

import dataclasses
import itertools
from collections.abc import Iterable
from dataclasses import dataclass

OURS = "zoo"
SEARCHES = ("texts", "cached-texts", "search", "cached-search")  # of a pair's text tower in use
CAPTIONS = ("captions", "mixed-captions")  # made tokens: ASCII alone, or one in two with more than that
FORWARD = ("classifier", "image", "text", "pair", "zero-shot")  # a model's own forward pass
PARTS = (*FORWARD, "pictures", *SEARCHES, *CAPTIONS)
DTYPES = ("float32", "tfloat32", "bfloat16", "float16", "int8")  # int8 is ONNX Runtime's alone, tfloat32 CUDA's
MODES = ("eager", "compiled", "predict", "predictor")
WHOLE = ("predict", "predictor")  # modes that are given many images at once, as NumPy arrays
RUNTIMES = ("keras", "folded", "onnx")
PREDICTED = 256  # images that these are given
USUAL_MODE = {"jax": "compiled", "tensorflow": "compiled", "torch": "eager"}  # what users of the backend do


@dataclass(frozen=True)
class Library:
    """A library beside us: the module that must be there, what pip calls it, whether it runs on Keras."""

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
KERAS_APPLICATIONS = {  # our name: keras.applications' builder of the same size
    **{f"convnext_{size}": f"ConvNeXt{name}" for size, name in (
        ("tiny", "Tiny"), ("small", "Small"), ("base", "Base"), ("large", "Large"), ("xlarge", "XLarge"),
    )},
    **{f"resnet{depth}": f"ResNet{depth}" for depth in (50, 101, 152)},
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """What one process times.

    Args:
        name: of a model of the zoo; a peer's is the same architecture.
        library: OURS, or one of PEERS.
        backend: Keras' name; "torch" for a peer that is written in it.
        part: of the model, one of PARTS; or "matmul", the yardstick, which has no model.
        batch_size: images, texts or pairs of a call; of a batch where `predict` makes several.
        image_size: side of the images in pixels.
        dtype: of weights and activations; training keeps the weights in float32.
        mode: "eager"; "compiled" by the backend (jax.jit, tf.function, torch.compile); "predict", Keras' own loop;
            "predictor", that of `zoo.create_predictor`.
        runtime: "keras"; "folded", by Keras too, the model that `zoo.fold` makes; or "onnx": ONNX Runtime with the
            file that `zoo.export_onnx` writes.
        train: a training step in place of a forward pass.
        threads: that a call may use.
        is_short: hardly any warm-up, for tests.
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
        """Backend or runtime."""
        if self.part in CAPTIONS:
            return "–"
        return {"onnx": "ONNX Runtime", "folded": f"{self.backend}, folded"}.get(self.runtime, self.backend)

    @property
    def items(self) -> int:
        """Images, texts or pairs of a call."""
        return max(PREDICTED, self.batch_size) if self.mode in WHOLE and not self.is_short else self.batch_size


@dataclass(frozen=True)
class Result:
    """What came out of a case.

    Args:
        case: what was timed.
        device: it ran on.
        parameters: trainable ones.
        flops: of one item by the tables' arithmetic, two for each multiply–add, a training step counted as three
            forward passes; None where it is not known.
        build_seconds: to make the model with random weights (for ONNX to write and load the file), imports left out.
        first_seconds: of the first call, tracing and compiling included.
        rounds: seconds of each call, round by round.
        p50, p90: seconds over all calls.
        items_per_second: items of a call / p50.
        library_bytes, host_bytes: the process' memory before the model was built, and its peak.
        device_bytes: peak of an accelerator's memory; None on a CPU.
        share: of the best matrix-product rate measured in the same run, in [0, 1].
        similarities: cosines of its first outputs with directions that all cases share; of ours alone.
        difference: the largest of those from the same case's in float32 by Keras; None where none took turns with it.
        error: why there are no figures; then all of them are None.
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
    """How many times as fast one case is as another, in seconds an item: the median over rounds, and its range.

    Args:
        case, other: indices of results.
    """

    case: int
    other: int
    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Report:
    """A run of the benchmark.

    Args:
        command: that makes the same run.
        machine: {what: value} of hardware, system and versions.
        rates: {"backend, dtype": FLOP/s} of matrix products, the yardstick.
        results: by group, ours first.
        ratios: between results whose cases took turns.
        preset: its name, or None.
        commands: {command line: seconds, the least}, of the preset `bars`.
    """

    command: str
    machine: dict[str, str]
    rates: dict[str, float]
    results: tuple[Result, ...]
    ratios: tuple[Ratio, ...]
    preset: str | None = None
    commands: dict[str, float] = dataclasses.field(default_factory=dict)


def combine(names: Iterable[str], options: dict) -> list[Case]:
    """Every combination of options as a `Case`, ours before the peers, impossible ones left out.

    Args:
        names: of models.
        options: tuples of values by field; `peer` has the libraries beside OURS. What is None, or not there, has the
            usual value.

    Raises:
        ValueError: a name that is not there, or a part that a model does not have.
    """
    cases = []
    for name in names:
        facts = facts_of(name)
        parts = options.get("part") or (facts.usual_part,)
        for part in parts:
            facts.check_part(part)
        axes = {
            "library": (OURS, *_peers(facts, options.get("peer"))),
            "part": parts,
            "image_size": options.get("image_size") or (facts.image_size,),
            **{field: options.get(field) or usual for field, usual in USUAL.items()},
        }
        fields = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
        cases += [case for case in map(_complete, [{"name": facts.name, **own} for own in fields]) if case]
    return list(dict.fromkeys(cases))


USUAL = {
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
    """The `Case` of these fields, or None where nothing runs so."""
    library, runtime = fields["library"], fields["runtime"]
    if runtime == "onnx":
        impossible = fields["train"] or fields["dtype"] in ("bfloat16", "tfloat32")
        fields = {**fields, "backend": "torch", "mode": "compiled"} if library == OURS else fields
    else:
        impossible = fields["dtype"] == "int8"
        impossible |= runtime == "folded" and (fields["train"] or fields["part"] not in FORWARD)
    if library != OURS:  # beside a runtime of ours a peer runs as it always does
        fields = {**fields, "runtime": "keras", "dtype": fields["dtype"].replace("int8", "float32")}
        if not PEERS[library].on_keras:
            impossible |= fields["mode"] in WHOLE
            fields = {**fields, "backend": "torch"}
    impossible |= fields["mode"] == "predictor" and (library != OURS or fields["part"] == "pair")
    if fields["part"] == "pictures":
        impossible |= library not in (OURS, "open_clip") or fields["mode"] in WHOLE or fields["train"]
    if fields["part"] in CAPTIONS:  # a tokenizer runs on no backend
        impossible |= runtime == "onnx" or fields["mode"] in WHOLE or library not in (OURS, "open_clip")
        fields = {**fields, "backend": "torch", "mode": "eager"}
    impossible |= fields["part"] in SEARCHES and (library != OURS or runtime == "onnx" or fields["dtype"] != "float32")
    if fields["train"]:  # Keras' own loop is how it trains in any mode
        impossible |= fields["part"] not in ("classifier", "pair") or fields["mode"] in WHOLE
    if impossible:
        return None
    return Case(**{**fields, "mode": fields["mode"] or USUAL_MODE[fields["backend"]]})


def _peers(facts, asked):
    if asked is None:
        return ("keras_applications",) if facts.name in KERAS_APPLICATIONS else ()
    return tuple(peer for peer in asked if peer != "none")


@dataclass(frozen=True)
class Facts:
    """What the tables know of a name."""

    name: str
    is_pair: bool
    image_size: int

    @property
    def usual_part(self):
        return "pair" if self.is_pair else "classifier"

    def check_part(self, part):
        if part not in PARTS:
            raise ValueError(f"part must be one of {', '.join(map(repr, PARTS))}, got {part!r}.")
        if self.is_pair == (part == "classifier"):
            kind = "a pair" if self.is_pair else "a classifier"
            raise ValueError(f"{self.name} is {kind} and has no part {part!r}.")


def facts_of(name: str) -> Facts:
    """The `Facts` of a name.

    Raises:
        ValueError: an unknown name; the nearest are offered.
    """
    from zoo.models.info import model_info

    info = model_info(name)
    return Facts(info.name, info.family == "clip", info.input[0])


def flops_of(case: Case) -> int | None:
    """Floating-point operations of an item by the tables' arithmetic; None of a search (it cuts texts) and of ids."""
    if case.part in (*SEARCHES, *CAPTIONS):
        return None
    import clip
    from zoo.models.info import info_of
    from zoo.models.names import find
    from zoo.models.recipes import named

    recipe = named(find(case.name))
    if case.part == "classifier":
        arguments = {**recipe.arguments, "input_shape": [case.image_size, case.image_size, 3]}
        description = dataclasses.replace(recipe.description, arguments=arguments)
        forward = info_of(dataclasses.replace(recipe, description=description)).flops
    else:
        row = clip.VARIANTS[recipe.arguments["variant"]]
        image, text = clip.image_flops(row, case.image_size), clip.text_flops(row.text, row.embed_dim)
        forward = {"text": text, "pair": image + text}.get(case.part, image)
    return 3 * forward if case.train else forward
