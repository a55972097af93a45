"""Masked pretraining without labels: `zoo.pretrain(…)`, and `zoo pretrain …` on the command line.

What it leaves is a plain backbone, which `create_model(weights=…)` and `zoo train classify` begin from.
"""

import functools
from pathlib import Path

import keras
import numpy as np
from PIL import Image

import convnext
from zoo.data import Augment, Batches, Dataset, open_dataset
from zoo.data.preprocess import IMAGENET_MEAN, IMAGENET_STD, PreprocessSpec
from zoo.models import registry
from zoo.training.devices import data_parallel, undivided
from zoo.training.held_out import held_out_batches
from zoo.training.loop import Outcome, Pace, train_durably
from zoo.training.optimizer import create_optimizer
from zoo.training.result import write_model
from zoo.training.setup import BAD_HELD_OUT, BAD_SAMPLES, check_rates, computing_in, prepare
from zoo.utils import report
from zoo.utils.arrays import pad_rows
from zoo.utils.files import atomic_write
from zoo.weights.describe import describe

FAMILY = "convnextv2"
IMAGE_SIZE = 224
PICTURE, REPORT = "reconstruction.png", "report.html"
SHOWN = 8  # images in the picture
LEAST_SIDE = 96  # pixels of an image in the picture, where it is smaller
GREY, GAP = 128, 4


def pretrain(
    model: "str | convnext.Variant | convnext.FCMAE",
    train_data: str | Path | Dataset,
    *,
    output: str | Path = "pretrain-output",
    image_key: str = "filepath",
    data_root: str | Path | None = None,
    batch_size: int = 32,
    epochs: int = 10,
    image_size: int | None = None,
    stem_stride: int | None = None,
    weights: str | Path | None = None,
    mask_ratio: float = 0.6,
    decoder_dim: int = 512,
    decoder_depth: int = 1,
    crop_scale: float = 0.2,
    flip: float = 0.5,
    learning_rate: float = 1e-3,
    weight_decay: float = 0.05,
    warmup_steps: int | None = None,
    clip_norm: float | None = None,
    precision: str = "float32",
    ema: float | None = None,
    validation_data: str | Path | Dataset | None = None,
    validate_every: int | None = None,
    devices: int | None = None,
    save_every: int | None = None,
    log_every: int = 10,
    max_skipped: int = 10,
    max_bad_fraction: float = 0.01,
    threads: int | None = None,
    seed: int = 0,
    resume: bool = False,
) -> Outcome:
    """Pretrains a ConvNeXt V2 on images alone and leaves its backbone as model.safetensors in the output folder.

    A run that was killed goes on with `resume=True`, and ends with the weights, bit for bit, of one that was not.

    Args:
        model: a name ("convnextv2_tiny"), a row of one's own, or a `FCMAE`, which is trained in place.
        train_data: folder of images at any depth, CSV, TSV or parquet file, tar shards, or what `zoo.data.from_arrays`
            makes of an array; labels are not looked at.
        output: folder of the backbone, reconstruction.png, report.html, checkpoints/, history.jsonl, history.csv,
            curves.png and bad_samples.jsonl.
        image_key, data_root: of a table, as in `zoo.train`.
        image_size: pixels, 224 unless given; a multiple of the patches' side.
        stem_stride: as in `create_fcmae`.
        weights: to begin from: a tag or a file, as in `create_model`.
        mask_ratio, decoder_dim, decoder_depth: as in `create_fcmae`.
        crop_scale: least share of a picture that a crop takes; 1 for no cropping.
        flip: probability of mirroring.
        learning_rate: after `warmup_steps` (a tenth of the run unless given), then along a cosine to zero.
        validation_data: as `train_data`; the loss on it, each picture under the same mask every time, is taken once an
            epoch, or every `validate_every` steps.
        others: as in `zoo.train`.

    Raises:
        ValueError: arguments that do not go together, data that cannot be used, a folder in use; all before training.

    Reference: arXiv:2301.00808, section 3.1; appendix A.1 for the recipe.
    """
    check_rates(learning_rate=learning_rate, weight_decay=weight_decay, clip_norm=clip_norm)
    pace = Pace(epochs, save_every, log_every, validate_every, max_skipped)
    columns = {"image_key": image_key, "data_root": data_root}
    dataset = open_dataset(train_data, needs="images", **columns)
    output = Path(output)
    if devices not in (None, 1) and isinstance(model, keras.Model):
        raise ValueError(f"devices={devices}: a model that is there already lies on one device; give its name")
    with data_parallel(devices, batch_size), computing_in(precision):
        keras.utils.set_random_seed(seed)
        shape = {"image_size": image_size, "stem_stride": stem_stride, "weights": weights}
        hiding = {"mask_ratio": mask_ratio, "decoder_dim": decoder_dim, "decoder_depth": decoder_depth}
        fcmae = create(model, **shape, **hiding)
        spec = preprocessing(fcmae)
        output.mkdir(parents=True, exist_ok=True)
        sources = {"bad_samples": output / BAD_SAMPLES, "max_bad_fraction": max_bad_fraction, "threads": threads}
        augment = Augment(scale=(crop_scale, 1.0), flip=flip)
        with Batches(dataset, spec, batch_size=batch_size, seed=seed, augment=augment, **sources) as batches:
            steps = epochs * batches.steps
            warmup_steps = steps // 10 if warmup_steps is None else warmup_steps
            rates = {"warmup_steps": warmup_steps, "weight_decay": weight_decay, "clip_norm": clip_norm or None}
            excluded = [fcmae.decoder.get_layer("mask_token").token]
            optimizer = create_optimizer(learning_rate, steps, excluded=excluded, **rates)
            prepare(fcmae, optimizer, precision=precision, ema=ema)
            identity = {"learning_rate": learning_rate, "epochs": epochs, **rates, "ema": ema, "precision": precision}
            identity |= {"model": describe(fcmae.encoder).arguments, "weights": weights and str(weights)}
            identity |= {key: fcmae.get_config()[key] for key in (*hiding, "normalize_target")}
            validate = None
            if validation_data is not None:
                held_out = open_dataset(validation_data, needs="images", **columns)
                sources |= {"bad_samples": output / BAD_HELD_OUT, "batch_size": batch_size, "seed": seed}
                validate = functools.partial(examine, fcmae, held_out_batches(held_out, spec, **sources))
            options = {"validate": validate, "identity": identity, "resume": resume}
            outcome = train_durably(fcmae, batches, output, pace, **options)
        with fcmae.optimizer.averaged(), undivided():
            write_model(fcmae.encoder, output, spec)
            write_report(fcmae, dataset, spec, output, outcome)
    return outcome


