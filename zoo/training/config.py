"""The JSON configuration of a classifier's training: keys, their kinds, and the architecture that they describe.

The architecture's keys are transformers': `model_type`, `hidden_sizes`, `depths`, … They become a row of the tables,
or change the row that `model` names.
"""

import dataclasses
import difflib
import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path

from zoo.models.names import Entry, find
from zoo.weights.schema import RESNET
from zoo.weights.sources import transformers

ARCHITECTURE = {  # key: kind
    **{"num_channels": int, "patch_size": int, "num_stages": int, "embedding_size": int},
    **{"hidden_sizes": list, "depths": list, "hidden_act": str, "layer_type": str},
    **{"layer_scale_init_value": float, "layer_norm_eps": float},
    **{"downsample_in_first_stage": bool, "downsample_in_bottleneck": bool},
}
FAMILIES = (RESNET, "convnext", "convnextv2")
HUB_NAME = re.compile(
    r"(?:[\w.-]+/)?(resnet|convnextv2|convnext)-(\w+?)(?:-(22k|1k))?(?:-(\d+))?(?:-(22k|1k))*(?:-ft)?"
)
EXPANSION = {"basic": 1, "bottleneck": 4}  # of a ResNet block's channels


@dataclass(frozen=True)
class ClassifierConfig:
    """What the JSON file may say beside the architecture; a key that is not here is refused.

    Args:
        model_type: "resnet", "convnext" or "convnextv2".
        model: a name of the zoo ("convnextv2_tiny"), or of a hub ("facebook/convnext-tiny-224"). Published weights may
            follow after a dot, as everywhere in the zoo ("convnextv2_tiny.fcmae"); `weights` counts more.
        num_labels: K; what the data has unless given.
        weights: to begin from: a file, as in `load_weights`, or the tag of published ones of `model`. Layers that do
            not fit stay new, and are named.
        train_data, validation_data: class folders, tar shards, or a table with `image_key` and `label_key`.
        image_size: pixels; what the model's name says, or 224.
        warmup_steps: a tenth of the run unless given.
        layer_decay: in (0, 1]: what each group of layers has of the learning rate of the one above it.
        loss: "cross_entropy", "focal", or "module.function" of (targets (B, K), logits (B, K)) → (B,) or ().
        class_weights: K factors of the loss.
        mixup, cutmix: α of their Beta distributions; 0 for none.
        crop_scale: least and greatest share of a picture that a crop takes; [0.08, 1] unless given.
        flip: probability of mirroring.
        rand_augment: operations on colours and shape.
        random_erasing: probability.
        freeze_backbone: train the classifier alone; BatchNorm then runs as in inference.
        early_stopping: validations without a better accuracy after which the run ends.
        others: as in `zoo.train`.
    """

    model_type: str = RESNET
    model: str | None = None
    num_labels: int | None = None
    weights: str | None = None
    stem_stride: int | None = None
    drop_path_rate: float = 0.0
    dropout_rate: float = 0.0
    train_data: str = ""
    validation_data: str | None = None
    image_key: str = "filepath"
    label_key: str | None = "label"
    data_root: str | None = None
    output: str = "classify-output"
    batch_size: int = 32
    epochs: int = 10
    image_size: int | None = None
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    warmup_steps: int | None = None
    layer_decay: float | None = None
    clip_norm: float | None = None
    precision: str = "float32"
    ema: float | None = None
    loss: str = "cross_entropy"
    label_smoothing: float = 0.0
    focal_gamma: float = 2.0
    class_weights: list | None = None
    mixup: float = 0.0
    cutmix: float = 0.0
    crop_scale: list | None = None
    flip: float = 0.5
    rand_augment: bool = False
    random_erasing: float = 0.0
    freeze_backbone: bool = False
    early_stopping: int | None = None
    devices: int | None = None
    save_every: int | None = None
    validate_every: int | None = None
    log_every: int = 10
    max_skipped: int = 10
    max_bad_fraction: float = 0.01
    threads: int | None = None
    seed: int = 0
    architecture: dict = field(default_factory=dict)


KINDS = {f.name: f.type for f in dataclasses.fields(ClassifierConfig) if f.name != "architecture"}


