"""Masked pretraining of ConvNeXt V2 (FCMAE): most of an image is hidden, and what is left has to say what was there.

Paper: "ConvNeXt V2: Co-designing and Scaling ConvNets with Masked Autoencoders", arXiv:2301.00808, section 3.1. The
code is Apache-2.0.

The encoder is the plain backbone of `create_convnext_v2(include_top=False)`; pretraining runs its own layers with the
mask between them. The paper computes the visible positions alone, with sparse convolutions. Here every position is
computed, and hidden ones are set to zero wherever another position reads them: before the depthwise convolution, to
which a zero is what lies outside the image, and before GRN, to whose sums it adds nothing. So the visible positions
hold the sparse encoder's numbers.

Two departures from the authors' code. Their sparse GRN sums over the visible positions of the whole batch; this one
over those of each sample, as the paper and their dense GRN do. And the pixels are hidden before the stem too, whose
patches overlap at stem strides below their size.

In a mask 0 is keep, 1 is hide.
"""

import keras
from keras import layers, ops

from convnext.functional import Functional, build_optimizer
from convnext.layers import PACKAGE, Dense, Normal, at_least_float32
from convnext.model import INIT_STDDEV, Shape, block, create_convnext_v2, resolve_variant
from convnext.variants import Variant

HIDDEN_AFTER = ("stem_norm", "downsample_conv", "pwconv1", "pwconv2")  # ends of names; everything else is pointwise
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
    """A ConvNeXt V2 backbone with what its masked pretraining takes: `compile(optimizer)`, then `fit(images)`.

    Args:
        variant: as in `create_convnext_v2`.
        input_shape: (H, W, C); H and W are multiples of the side of a patch, which is the backbone's total stride: 32
            for four stages at stem stride 4, 8 at stem stride 1.
        mask_ratio: share of the patches that is hidden, in [0, 1).
        stem_stride, drop_path_rate: as in `create_convnext_v2`.
        decoder_dim, decoder_depth: channels and blocks of the decoder.
        normalize_target: rebuild each patch less its mean, over its standard deviation; otherwise the pixels.
        seed: of the masks; None for one drawn from Python's generator, which `keras.utils.set_random_seed` sets.
        name: of the model; "fcmae_tiny" for the row "tiny".

    Returns:
        A `FCMAE`; its `encoder` is the backbone, (B, H, W, C) → (B, h, w, D).

    Raises:
        ValueError: an unknown variant or option, or images that are no whole number of patches, or too few.

    Reference: arXiv:2301.00808, section 3.1.
    """
    options = {"include_top": False, "stem_stride": stem_stride, "drop_path_rate": drop_path_rate}
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
    """A backbone that learns to rebuild the hidden patches of an image from the visible ones.

    Args:
        encoder: of `create_convnext_v2(include_top=False)`, for images (H, W, C), with maps (h, w, D).
        others: as in `create_fcmae`.

    Calling it on images (B, H, W, C), or on {"images", "mask"} with a mask (B, h, w) of zeros (keep) and ones (hide),
    gives {"patches": float32 (B, h, w, P), "mask": (B, h, w)}: what the decoder makes of every patch, its P = p · p · C
    numbers in the order rows, columns, channels. Without a mask in the batch it draws one, anew at each call.

    `fit` takes the same, without targets; the loss is `masked_loss`.

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
        self.patch_size, self.grid = patch_grid(encoder)
        self.kept = count_kept(self.grid, mask_ratio, self.patch_size)
        self.mask_ratio, self.normalize_target = mask_ratio, normalize_target
        self.decoder_dim, self.decoder_depth, self.seed = decoder_dim, decoder_depth, seed
        self.encoder = encoder
        outputs = self.patch_size**2 * encoder.input_shape[-1]
        self.decoder = create_decoder(encoder.output_shape[1:], outputs, dim=decoder_dim, depth=decoder_depth)
        self.seed_generator = keras.random.SeedGenerator(seed)
        self.built = True

    def call(self, inputs):
        batch = inputs if isinstance(inputs, dict) else {"images": inputs}
        images, mask = batch["images"], batch.get("mask")
        mask = self.draw_mask(ops.shape(images)[0]) if mask is None else ops.cast(mask, "float32")
        features = encode_visible(self.encoder, images, mask)
        return {"patches": self.decoder([features, mask]), "mask": mask}

    def draw_mask(self, count):
        """(count, h, w) float32: in each row the same number of zeros (keep) and of ones (hide), at random places."""
        height, width = self.grid
        noise = keras.random.uniform((count, height * width), dtype="float32", seed=self.seed_generator)
        places = ops.argsort(ops.argsort(noise, axis=1), axis=1)
        return ops.reshape(ops.cast(places >= self.kept, "float32"), (count, height, width))

    def make_train_function(self, force=False):
        build_optimizer(self)
        return super().make_train_function(force)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):  # noqa: ARG002
        if y is not None or sample_weight is not None:
            raise ValueError("FCMAE learns from images alone: pass x, without y or sample_weight.")
        target = split_patches(x["images"] if isinstance(x, dict) else x, self.patch_size)
        target = normalize_patches(target)[0] if self.normalize_target else target
        return masked_loss(target, y_pred["patches"], y_pred["mask"])

    def reconstruct(self, images, mask):
        """The images, their hidden patches as the decoder makes them: (B, H, W, C) and a mask (B, h, w) → (B, H, W, C).

        A normalised target says nothing of a patch's mean and deviation; here they are the image's own.
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


