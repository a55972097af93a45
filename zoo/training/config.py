"""Training options, declared once per mode: one dataclass whose fields carry type, default and help.

From them come the arguments of `zoo.train` and `zoo.pretrain` (`accepts`), the command line's flags, the keys of a
classifier's JSON config and the tables in docs/reference/training-options.md.
"""

import dataclasses
import difflib
import functools
import inspect
import math
import textwrap
import types
import typing
from collections.abc import Callable
from dataclasses import MISSING, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from convnext import called_here
from zoo.utils.strict_json import OBJECT, read_json
from zoo.utils.text import quoted, shown

if TYPE_CHECKING:
    import clip
    import convnext
    from zoo.data import Dataset

LARGEST_CONFIG = 1 << 20  # bytes of a classifier's JSON config
PRECISIONS = ("float32", "bfloat16", "float16")
REPORTS = ("tensorboard",)
MAX_CONTEXT = 77
RATE_HELP = "peak learning rate, reached after the warm-up; a cosine decays it to zero"
RESUME_HELP = "resume from the newest checkpoint in the output folder"
OPEN_CLIP: dict[str, tuple[type, str]] = {  # options of open_clip that are not one of ours: see `from_open_clip`
    "accum_freq": (int, "open_clip: multiplies --batch-size and processes it in that many chunks (--accumulate)"),
    "siglip": (bool, "open_clip: --loss siglip"),
    "logs": (str, "open_clip: with --name, --output LOGS/NAME (default logs)"),
    "name": (str, "open_clip: with --logs, --output LOGS/NAME"),
    "csv_separator": (str, "open_clip: accepted; the separator is detected from the header"),
}
ARCHITECTURE = {  # key of transformers' configs: (type, help)
    "hidden_sizes": (list, "channels of each stage"),
    "depths": (list, "blocks of each stage"),
    "num_stages": (int, "number of stages, which `hidden_sizes` and `depths` must agree with"),
    "hidden_act": (str, "activation"),
    "num_channels": (int, "image channels; 3"),
    "layer_norm_eps": (float, "epsilon of the normalisation layers"),
    "patch_size": (int, "ConvNeXt: kernel size of the stem"),
    "layer_scale_init_value": (float, "ConvNeXt: initial layer scale"),
    "layer_type": (str, 'ResNet: "basic" or "bottleneck"'),
    "embedding_size": (int, "ResNet: channels of the stem"),
    "downsample_in_first_stage": (bool, "ResNet: must be false"),
    "downsample_in_bottleneck": (bool, "ResNet: must be false"),
}
FAMILIES = ("resnet", "convnext", "convnextv2")

Function = TypeVar("Function", bound=Callable[..., Any])


