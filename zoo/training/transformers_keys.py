"""Keys of transformers' training arguments and processors in a classifier's JSON config, as ours of the same meaning.

A key whose value is what our training does anyway is accepted and dropped; any other value is refused with what ours
does. Keys of an architecture (`hidden_sizes`, `depths`, …) are `zoo.training.config.ARCHITECTURE`.
"""

import re
from collections.abc import Callable
from typing import Any

from zoo.data.preprocess import IMAGENET_MEAN, IMAGENET_STD
from zoo.utils.text import quoted

RENAMED = {  # their key → ours
    **dict.fromkeys(("num_train_epochs", "num_epochs"), "epochs"),
    **dict.fromkeys(("per_device_train_batch_size", "train_batch_size"), "batch_size"),
    **{"output_dir": "output", "dataloader_num_workers": "threads", "num_classes": "num_labels"},
    **{"save_steps": "save_every", "eval_steps": "validate_every", "logging_steps": "log_every"},
    **{"max_grad_norm": "clip_norm", "label_smoothing_factor": "label_smoothing", "classifier_dropout": "dropout_rate"},
    **dict.fromkeys(("train_dir", "train_file"), "train_data"),
    **dict.fromkeys(("validation_dir", "validation_file"), "validation_data"),
    **dict.fromkeys(("model_name_or_path", "pretrained_model_name_or_path"), "model"),
    **{"image_column_name": "image_key", "label_column_name": "label_key", "early_stopping_patience": "early_stopping"},
    **dict.fromkeys(("size", "crop_size"), "image_size"),
}


def _close(expected: Any) -> Callable[[Any], bool]:
    """Whether a value is a number, or a list of numbers, equal to the expected within a millionth."""

    def check(value: Any) -> bool:
        values, wanted = (x if isinstance(x, list | tuple) else [x] for x in (value, expected))
        numbers = all(isinstance(x, int | float) and not isinstance(x, bool) for x in values)
        return (
            numbers
            and len(values) == len(wanted)
            and all(abs(a - b) < 1e-6 for a, b in zip(values, wanted, strict=True))
        )

    return check


def _is(*allowed: Any) -> Callable[[Any], bool]:
    return lambda value: value in allowed


FIXED: dict[str, tuple[Callable[[Any], bool], str]] = {  # their key → (is it what ours does?, what ours does)
    "image_mean": (_close(IMAGENET_MEAN), f"images are normalised with ImageNet's mean, {list(IMAGENET_MEAN)}"),
    "image_std": (_close(IMAGENET_STD), f"images are normalised with ImageNet's deviation, {list(IMAGENET_STD)}"),
    "crop_pct": (_close(0.875), "validation crops 0.875 of the resized image"),
    "rescale_factor": (_close(1 / 255), "pixels are divided by 255"),
    "resample": (_is(3), "images are resized with the bicubic filter, 3"),
    **dict.fromkeys(
        ("do_resize", "do_rescale", "do_normalize", "do_center_crop", "do_convert_rgb", "do_train", "do_eval"),
        (_is(True), "every image is resized, cropped, divided by 255 and normalised"),
    ),
    "lr_scheduler_type": (_is("cosine"), "the learning rate follows a cosine"),
    "optim": (lambda value: str(value).startswith("adamw"), "the optimizer is AdamW"),
    "warmup_ratio": (_close(0.1), "give warmup_steps; the default is a tenth of the run"),
    "gradient_accumulation_steps": (_is(1), "a batch is one step; give batch_size"),
    "per_device_eval_batch_size": (lambda _: False, "validation uses batch_size"),
    "problem_type": (_is("single_label_classification", None), "each image has one class"),
    "initializer_range": (_close(0.02), "weights start with a deviation of 0.02"),
    "load_best_model_at_end": (_is(False), "the last weights are written; ema and early_stopping are near in meaning"),
    "resume_from_checkpoint": (_is(None, False), "give --resume on the command line"),
    "push_to_hub": (_is(False), "models are written to output"),
    "remove_unused_columns": (_is(True, False), ""),
    **dict.fromkeys(
        ("eval_strategy", "evaluation_strategy", "save_strategy", "logging_strategy"),
        (_is("epoch", "steps", "no"), "give validate_every, save_every or log_every; the default is every epoch"),
    ),
}
IGNORED = {  # facts about a file of transformers that mean nothing for training
    *("architectures", "transformers_version", "torch_dtype", "dtype", "_name_or_path", "processor_class"),
    *("image_processor_type", "feature_extractor_type", "out_features", "out_indices", "stage_names", "use_cache"),
    *("overwrite_output_dir", "report_to"),
}
PRECISIONS = {"fp16": "float16", "bf16": "bfloat16"}
PRETRAINED = ("use_pretrained", "pretrained")
HUB_NAME = re.compile(
    r"(?:[\w.-]+/)?(resnet|convnextv2|convnext)-(\w+?)(?:-(22k|1k))?(?:-(\d+))?(?:-(22k|1k))*(?:-ft)?"
)


