"""Masked pretraining without labels: `zoo.pretrain(…)`, and `zoo pretrain …` on the command line.

The result is a plain backbone, initial weights for `create_model(weights=…)` and `zoo train classify`.
"""

import functools
from pathlib import Path
from typing import Any

import keras
import numpy as np
from PIL import Image

import convnext
from zoo.data import Augment, Batches, Dataset, open_dataset
from zoo.data.preprocess import IMAGENET_MEAN, IMAGENET_STD, PreprocessSpec
from zoo.models import registry
from zoo.training import processes
from zoo.training.config import PretrainConfig, accepts
from zoo.training.devices import without_distribution
from zoo.training.loop import Outcome
from zoo.training.result import finished, write_model
from zoo.training.setup import (
    BAD_HELD_OUT,
    check_not_existing,
    check_numbers,
    check_unchanged,
    compile_with,
    fit,
    identity_of,
    sample_options,
    training_batches,
    training_scope,
    training_spec,
)
from zoo.training.validation import held_out_batches
from zoo.utils import report
from zoo.utils.arrays import pad_rows
from zoo.utils.files import atomic_write
from zoo.weights.describe import describe

FAMILY = "convnextv2"
IMAGE_SIZE = 224
DECODER = ("mask_ratio", "decoder_dim", "decoder_depth")  # options of `FCMAE`
FIGURE, REPORT = "reconstruction.png", "report.html"
FIGURE_IMAGES = 8
MIN_SIDE = 96  # pixels; smaller images are enlarged in the figure
GREY, GAP = 128, 4


@accepts(PretrainConfig)
def pretrain(
    model: "str | convnext.Variant | convnext.FCMAE", train_data: str | Path | Dataset, **options: Any
) -> Outcome:
    """Pretrain a ConvNeXt V2 on images alone and write its backbone to model.safetensors in the output folder.

    Labels and captions are ignored; a folder may have any depth. The output folder also holds reconstruction.png,
    report.html, checkpoints/, history.jsonl, history.csv, curves.png and bad_samples.jsonl. Validation data adds the
    loss on other images, each with the same mask every time. A run that was killed and continues with `resume=True`
    ends with bit for bit the same weights.

    Reference: arXiv:2301.00808, section 3.1; appendix A.1 for the recipe.

    Raises:
        TypeError: an unknown option.
        ValueError: options that contradict each other, unusable data, or an output folder in use; before training.
    """
    config = PretrainConfig(model=model, train_data=train_data, **options)
    check_numbers(config)
    with processes.joined(config):
        return _pretrain(config)


def _pretrain(config: PretrainConfig) -> Outcome:
    columns: dict[str, Any] = {"image_key": config.image_key, "data_root": config.data_root}
    dataset = open_dataset(config.train_data, needs="images", **columns)
    output = Path(config.output)
    check_not_existing(config, config.model)
    with training_scope(config, config.resume):
        fcmae = create(config)
        spec = training_spec(preprocessing(fcmae), output)
        augment = Augment(scale=(config.crop_scale, 1.0), flip=config.flip)
        with training_batches(config, dataset, spec, augment=augment) as batches:
            excluded = [fcmae.decoder.get_layer("mask_token").token]
            rates = compile_with(config, fcmae, config.epochs * batches.steps, excluded=excluded)
            validate = None
            if config.validation_data is not None:
                images = open_dataset(config.validation_data, needs="images", **columns)
                samples = sample_options(config, BAD_HELD_OUT) | {"seed": config.seed}
                held_out = held_out_batches(images, spec, batch_size=config.batch_size, **samples)
                validate = functools.partial(evaluate, fcmae, held_out)
            options: dict[str, Any] = {"identity": _identity(config, rates, fcmae), "resume": config.resume}
            outcome = fit(config, fcmae, batches, rates, validate=validate, **options)
        with fcmae.optimizer.averaged(), without_distribution():
            path = write_model(fcmae.encoder, output, spec)
            # Every process computes the images, because the weights are on all of them.
            write_report(fcmae, dataset, spec, processes.own_folder(output), outcome)
    return finished(outcome, path, f"zoo train classify --config CONFIG --weights {path}")


def _identity(config: PretrainConfig, rates: dict[str, Any], fcmae: convnext.FCMAE) -> dict[str, Any]:
    """Return what must be the same for a checkpoint to be resumed. Earlier checkpoints hold these keys too."""
    identity = identity_of(config, rates) | {"model": describe(fcmae.encoder).arguments}
    return identity | {key: fcmae.get_config()[key] for key in (*DECODER, "normalize_target")}