def option(
    default: Any,
    help: str,
    *,
    metavar: str | None = None,
    choices: tuple | None = None,
    minimum: int | None = None,
    aliases: tuple[str, ...] = (),
    values: dict[str, Any] | None = None,
) -> Any:
    """A field of a `TrainConfig`.

    Args:
        default: MISSING if the option is required.
        help: one line for the command line and the docs; the default is added to it.
        metavar, choices: as in argparse.
        minimum: smallest allowed value of a number on the command line.
        aliases: names of the same option in open_clip, which the command line takes too.
        values: {open_clip's name of a value: ours}, which the command line takes too.
    """
    metadata = {"help": help, "metavar": metavar, "choices": choices, "minimum": minimum}
    return field(default=default, metadata={**metadata, "aliases": aliases, "values": values or {}})


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The options that every mode has."""

    train_data: "str | Path | Dataset" = option(
        MISSING,
        "CSV, TSV or parquet file, folder, or tar shards (train-{0000..0127}.tar); in Python also a Dataset",
        metavar="PATH",
    )
    validation_data: "str | Path | Dataset | None" = option(
        None, "data to validate on, read like train_data", metavar="PATH", aliases=("val_data",)
    )
    output: str | Path = option(
        "output", "folder for the model, checkpoints, history and bad_samples.jsonl", metavar="DIR"
    )
    image_key: str = option(
        "filepath", "column of a table with image paths", metavar="COLUMN", aliases=("csv_img_key",)
    )
    data_root: str | Path | None = option(
        None, "base folder for relative paths in a table; default: the table's folder", metavar="DIR"
    )
    batch_size: int = option(32, "images per batch, over all devices", minimum=1)
    epochs: int = option(10, "passes over the data", minimum=1)
    image_size: int | None = option(
        None, "image side in pixels; default: the model's", metavar="PIXELS", minimum=1, aliases=("force_image_size",)
    )
    stem_stride: int | None = option(None, "stride of a ConvNeXt's stem; smaller for small images", choices=(4, 2, 1))
    weights: str | Path | None = option(
        None,
        "initial weights: a tag of published ones, or a file",
        metavar="TAG|PATH",
        aliases=("pretrained",),
    )
    learning_rate: float = option(1e-3, RATE_HELP, aliases=("lr",))
    weight_decay: float = option(
        0.05, "AdamW's weight decay; gains, biases, embeddings and the logit scale have none", aliases=("wd",)
    )
    warmup_steps: int | None = option(None, "steps of linear warm-up; default: a tenth of the run", aliases=("warmup",))
    clip_norm: float | None = option(
        None, "maximum global gradient norm; 0 for no limit; default: no limit", aliases=("grad_clip_norm",)
    )
    precision: str = option(
        "float32",
        "precision of the computation; weights are always float32",
        choices=PRECISIONS,
        values={"fp32": "float32", "amp": "float16", "amp_bf16": "bfloat16", "amp_bfloat16": "bfloat16"},
    )
    checkpoint_activations: bool = option(
        False,
        "recompute each block in the backward pass instead of keeping its activations: less memory, more time",
        aliases=("grad_checkpointing",),
    )
    ema: float | None = option(
        None, "EMA decay of the weights; the average is validated and saved; default: no EMA", metavar="DECAY"
    )
    validate_every: int | None = option(
        None, "steps between validations; default: one per epoch", metavar="STEPS", minimum=1
    )
    save_every: int | None = option(
        None, "steps between checkpoints; default: one per epoch", metavar="STEPS", minimum=1
    )
    log_every: int = option(
        10, "steps per row of the history", metavar="STEPS", minimum=1, aliases=("log_every_n_steps",)
    )
    report_to: str | None = option(
        None, "also write the history for TensorBoard, in the output folder's tensorboard/", choices=REPORTS
    )
    max_skipped: int = option(
        10, "consecutive non-finite updates after which the run returns to its last checkpoint", minimum=1
    )
    max_bad_fraction: float = option(0.01, "fraction of unreadable records above which the run ends")
    threads: int | None = option(
        None, "threads that decode images; default: the cores, at most 8", minimum=1, aliases=("workers",)
    )
    devices: int | None = option(None, "JAX devices that share each batch; default: 1", metavar="N", minimum=1)
    model_axis: int | None = option(
        None, "JAX devices that share one copy of the weights, for large towers; default: 1", metavar="N", minimum=1
    )
    coordinator: str | None = option(None, "address of the first of several processes, HOST:PORT", metavar="HOST:PORT")
    processes: int | None = option(None, "number of processes that share each batch", metavar="N", minimum=1)
    process_id: int | None = option(None, "number of this process, from 0", metavar="N")
    seed: int = option(0, "seed of weights, order and augmentation")


@dataclass(frozen=True, kw_only=True)
class ContrastiveConfig(TrainConfig):
    """The options of `zoo.train` and `zoo train contrastive`."""

    model: "str | clip.Pair | clip.CLIP" = option(
        MISSING,
        "name of a CLIP model, such as clip/convnext_v2_tiny; in Python also a Pair, or a CLIP to train in place",
        metavar="NAME",
    )
    output: str | Path = option(
        "contrastive-output", "folder for model.safetensors, checkpoints and history", metavar="DIR"
    )
    caption_key: str = option(
        "caption", "column of a table with captions", metavar="COLUMN", aliases=("csv_caption_key",)
    )
    label_key: str | None = option(
        None, "column of classes; images and captions of one class are positives of each other", metavar="COLUMN"
    )
    batch_size: int = option(32, "image–caption pairs per batch, compared with each other", minimum=1)
    loss: str = option("clip", "contrastive loss", choices=("clip", "siglip"))
    learning_rate: float = option(5e-4, RATE_HELP, aliases=("lr",))
    clip_norm: float | None = option(1.0, "maximum global gradient norm; 0 for no limit", aliases=("grad_clip_norm",))
    accumulate: int = option(
        1,
        "chunks that a batch is processed in, to save memory; the loss is that of the whole batch",
        metavar="CHUNKS",
        minimum=1,
    )
    lock_image: bool = option(False, "freeze the image tower")
    lock_text: bool = option(False, "freeze the text tower")
    context_length: int = option(MAX_CONTEXT, "tokens per caption, 2 to 77; longer captions are cut", minimum=1)
    classes: str | None = option(
        None, "class names for zero-shot accuracy on the validation data: digits, cifar10, …", metavar="NAME"
    )
    teacher: "str | Path | clip.CLIP | None" = option(
        None, "CLIP model to distil from: the name of published weights, or a saved file", metavar="NAME|PATH"
    )
    distill_weight: float = option(1.0, "weight of the distillation loss")
    resume: bool = option(False, RESUME_HELP, values={"latest": True})


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(TrainConfig):
    """The options of `zoo.pretrain` and `zoo pretrain`."""

    model: "str | convnext.Variant | convnext.FCMAE" = option(
        MISSING,
        "name of a ConvNeXt V2, such as convnextv2_tiny; in Python also a Variant, or an FCMAE to train in place",
        metavar="NAME",
    )
    output: str | Path = option(
        "pretrain-output", "folder for model.safetensors, the report and checkpoints", metavar="DIR"
    )
    image_size: int | None = option(
        None, "image side in pixels, a multiple of the patch side; default: 224", metavar="PIXELS", minimum=1
    )
    stem_stride: int | None = option(
        None, "stride of the stem, smaller for small images; it also sets the patch side", choices=(4, 2, 1)
    )
    mask_ratio: float = option(0.6, "fraction of the patches that is hidden")
    decoder_dim: int = option(512, "channels of the decoder", minimum=1)
    decoder_depth: int = option(1, "blocks of the decoder", minimum=1)
    crop_scale: float = option(0.2, "minimum fraction of an image that a crop takes; 1 for no cropping")
    flip: float = option(0.5, "probability of a horizontal flip")
    seed: int = option(0, "seed of weights, masks, order and augmentation")
    resume: bool = option(False, RESUME_HELP, values={"latest": True})


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig(TrainConfig):
    """The options of `train_classifier`: the keys of its JSON config, besides those of ARCHITECTURE."""

    model_type: str = option("resnet", "architecture family", choices=FAMILIES)
    model: str | None = option(
        None,
        "a name (convnextv2_tiny), a name with published weights (convnextv2_tiny.fcmae), or a hub name "
        "(facebook/convnext-tiny-224, microsoft/resnet-50, timm/…)",
    )
    num_labels: int | None = option(None, "number of classes; default: what the data has")
    weights: str | None = option(
        None,
        "initial weights: a tag of published ones, or a file; layers that do not fit keep random weights and are named",
        metavar="TAG|PATH",
    )
    drop_path_rate: float = option(0.0, "ConvNeXt: stochastic depth")
    dropout_rate: float = option(0.0, "ConvNeXt: dropout before the classifier")
    train_data: str = option("", "class folders, a table or tar shards; required", metavar="PATH")
    validation_data: str | None = option(None, "data to validate on, read like train_data", metavar="PATH")
    output: str = option("classify-output", "folder for model.safetensors, checkpoints and history", metavar="DIR")
    label_key: str | None = option("label", "column of a table with classes")
    image_size: int | None = option(None, "image side in pixels; default: that of the named model, or 224")
    layer_decay: float | None = option(
        None,
        "factor on the learning rate from each group of layers to the group below it, in (0, 1]; default: none",
        metavar="FACTOR",
    )
    loss: str = option("cross_entropy", '"cross_entropy", "focal", or "module.function" of (targets, logits)')
    label_smoothing: float = option(0.0, "label smoothing, at least 0 and less than 1")
    focal_gamma: float = option(2.0, "γ of the focal loss")
    class_weights: list | None = option(None, "factor of the loss for each class; default: 1")
    mixup: float = option(0.0, "α of mixup's Beta distribution; 0 for none")
    cutmix: float = option(0.0, "α of CutMix's Beta distribution; 0 for none")
    crop_scale: list | None = option(
        None, "minimum and maximum fraction of an image that a crop takes; default: [0.08, 1]"
    )
    flip: float = option(0.5, "probability of a horizontal flip")
    rand_augment: bool = option(False, "RandAugment")
    random_erasing: float = option(0.0, "probability of random erasing")
    freeze_backbone: bool = option(False, "train only the classifier layer; BatchNorm runs in inference mode")
    early_stopping: int | None = option(
        None, "validations without a better accuracy after which the run ends; default: never"
    )
    architecture: dict = field(default_factory=dict)


def options_of(config: type[TrainConfig]) -> list[dataclasses.Field]:
    """Return the fields that `option` declared, required ones first."""
    fields = [f for f in dataclasses.fields(config) if "help" in f.metadata]
    required = [f for f in fields if f.default is MISSING]
    return sorted(required, key=lambda f: f.name != "model") + [f for f in fields if f.default is not MISSING]


def value_type(config_field: dataclasses.Field) -> Any:
    """Return the type of an option's value in JSON or on the command line: its annotation without Path and objects."""
    if isinstance(config_field.type, str):
        return str | None if config_field.default is None else str
    kinds = [kind for kind in typing.get_args(config_field.type) or [config_field.type] if kind is not Path]
    return functools.reduce(lambda one, other: one | other, kinds)