def patch_grid(encoder):
    """(p, (h, w)): the side of a patch, which is the encoder's total stride, and how many patches an image has.

    Raises:
        ValueError: the encoder's images are of no fixed size, or no whole number of patches.
    """
    stages = sum(layer.name.endswith("downsample_conv") for layer in encoder.layers) + 1
    patch_size = encoder.get_layer("stem_conv").strides[0] * 2 ** (stages - 1)
    height, width = encoder.input_shape[1:3]
    if None in (height, width) or height % patch_size or width % patch_size:
        raise ValueError(
            f"input_shape={encoder.input_shape[1:]}; height and width must be multiples of the patches' side, which is "
            f"the backbone's total stride of {patch_size}."
        )
    return patch_size, (height // patch_size, width // patch_size)


def count_kept(grid, mask_ratio, patch_size):
    """How many of an image's patches stay visible; ValueError where none would, or none would be hidden."""
    if not 0.0 <= mask_ratio < 1.0:
        raise ValueError(f"mask_ratio must be in [0, 1), got {mask_ratio!r}.")
    count = grid[0] * grid[1]
    kept = int(count * (1 - mask_ratio))
    if not kept or (kept == count and mask_ratio):
        raise ValueError(
            f"mask_ratio={mask_ratio} of {count} patches of {patch_size}×{patch_size} pixels leaves {kept} visible; "
            "take larger images or a smaller stem_stride."
        )
    return kept


def encode_visible(encoder, images, mask):
    """The encoder's last map as visible patches alone make it; zero where a patch is hidden.

    Args:
        encoder: of `create_convnext_v2(include_top=False)`.
        images: (B, H, W, C).
        mask: (B, h, w), zeros (keep) and ones (hide).

    Returns:
        (B, h, w, D).
    """
    visible = {}  # side of a patch in a map's positions → (B, H', W', 1)

    def hide(x):
        side = x.shape[1] // mask.shape[1]
        if side not in visible:
            visible[side] = ops.repeat(ops.repeat(1.0 - mask[..., None], side, axis=1), side, axis=2)
        return x * ops.cast(visible[side], x.dtype)

    x = shortcut = hide(images)
    for layer in encoder.layers[1:]:
        if layer.name.endswith("_dwconv"):
            shortcut = x
        x = layer([shortcut, x] if layer.name.endswith("_out") else x)
        if layer.name.endswith(HIDDEN_AFTER):
            x = hide(x)
    return x


def create_decoder(shape, outputs, *, dim, depth):
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
    """One learned vector in place of what is hidden: [(B, h, w, C), (B, h, w) mask] → (B, h, w, C).

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
    """(B, H, W, C) → (B, h, w, p · p · C) float32: a patch's rows, columns, channels one after the other."""
    batch, (height, width, channels) = ops.shape(images)[0], images.shape[1:]
    grid = (height // patch_size, width // patch_size)
    x = ops.convert_to_tensor(images, "float32")
    x = ops.reshape(x, (batch, grid[0], patch_size, grid[1], patch_size, channels))
    return ops.reshape(ops.transpose(x, (0, 1, 3, 2, 4, 5)), (batch, *grid, patch_size**2 * channels))


def join_patches(patches, patch_size):
    """`split_patches` undone: (B, h, w, p · p · C) → (B, h · p, w · p, C)."""
    batch, (height, width, values) = ops.shape(patches)[0], patches.shape[1:]
    channels = values // patch_size**2
    x = ops.reshape(patches, (batch, height, width, patch_size, patch_size, channels))
    return ops.reshape(ops.transpose(x, (0, 1, 3, 2, 4, 5)), (batch, height * patch_size, width * patch_size, channels))


def normalize_patches(patches):
    """(each patch less its mean over its deviation, the means, the deviations): (B, h, w, P), twice (B, h, w, 1).

    The variance is the unbiased one, as in the authors' code.
    """
    mean = ops.mean(patches, axis=-1, keepdims=True)
    centered = patches - mean
    variance = ops.sum(ops.square(centered), axis=-1, keepdims=True) / (patches.shape[-1] - 1)
    deviation = ops.sqrt(variance + PIXEL_EPSILON)
    return centered / deviation, mean, deviation


def masked_loss(target, patches, mask):
    """Mean squared error over the hidden patches of a batch; 0 where none is hidden.

    Args:
        target, patches: float32 (B, h, w, P).
        mask: (B, h, w), zeros (keep) and ones (hide).
    """
    mask = ops.cast(mask, "float32")
    errors = ops.mean(ops.square(ops.cast(patches, "float32") - target), axis=-1)
    return ops.sum(errors * mask) / ops.maximum(ops.sum(mask), 1.0)