def create(model, *, image_size, stem_stride, weights, **options):
    """The `FCMAE` of a name, of a row, or the one that is there already."""
    shape = {"image_size": image_size, "stem_stride": stem_stride, "weights": weights}
    if isinstance(model, convnext.FCMAE):
        given = [name for name, value in shape.items() if value is not None]
        if given:
            raise ValueError(f"{', '.join(given)} shape a new model; this one is there already")
        return model
    size = image_size or IMAGE_SIZE
    arguments = {"include_top": False, "input_shape": (size, size, 3), "stem_stride": stem_stride or "auto"}
    if isinstance(model, convnext.Variant):
        if weights is not None:
            raise ValueError("weights belong to a name; load them into the `encoder` of a FCMAE of your own row")
        encoder = convnext.create_convnext_v2(model, **arguments)
    else:
        if registry.find(model).family != FAMILY:
            raise ValueError(f"{model!r} is no ConvNeXt V2, which masked pretraining is for; try 'convnextv2_tiny'")
        encoder = registry.create_model(model, weights=weights, pooling=None, **arguments)
    return convnext.FCMAE(encoder, **options)


def preprocessing(fcmae) -> PreprocessSpec:
    """That of `zoo train classify`, which comes after."""
    size = fcmae.encoder.input_shape[1]
    return PreprocessSpec(image_size=size, mean=IMAGENET_MEAN, std=IMAGENET_STD, crop_pct=0.875)


