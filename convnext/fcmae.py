"""Masked pretraining of ConvNeXt V2 (FCMAE): most patches of an image are hidden and predicted from the rest.

Paper: "ConvNeXt V2: Co-designing and Scaling ConvNets with Masked Autoencoders", arXiv:2301.00808, section 3.1. The
code is Apache-2.0.

The encoder is the plain backbone of `create_convnext_v2(include_top=False)`; pretraining runs its layers and applies
the mask between them. The paper computes only the visible positions, with sparse convolutions. Here every position is
computed, and hidden ones are set to zero wherever other positions read them: before the depthwise convolution, where
zero equals padding, and before GRN, whose sums it leaves unchanged. The visible positions therefore equal those of the
sparse encoder.

Two differences from the authors' code. Their sparse GRN sums over the visible positions of the whole batch; this one
sums per sample, as the paper and their dense GRN do. The pixels are also hidden before the stem, because patches
overlap when the stem stride is below the patch size.

In a mask, 0 keeps a patch and 1 hides it.
"""

import functools
from collections.abc import Callable
from typing import Any

import keras
from keras import layers, ops

from convnext.functional import Functional, build_optimizer, changed_by_call, follow_remat_scope, recomputed
from convnext.layers import PACKAGE, Dense, Normal, at_least_float32
from convnext.model import INIT_STDDEV, Shape, block, create_convnext_v2, layers_by_name, resolve_variant
from convnext.variants import Variant

HIDDEN_AFTER = ("stem_norm", "downsample_conv", "pwconv1", "pwconv2")  # name suffixes; other layers are pointwise
PIXEL_EPSILON = 1e-6  # added to the variance of a patch


def create_fcmae(
    variant: str | Variant = "tiny",
    input_shape: Shape = (224, 224, 3),
    *,
    mask_ratio: float = 0.6,
    stem_stride: int | str = "auto",
    decoder_dim: int = 512,
    decoder_depth: int = 1,
    normalize_target: bool = True,
    drop_path_rate: float = 0.0,
    seed: int | None = None,
    name: str | None = None,
) -> "FCMAE":
    """Build a ConvNeXt V2 backbone for masked pretraining: `compile(optimizer)`, then `fit(images)`.

    Args:
        variant: as in `create_convnext_v2`.
        input_shape: (H, W, C); H and W are multiples of the patch side, which is the backbone's total stride: 32 for
            four stages at stem stride 4, 8 at stem stride 1.
        mask_ratio: fraction of the patches that is hidden, in [0, 1).
        stem_stride, drop_path_rate: as in `create_convnext_v2`.
        decoder_dim, decoder_depth: channels and blocks of the decoder.
        normalize_target: predict each patch normalised by its mean and standard deviation; otherwise the pixels.
        seed: seed of the masks; None draws one from Python's generator, which `keras.utils.set_random_seed` seeds.
        name: name of the model; "fcmae_tiny" for the row "tiny".

    Returns:
        An `FCMAE`; its `encoder` is the backbone, (B, H, W, C) → (B, h, w, D).

    Raises:
        ValueError: an unknown variant or option, or an input_shape that is not a whole number of patches, or too few.

    Reference: arXiv:2301.00808, section 3.1.
    """
    options: dict[str, Any] = {"include_top": False, "stem_stride": stem_stride, "drop_path_rate": drop_path_rate}
    options["downsample_strides"] = 2  # a patch is the total stride; windows that overlap would mix patches
    encoder = create_convnext_v2(variant, input_shape=input_shape, **options)
    return FCMAE(
        encoder,
        mask_ratio=mask_ratio,
        decoder_dim=decoder_dim,
        decoder_depth=decoder_depth,
        normalize_target=normalize_target,
        seed=seed,
        name=name or f"fcmae_{resolve_variant('convnextv2', variant)[1]}",
    )