def describe_option(config_field: dataclasses.Field) -> str:
    """Return the help of an option, with its default."""
    text, default = config_field.metadata["help"], config_field.default
    if default in (MISSING, None, "") or isinstance(default, bool):
        return text
    return f"{text} (default {default})"


def from_open_clip(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options of contrastive training with those of OPEN_CLIP translated to ours.

    Raises:
        ValueError: one of them and our option of the same meaning are both given.
    """
    values = {name: value for name, value in options.items() if name not in OPEN_CLIP}
    given = {name: options[name] for name in OPEN_CLIP if options.get(name)}
    defaults = {f.name: f.default for f in options_of(ContrastiveConfig)}
    for name, ours in (("accum_freq", "accumulate"), ("logs", "output"), ("name", "output"), ("siglip", "loss")):
        if name in given and values.get(ours, defaults[ours]) != defaults[ours]:
            flags = (f"--{one.replace('_', '-')}" for one in (name, ours))
            raise ValueError(f"{' and '.join(flags)} mean the same; give one of them")
    if "accum_freq" in given:
        values["accumulate"] = given["accum_freq"]
        values["batch_size"] = given["accum_freq"] * values.get("batch_size", defaults["batch_size"])
    if "siglip" in given:
        values["loss"] = "siglip"
    if given.keys() & {"logs", "name"}:
        values["output"] = str(Path(given.get("logs", "logs"), given.get("name", "")))
    return values


def accepts(config: type[TrainConfig]) -> Callable[[Function], Function]:
    """Give a function of (model, train_data, **options) the signature and documentation of a config's options.

    The function raises TypeError for an unknown option and names the nearest one.
    """
    fields = options_of(config)
    kinds = inspect.Parameter
    parameters = [
        kinds(f.name, kinds.POSITIONAL_OR_KEYWORD, annotation=f.type)
        if f.default is MISSING
        else kinds(f.name, kinds.KEYWORD_ONLY, default=f.default, annotation=f.type)
        for f in fields
    ]
    names = [f.name for f in fields]
    lines = [textwrap.fill(f"{f.name}: {describe_option(f)}.", 116, subsequent_indent="    ") for f in fields]

    def decorate(function):
        @functools.wraps(function)
        def call(*arguments, **options):
            for name in options:
                if name not in names:
                    known = called_here(f"--{name.replace('_', '-')}") or called_here(name)
                    nearest = difflib.get_close_matches(name[:100], names, n=1, cutoff=0.0)[0]
                    known = f".{known}" if known else f"; nearest is {nearest!r}"
                    raise TypeError(f"{function.__name__}() has no option {name!r}{known}")
            return function(*arguments, **options)

        summary, _, rest = inspect.cleandoc(function.__doc__).partition("\n\nRaises:")
        call.__doc__ = f"{summary}\n\nArgs:\n{textwrap.indent(chr(10).join(lines), '    ')}\n\nRaises:{rest}"
        returns = inspect.signature(function).return_annotation
        setattr(call, "__signature__", inspect.Signature(parameters, return_annotation=returns))  # noqa: B010
        return call

    return decorate


# A classifier's JSON config.

KINDS = {f.name: value_type(f) for f in options_of(ClassifierConfig)}


def read_config(path: str | Path, **overrides: Any) -> ClassifierConfig:
    """Return the config in a JSON file, every key and value checked.

    Args:
        overrides: values that replace the file's; None keeps the file's value.

    Raises:
        ValueError: not a JSON object, an unknown key (the nearest is named), or a value of the wrong type.
    """
    values = read_json(path, OBJECT, max_bytes=LARGEST_CONFIG)
    values |= {name: value for name, value in overrides.items() if value is not None}
    return parse_config(values, Path(path).name)


def parse_config(values: dict[str, Any], name: str = "config") -> ClassifierConfig:
    """Return the config that a dict describes, checked; `name` is what messages call it."""
    from zoo.training.transformers_keys import translate  # needs the models' names, which the flags do not

    name = shown(name)
    allowed = {**KINDS, **{key: kind for key, (kind, _) in ARCHITECTURE.items()}}
    values = translate(values, set(allowed), name)
    for key, value in values.items():
        if key not in allowed:
            nearest = difflib.get_close_matches(key[:100], allowed, n=1, cutoff=0.0)[0]
            raise ValueError(f"{name}: unknown key {quoted(key)}; nearest is {nearest!r}")
        if not _is(value, allowed[key]):
            kind = getattr(allowed[key], "__name__", allowed[key])
            raise ValueError(f"{name}: {key} is {quoted(value)}; it must be {kind}")
    architecture = {key: values[key] for key in ARCHITECTURE if key in values}
    config = ClassifierConfig(**{k: v for k, v in values.items() if k in KINDS}, architecture=architecture)
    if config.model_type not in FAMILIES:
        raise ValueError(f"{name}: model_type is {quoted(config.model_type)}; it must be one of {', '.join(FAMILIES)}")
    for key in ("train_data", "output"):
        if not getattr(config, key):
            raise ValueError(f"{name}: {key} is missing")
    _check_ranges(config, name)
    return config


def _check_ranges(config: ClassifierConfig, name: str) -> None:
    """Raise ValueError for numbers out of range that training itself would notice late or never."""
    for key in ("num_labels", "image_size", "early_stopping"):
        value = getattr(config, key)
        if value is not None and value < 1:
            raise ValueError(f"{name}: {key} is {value}; it must be at least 1")
    if not 0 <= config.label_smoothing < 1:
        raise ValueError(f"{name}: label_smoothing is {config.label_smoothing}; it must be at least 0 and less than 1")
    for key, count in (("crop_scale", 2), ("class_weights", config.num_labels)):
        values = getattr(config, key)
        if values is None:
            continue
        if not all(_is(value, float) and 0 <= value < math.inf for value in values):
            raise ValueError(f"{name}: {key} is {quoted(values)}; it must be a list of numbers of at least 0")
        if count is not None and len(values) != count:
            raise ValueError(f"{name}: {key} has {len(values)} numbers; it must have {count}")


def _is(value: Any, kind: Any) -> bool:
    """Whether a JSON value is of a type; an int counts as a float, a bool is not a number."""
    kinds = typing.get_args(kind) or (kind,)
    if isinstance(value, bool):
        return bool in kinds
    if isinstance(value, int) and float in kinds:
        return True
    return isinstance(value, tuple(types.NoneType if kind is None else kind for kind in kinds))