# What a run shows.


def examine(fcmae: convnext.FCMAE, batches: Batches) -> dict[str, float]:
    """{"loss"}: that of training, over all pictures of the batches.

    Their masks follow from the batches' seed alone, so that one examination differs from the next by the weights.
    """
    rng = np.random.default_rng(batches.seed)
    height, width = fcmae.grid
    total = hidden = 0.0
    for batch in batches:
        images = batch["images"]
        order = rng.random((batches.batch_size, height * width)).argsort(axis=1).argsort(axis=1)
        mask = (order >= fcmae.kept).astype(np.float32).reshape(-1, height, width)
        mask[len(images) :] = 0  # nothing is hidden in the rows that only fill the batch up
        if len(images):
            inputs = {"images": pad_rows(images, batches.batch_size), "mask": mask}
            patches = fcmae.predict(inputs, batch_size=batches.batch_size, verbose=0)["patches"]
            loss = fcmae.compute_loss(x=inputs, y_pred={"patches": patches, "mask": mask}, training=False)
            total += float(keras.ops.convert_to_numpy(loss)) * mask.sum()
            hidden += mask.sum()
    return {"loss": float(total / max(hidden, 1.0))}


def write_report(fcmae, dataset: Dataset, spec: PreprocessSpec, output: Path, outcome: Outcome) -> None:
    """reconstruction.png of the first images, and report.html around it and the curves."""
    count = min(SHOWN, len(dataset))
    with Batches(dataset, spec, batch_size=count, shuffle=False, max_bad_fraction=1.0, threads=1) as batches:
        images = batches[0]["images"]
    draw_reconstructions(output / PICTURE, fcmae, images, spec)
    tiles = {"steps": f"{outcome.step:,} of {outcome.steps:,}", "images": f"{len(dataset):,}"}
    for label, name in {"loss": "loss", "validation loss": "val_loss"}.items():
        losses = [row[name] for row in outcome.rows if row.get(name) is not None]
        tiles |= {label: f"{losses[-1]:.3f}"} if losses else {}
    caption = (
        f"{fcmae.mask_ratio:.0%} of the patches of {fcmae.patch_size}×{fcmae.patch_size} pixels are hidden. Left to "
        "right: the image, what the encoder sees, what the decoder makes of it. The visible patches on the right are "
        "the image's own, and so are the mean and the deviation of each hidden one."
    )
    blocks = [report.tiles(tiles), report.section("Reconstruction", report.figure(output / PICTURE, caption))]
    if (output / "curves.png").is_file():
        blocks.append(report.section("Training", report.figure(output / "curves.png", "Over the steps.")))
    report.write_page(output / REPORT, "Masked pretraining", *blocks)


def draw_reconstructions(path: Path, fcmae, images: np.ndarray, spec: PreprocessSpec) -> None:
    """A row an image: original | masked | reconstruction.

    Args:
        path: of the PNG.
        images: float32 (N, H, W, 3), normalised by `spec`.
    """
    mask = keras.ops.convert_to_numpy(fcmae.draw_mask(len(images)))
    side = fcmae.patch_size
    hidden = mask.repeat(side, axis=1).repeat(side, axis=2)[..., None] == 1
    columns = [_pixels(images, spec), None, _pixels(fcmae.reconstruct(images, mask), spec)]
    columns[1] = np.where(hidden, np.uint8(GREY), columns[0])
    larger = max(1, -(-LEAST_SIDE // images.shape[1]))
    frame = ((0, 0), (GAP, GAP), (GAP, GAP), (0, 0))
    framed = [np.pad(c.repeat(larger, 1).repeat(larger, 2), frame, constant_values=255) for c in columns]
    with atomic_write(path) as file:
        Image.fromarray(np.concatenate(np.concatenate(framed, axis=2))).save(file, "PNG")


def _pixels(images: np.ndarray, spec: PreprocessSpec) -> np.ndarray:
    """Normalised pixels → uint8."""
    shares = images * np.float32(spec.std) + np.float32(spec.mean)
    return np.rint(255 * shares.clip(0, 1)).astype(np.uint8)