def create(config: PretrainConfig) -> convnext.FCMAE:
    """Return the `FCMAE` to train: a new one by name or row, or the existing one."""
    model, weights = config.model, config.weights
    shape = {"image_size": config.image_size, "stem_stride": config.stem_stride, "weights": weights}
    if isinstance(model, convnext.FCMAE):
        check_unchanged(shape)
        return model
    size = config.image_size or IMAGE_SIZE
    arguments: dict[str, Any] = {
        "include_top": False,
        "input_shape": (size, size, 3),
        "stem_stride": config.stem_stride or "auto",
        "downsample_strides": 2,
    }
    if isinstance(model, convnext.Variant):
        if weights is not None:
            raise ValueError("weights need a model's name; load them into the `encoder` of a FCMAE built from the row")
        encoder = convnext.create_convnext_v2(model, **arguments)
    else:
        if registry.find(model).family != FAMILY:
            raise ValueError(f"{model!r} is not a ConvNeXt V2, which masked pretraining needs; try 'convnextv2_tiny'")
        encoder = registry.create_model(model, weights=weights, pooling=None, **arguments)
    return convnext.FCMAE(encoder, **{name: getattr(config, name) for name in DECODER})


def preprocessing(fcmae) -> PreprocessSpec:
    """Return the preprocessing of `zoo train classify`, for which the backbone is trained."""
    size = fcmae.encoder.input_shape[1]
    return PreprocessSpec(image_size=size, mean=IMAGENET_MEAN, std=IMAGENET_STD, crop_pct=0.875)


# Validation and the report.


def evaluate(fcmae: convnext.FCMAE, batches: Batches) -> dict[str, float]:
    """Return {"loss"}: the training loss over all images of the batches.

    The masks depend only on the batches' seed, so two evaluations differ only by the weights.
    """
    rng = np.random.default_rng(batches.seed)
    height, width = fcmae.grid
    total = hidden = 0.0
    for batch in batches:
        images = batch["images"]
        order = rng.random((batches.batch_size, height * width)).argsort(axis=1).argsort(axis=1)
        mask = (order >= fcmae.kept).astype(np.float32).reshape(-1, height, width)
        mask[len(images) :] = 0  # the padding rows have nothing to reconstruct
        if len(images):
            inputs = {"images": pad_rows(images, batches.batch_size), "mask": mask}
            patches = fcmae.predict(inputs, batch_size=batches.batch_size, verbose=0)["patches"]
            loss = fcmae.compute_loss(x=inputs, y_pred={"patches": patches, "mask": mask}, training=False)
            total += float(keras.ops.convert_to_numpy(loss)) * mask.sum()
            hidden += mask.sum()
    return {"loss": float(total / max(hidden, 1.0))}


def write_report(fcmae, dataset: Dataset, spec: PreprocessSpec, output: Path, outcome: Outcome) -> None:
    """Write reconstruction.png of the first images, and report.html with it and the curves."""
    count = min(FIGURE_IMAGES, len(dataset))
    with Batches(dataset, spec, batch_size=count, shuffle=False, max_bad_fraction=1.0, threads=1) as batches:
        images = batches[0]["images"]
    draw_reconstructions(output / FIGURE, fcmae, images, spec)
    tiles = {"steps": f"{outcome.step:,} of {outcome.steps:,}", "images": f"{len(dataset):,}"}
    for label, name in {"loss": "loss", "validation loss": "val_loss"}.items():
        losses = [row[name] for row in outcome.rows if row.get(name) is not None]
        tiles |= {label: f"{losses[-1]:.3f}"} if losses else {}
    caption = (
        f"{fcmae.mask_ratio:.0%} of the patches of {fcmae.patch_size}×{fcmae.patch_size} pixels are hidden. Left to "
        "right: the image, the encoder's input, the decoder's reconstruction. On the right, visible patches are copied "
        "from the image, and so are the mean and standard deviation of hidden ones."
    )
    blocks = [report.tiles(tiles), report.section("Reconstruction", report.figure(output / FIGURE, caption))]
    if (output / "curves.png").is_file():
        blocks.append(report.section("Training", report.figure(output / "curves.png", "Over the steps.")))
    report.write_page(output / REPORT, "Masked pretraining", *blocks)


def draw_reconstructions(path: Path, fcmae, images: np.ndarray, spec: PreprocessSpec) -> None:
    """Write a PNG with one row per image: original | masked | reconstruction.

    Args:
        path: path of the PNG.
        images: float32 (N, H, W, 3), normalised by `spec`.
    """
    mask = keras.ops.convert_to_numpy(fcmae.draw_mask(len(images)))
    side = fcmae.patch_size
    hidden = mask.repeat(side, axis=1).repeat(side, axis=2)[..., None] == 1
    original = _pixels(images, spec)
    columns = [original, np.where(hidden, np.uint8(GREY), original), _pixels(fcmae.reconstruct(images, mask), spec)]
    larger = max(1, -(-MIN_SIDE // images.shape[1]))
    frame = ((0, 0), (GAP, GAP), (GAP, GAP), (0, 0))
    framed = [np.pad(c.repeat(larger, 1).repeat(larger, 2), frame, constant_values=255) for c in columns]
    with atomic_write(path) as file:
        Image.fromarray(np.concatenate(np.concatenate(framed, axis=2))).save(file, "PNG")


def _pixels(images: np.ndarray, spec: PreprocessSpec) -> np.ndarray:
    """Return normalised images as uint8."""
    pixels = images * np.asarray(spec.std, np.float32) + np.asarray(spec.mean, np.float32)
    return np.rint(255 * pixels.clip(0, 1)).astype(np.uint8)