def translate(values: dict[str, Any], allowed: set[str], name: str) -> dict[str, Any]:
    """Return a config with transformers' keys replaced by ours.

    Args:
        values: the config; keys in `allowed` stay as they are.
        allowed: our keys.
        name: what messages call the config.

    Raises:
        ValueError: a value that our training does not have, or two keys of one meaning with different values.
    """
    ours = {key: value for key, value in values.items() if key in allowed}
    for key, value in values.items():
        if key in allowed or key in IGNORED:
            continue
        if key in FIXED:
            is_same, meaning = FIXED[key]
            if not is_same(value):
                raise ValueError(f"{name}: {key} is {quoted(value, 80)}; here {meaning}")
        else:
            _add(ours, key, value, name)
    if "model_type" not in ours and isinstance(match := HUB_NAME.fullmatch(str(ours.get("model"))), re.Match):
        ours["model_type"] = match[1]  # as from_pretrained, which needs the name alone
    return ours


def _add(ours: dict[str, Any], key: str, value: Any, name: str) -> None:
    """Add one key in our form; an unknown one as it is."""
    target = key
    if key in PRECISIONS:
        if value is not True:
            return
        target, value = "precision", PRECISIONS[key]
    elif key in ("id2label", "label2id") and isinstance(value, dict):
        target, value = "num_labels", len(value)
    elif key in PRETRAINED:
        if value is not True:
            return
        target, value = "weights", published_weights(ours.get("model"), name, key)
    elif key in RENAMED:
        target, value = RENAMED[key], _value(RENAMED[key], value)
        if target == "threads" and value == 0:  # no further processes
            return
    if target in ours and ours[target] != value:
        both = f"{quoted(value, 80)} and {quoted(ours[target], 80)}"
        raise ValueError(f"{name}: {key} and {target} mean the same, and are {both}")
    ours[target] = value


def _value(key: str, value: Any) -> Any:
    """Return a value in the form of our key: {"shortest_edge": 224} as 224, 3.0 epochs as 3."""
    if key == "image_size" and isinstance(value, dict):
        sides = list(value.values())
        value = sides[0] if sides and all(side == sides[0] for side in sides) else value
    return int(value) if isinstance(value, float) and value.is_integer() and key != "clip_norm" else value


def published_weights(model: Any, name: str, key: str) -> str:
    """Return `weights` for a model's own published weights: the repository of a hub name, else the first tag."""
    from zoo.models.names import find
    from zoo.weights.published import tags

    if not isinstance(model, str):
        raise ValueError(f"{name}: {key} needs model, the name whose published weights are wanted")
    if "/" in model and not model.startswith("timm/"):
        return f"hf-hub:{model}"
    entry = find(model.removeprefix("timm/"))
    known = [entry.tag] if entry.tag else list(tags(entry.name))
    if not known:
        raise ValueError(f"{name}: {key} is true, but no weights of {entry.name} are published; give a file as weights")
    return known[0]