@keras.saving.register_keras_serializable(PACKAGE)
class FCMAE(keras.Model):
    """A backbone that learns to predict the hidden patches of an image from the visible ones.

    Args:
        encoder: from `create_convnext_v2(include_top=False)`: images (H, W, C) to maps (h, w, D).
        others: as in `create_fcmae`.

    Call it on images (B, H, W, C), or on {"images", "mask"} with a mask (B, h, w) of 0 (keep) and 1 (hide). It returns
    {"patches": float32 (B, h, w, P), "mask": (B, h, w)}: the decoder's prediction of every patch, P = p · p · C values
    in the order rows, columns, channels. Without a mask in the batch each call draws a new one.

    `fit` takes the same inputs, without targets; the loss is `masked_loss`.

    Reference: arXiv:2301.00808, section 3.1.
    """

    def __init__(
        self,
        encoder: keras.Model,
        *,
        mask_ratio: float = 0.6,
        decoder_dim: int = 512,
        decoder_depth: int = 1,
        normalize_target: bool = True,
        seed: int | None = None,
        name: str = "fcmae",
    ):
        super().__init__(name=name)
        self.patch_size, self.grid = _patch_grid(encoder)
        self.kept = _count_kept(self.grid, mask_ratio, self.patch_size)
        self.mask_ratio, self.normalize_target = mask_ratio, normalize_target
        self.decoder_dim, self.decoder_depth, self.seed = decoder_dim, decoder_depth, seed
        self.encoder = encoder
        outputs = self.patch_size**2 * encoder.input_shape[-1]
        self.decoder = _create_decoder(encoder.output_shape[1:], outputs, dim=decoder_dim, depth=decoder_depth)
        self.seed_generator = keras.random.SeedGenerator(seed)
        self.built = True
        follow_remat_scope(self)

    def call(self, inputs, training=None):
        batch = inputs if isinstance(inputs, dict) else {"images": inputs}
        images, mask = batch["images"], batch.get("mask")
        mask = self.draw_mask(ops.shape(images)[0]) if mask is None else ops.cast(mask, "float32")
        in_blocks = training is True and getattr(self.encoder, "checkpoint_activations", False)
        features = encode_visible(self.encoder, images, mask, in_blocks)
        return {"patches": self.decoder([features, mask]), "mask": mask}

    def draw_mask(self, count):
        """Return float32 (count, h, w): the same number of 0 (keep) and 1 (hide) per sample, at random positions."""
        height, width = self.grid
        noise = keras.random.uniform((count, height * width), dtype="float32", seed=self.seed_generator)
        places = ops.argsort(ops.argsort(noise, axis=1), axis=1)
        return ops.reshape(ops.cast(places >= self.kept, "float32"), (count, height, width))

    def make_train_function(self, force=False):
        build_optimizer(self)
        return super().make_train_function(force)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):  # noqa: ARG002
        if y is not None or sample_weight is not None:
            raise ValueError("FCMAE trains on images only: pass x, without y or sample_weight.")
        target = split_patches(x["images"] if isinstance(x, dict) else x, self.patch_size)
        target = normalize_patches(target)[0] if self.normalize_target else target
        return masked_loss(target, y_pred["patches"], y_pred["mask"])

    def reconstruct(self, images, mask):
        """Return images (B, H, W, C) whose hidden patches, by a mask (B, h, w), are the decoder's predictions.

        A normalised target does not contain a patch's mean and deviation; the image's own are used.
        """
        outputs = self.predict({"images": images, "mask": mask}, verbose=0)
        patches, own = ops.array(outputs["patches"]), split_patches(images, self.patch_size)
        if self.normalize_target:
            _, mean, deviation = normalize_patches(own)
            patches = patches * deviation + mean
        hidden = ops.array(outputs["mask"])[..., None]
        return ops.convert_to_numpy(join_patches(hidden * patches + (1 - hidden) * own, self.patch_size))

    def get_config(self):
        return {
            "encoder": keras.saving.serialize_keras_object(self.encoder),
            "mask_ratio": self.mask_ratio,
            "decoder_dim": self.decoder_dim,
            "decoder_depth": self.decoder_depth,
            "normalize_target": self.normalize_target,
            "seed": self.seed,
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        encoder = keras.saving.deserialize_keras_object(config["encoder"], custom_objects=custom_objects)
        return cls(**{**config, "encoder": encoder})


def _patch_grid(encoder):
    """Return (p, (h, w)): the patch side, which is the encoder's total stride, and the patches per image.

    Raises:
        ValueError: the encoder's input size is not fixed, or not a whole number of patches.
    """
    stages = sum(layer.name.endswith("downsample_conv") for layer in encoder.layers) + 1
    patch_size = layers_by_name(encoder)["stem_conv"].strides[0] * 2 ** (stages - 1)
    height, width = encoder.input_shape[1:3]
    if None in (height, width) or height % patch_size or width % patch_size:
        raise ValueError(
            f"input_shape={encoder.input_shape[1:]}; height and width must be multiples of the patch side, "
            f"the backbone's total stride of {patch_size}."
        )
    return patch_size, (height // patch_size, width // patch_size)


def _count_kept(grid, mask_ratio, patch_size):
    """Return how many of an image's patches stay visible; ValueError if none would, or none would be hidden."""
    if not 0.0 <= mask_ratio < 1.0:
        raise ValueError(f"mask_ratio must be in [0, 1), got {mask_ratio!r}.")
    count = grid[0] * grid[1]
    kept = int(count * (1 - mask_ratio))
    if not kept or (kept == count and mask_ratio):
        raise ValueError(
            f"mask_ratio={mask_ratio} of {count} patches of {patch_size}×{patch_size} pixels leaves {kept} visible; "
            "use larger images or a smaller stem_stride."
        )
    return kept


def encode_visible(encoder, images, mask, in_blocks=False):
    """Return the encoder's last map computed from the visible patches; zero where a patch is hidden.

    Args:
        encoder: from `create_convnext_v2(include_top=False)`.
        images: (B, H, W, C).
        mask: (B, h, w), 0 (keep) and 1 (hide).
        in_blocks: whether each block is computed again in the backward pass, see `checkpoint_activations`.

    Returns:
        (B, h, w, D).
    """
    scales = {layer.output.shape[1] // mask.shape[1] for layer in encoder.layers}  # patch sides in map positions
    visible = {side: ops.repeat(ops.repeat(1.0 - mask[..., None], side, axis=1), side, axis=2) for side in scales}

    def hide(x):
        return x * ops.cast(visible[x.shape[1] // mask.shape[1]], x.dtype)

    def run(group, x):
        shortcut = x
        for layer in group:
            if layer.name.endswith("_dwconv"):
                shortcut = x
            x = layer([shortcut, x] if layer.name.endswith("_out") else x)
            if layer.name.endswith(HIDDEN_AFTER):
                x = hide(x)
        return (x,)

    x = hide(images)
    for group in _residual_blocks(encoder.layers[1:]):
        compute: Callable[..., tuple] = functools.partial(run, group)
        if in_blocks:
            compute = recomputed(compute, changed_by_call(v for layer in group for v in layer.non_trainable_variables))
        (x,) = compute(x)
    return x


def _residual_blocks(layers):
    """Yield the layers up to and including each sum of a block."""
    group = []
    for layer in layers:
        group.append(layer)
        if layer.name.endswith("_out"):
            yield group
            group = []
    if group:
        yield group


def _create_decoder(shape, outputs, *, dim, depth):
    """[(B, h, w, D) features, (B, h, w) mask] → float32 (B, h, w, outputs): mask token, blocks, prediction."""
    features, mask = keras.Input(shape, name="features"), keras.Input(shape[:2], name="mask")
    x = Dense(dim, kernel_initializer=Normal(INIT_STDDEV), name="proj")(features)
    x = MaskToken(name="mask_token")([x, mask])
    row = Variant((depth,), (dim,))
    for number in range(depth):
        x = block(
            x, row, use_grn=True, layer_scale_init_value=None, drop_path_rate=0.0, name=f"decoder_blocks_{number}"
        )
    dtype = at_least_float32(keras.config.dtype_policy().compute_dtype)
    patches = Dense(outputs, kernel_initializer=Normal(INIT_STDDEV), dtype=dtype, name="pred")(x)
    return Functional([features, mask], patches, name="decoder")


@keras.saving.register_keras_serializable(PACKAGE)
class MaskToken(layers.Layer):
    """Replaces hidden positions by one learned vector: [(B, h, w, C), (B, h, w) mask] → (B, h, w, C).

    Weight: token (C,).
    """

    def build(self, input_shape):
        self.token = self.add_weight(shape=(input_shape[0][-1],), initializer=Normal(INIT_STDDEV), name="token")

    def call(self, inputs):
        features, mask = inputs
        hidden = ops.cast(mask, features.dtype)[..., None]
        return features * (1 - hidden) + ops.cast(self.token, features.dtype) * hidden

    def compute_output_shape(self, input_shape):
        return input_shape[0]


def split_patches(images, patch_size):
    """(B, H, W, C) → (B, h, w, p · p · C) float32, each patch in the order rows, columns, channels."""
    batch, (height, width, channels) = ops.shape(images)[0], images.shape[1:]
    grid = (height // patch_size, width // patch_size)
    x = ops.convert_to_tensor(images, "float32")
    x = ops.reshape(x, (batch, grid[0], patch_size, grid[1], patch_size, channels))
    return ops.reshape(ops.transpose(x, (0, 1, 3, 2, 4, 5)), (batch, *grid, patch_size**2 * channels))


def join_patches(patches, patch_size):
    """Inverse of `split_patches`: (B, h, w, p · p · C) → (B, h · p, w · p, C)."""
    batch, (height, width, values) = ops.shape(patches)[0], patches.shape[1:]
    channels = values // patch_size**2
    x = ops.reshape(patches, (batch, height, width, patch_size, patch_size, channels))
    return ops.reshape(ops.transpose(x, (0, 1, 3, 2, 4, 5)), (batch, height * patch_size, width * patch_size, channels))


def normalize_patches(patches):
    """Return (normalised patches, means, standard deviations): (B, h, w, P) and twice (B, h, w, 1).

    The variance is unbiased, as in the authors' code.
    """
    mean = ops.mean(patches, axis=-1, keepdims=True)
    centered = patches - mean
    variance = ops.sum(ops.square(centered), axis=-1, keepdims=True) / (patches.shape[-1] - 1)
    deviation = ops.sqrt(variance + PIXEL_EPSILON)
    return centered / deviation, mean, deviation


def masked_loss(target, patches, mask):
    """Return the mean squared error over the hidden patches of a batch; 0 if none is hidden.

    Args:
        target, patches: float32 (B, h, w, P).
        mask: (B, h, w), 0 (keep) and 1 (hide).
    """
    mask = ops.cast(mask, "float32")
    errors = ops.mean(ops.square(ops.cast(patches, "float32") - target), axis=-1)
    return ops.sum(errors * mask) / ops.maximum(ops.sum(mask), 1.0)