def read_config(path: str | Path, **overrides) -> ClassifierConfig:
    """The configuration in a JSON file, every key and value checked.

    Args:
        overrides: values that count more than the file's; None for those that do not.

    Raises:
        ValueError: not a JSON object, an unknown key (the nearest is named), or a value of another kind.
    """
    path = Path(path)
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds {type(values).__name__}; a configuration is a JSON object")
    values |= {name: value for name, value in overrides.items() if value is not None}
    return parse_config(values, path.name)


def parse_config(values: dict, name: str = "config") -> ClassifierConfig:
    """A configuration from a dict, checked; `name` is what messages call it."""
    allowed = {**KINDS, **ARCHITECTURE}
    for key, value in values.items():
        if key not in allowed:
            nearest = difflib.get_close_matches(key, allowed, n=1, cutoff=0.0)[0]
            raise ValueError(f"{name}: unknown key {key!r}; nearest is {nearest!r}")
        if not _is(value, allowed[key]):
            kind = getattr(allowed[key], "__name__", allowed[key])
            raise ValueError(f"{name}: {key} is {value!r}; it must be {kind}")
    architecture = {key: values[key] for key in ARCHITECTURE if key in values}
    config = ClassifierConfig(**{k: v for k, v in values.items() if k in KINDS}, architecture=architecture)
    if config.model_type not in FAMILIES:
        raise ValueError(f"{name}: model_type is {config.model_type!r}; it must be one of {', '.join(FAMILIES)}")
    for key in ("train_data", "output"):
        if not getattr(config, key):
            raise ValueError(f"{name}: {key} is missing")
    _check_ranges(config, name)
    return config


def _check_ranges(config: ClassifierConfig, name: str) -> None:
    """ValueError for numbers that only the first step, or nothing, would stumble over."""
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
            raise ValueError(f"{name}: {key} is {values}; it must be a list of numbers of at least 0")
        if count is not None and len(values) != count:
            raise ValueError(f"{name}: {key} has {len(values)} numbers; it must have {count}")


def _is(value, kind) -> bool:
    if kind is float:
        kind = int | float
    elif kind == float | None:
        kind = int | float | None
    return isinstance(value, kind) and (not isinstance(value, bool) or kind in (bool, bool | None))


def describe_model(config: ClassifierConfig) -> tuple[str | dict, int | None, dict]:
    """(row's name or its fields, image size that the name says, further arguments of the family's builder).

    Raises:
        ValueError: the name is of another family than `model_type`, or the architecture is none of ours.
    """
    entry, size = named_model(config)
    values = {"model_type": config.model_type, **_row_values(entry), **config.architecture}
    stages = values.pop("num_stages", None)
    if stages is not None and stages != len(values.get("depths", range(4))):
        raise ValueError(f"num_stages is {stages}, depths are {values.get('depths', 'four')}; there must be as many")
    arguments = transformers.read_config(values, "the configuration", lambda _: None).arguments
    kept = {key: value for key, value in arguments.items() if key == "layer_scale_init_value"}
    return arguments["variant"], size, {"channels": arguments["input_shape"][-1], **kept}


def named_model(config: ClassifierConfig) -> tuple[Entry | None, int | None]:
    """(entry of the zoo that `model` names, image size in the name); None for what it does not say."""
    if config.model is None:
        return None, None
    match = HUB_NAME.fullmatch(config.model)
    if match:
        joint = "" if match[1] == RESNET else "_"
        entry, size = find(f"{match[1]}{joint}{match[2]}"), match[4] and int(match[4])
    else:
        entry, size = find(config.model.removeprefix("timm/")), None
    if entry.family != config.model_type:
        raise ValueError(f"model {config.model!r} is a {entry.family}; model_type says {config.model_type!r}")
    return entry, size


def _row_values(entry: Entry | None) -> dict:
    """A row of the tables in transformers' words."""
    import convnext

    if entry is None:
        return {}
    family, row = entry.family, convnext.TABLES[entry.family][entry.label]
    values = {"depths": list(row.depths), "hidden_sizes": list(row.dims), "hidden_act": row.activation}
    if family != RESNET:
        return {**values, "patch_size": row.patch_size}
    sizes = [size * EXPANSION[row.block] for size in row.dims]
    return {**values, "hidden_sizes": sizes, "layer_type": row.block, "embedding_size": row.stem_dim}
