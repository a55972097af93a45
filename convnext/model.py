"""ConvNeXt V1 and V2 as functional Keras models: one builder, where V2 has GRN instead of LayerScale.

Papers: "A ConvNet for the 2020s", arXiv:2201.03545; "ConvNeXt V2: Co-designing and Scaling ConvNets with Masked
Autoencoders", arXiv:2301.00808. The code is Apache-2.0. Published weights carry their own licences: V1's are MIT or
Apache-2.0, V2's are CC-BY-NC-4.0.

A block, figure 4 of the first paper:  x + drop_path(gamma · pwconv2(GELU(pwconv1(norm(dwconv(x))))))
with GRN after the GELU and no gamma in V2. Layers are named after the checkpoints' module paths joined with "_":
`stem_conv`, `stages_0_blocks_0_dwconv`, `stages_1_downsample_norm`, `head_norm`, `head_fc`.
"""

import math
import re
from collections.abc import Callable

import keras
from keras import layers

from convnext.functional import Functional
from convnext.kernels import CHANNELS_LAST
from convnext.layers import (
    GRN,
    Conv2D,
    Dense,
    DepthwiseConv2D,
    LayerNormalization,
    LayerScale,
    Normal,
    at_least_float32,
    drop_path,
)
from convnext.variants import TABLES, ResNetVariant, Variant, closest

Shape = tuple[int | None, int | None, int]
Strides = int | str | tuple[int, ...]

KERNEL_SIZE = 7
INIT_STDDEV = 0.02
SMALLEST_LAST_MAP = 4  # side of the last map below which "auto" reduces the stem stride
SMALL_IMAGE, SMALLEST_DOWNSAMPLED = 32, 2  # below this side, "auto" keeps a last map of at least this side


def create_convnext_v1(
    variant: str | Variant = "tiny",
    num_classes: int = 1000,
    input_shape: Shape = (224, 224, 3),
    *,
    include_top: bool = True,
    pooling: str | None = None,
    classifier_activation: str | Callable | None = "softmax",
    stem_stride: int | str = "auto",
    downsample_strides: Strides = "auto",
    drop_path_rate: float = 0.0,
    dropout_rate: float = 0.0,
    layer_scale_init_value: float | None = 1e-6,
    name: str | None = None,
) -> keras.Model:
    """Build ConvNeXt V1 as a functional `keras.Model`.

    Args:
        variant: "atto", "femto", "pico", "nano", "tiny", "small", "base", "large", "xlarge", "xxlarge", or a `Variant`.
        num_classes: K, outputs of the classifier.
        input_shape: (H, W, C) of the images, which are float32, channels_last and already normalised. H and W may be
            None.
        include_top: end in the classifier; otherwise in the last feature map, pooled as `pooling` says.
        pooling: None, "avg" or "max"; without the top: pooled over the map and normalised, (B, C).
        classifier_activation: activation of the classifier; None gives logits.
        stem_stride: the row's patch size (4), 2 or 1, or "auto": the largest that leaves a last map of at least 4 on
            its shorter side. Weights fit at any stride.
        downsample_strides: strides of the downsampling layers before stages 1, 2, …, each 2 or 1; one number for all;
            or "auto": 2, but for images under 32 pixels at stem stride 1 the last ones are 1 until the last map is at
            least 2 × 2. Weights fit at any strides.
        drop_path_rate: stochastic depth rate of the last block, in [0, 1); rises linearly from 0 at the first.
        dropout_rate: dropout rate before the classifier, in [0, 1).
        layer_scale_init_value: initial gamma, the factor on each block's residual branch; None for no LayerScale.
        name: name of the model, with which the names of its input and layers then start ("left_stem_conv"), so that
            one functional model can hold two. Without it the model is "convnext_tiny" for the row "tiny", and its
            layers are "stem_conv", ….

    Returns:
        A `keras.Model` from (B, H, W, C) to (B, K), (B, C) or (B, H/32, W/32, C) float32 (H/32 at stem stride 4).

    Raises:
        ValueError: an unknown variant or option, or an input too small for the last feature map.

    What "auto" chooses for the shorter side of the images, with four stages; weights load at every stride. The last
    column is the time of a training step relative to stem stride 4, which would leave images under 32 pixels no map:

        side        stem    downsampling    last map    time
        from 128    4       2, 2, 2         from 4      1
        63 to 127   2       2, 2, 2         4 to 8      4
        32 to 62    1       2, 2, 2         4 to 7      10
        16 to 31    1       2, 2, 2         2 to 3      –
        8 to 15     1       2, 2, 1         2 to 3      –
        4 to 7      1       2, 1, 1         2 to 3      –
        1 to 3      1       1, 1, 1         1 to 3      –

    Reference: arXiv:2201.03545.
    """
    return _create_convnext("convnext", **locals())


def create_convnext_v2(
    variant: str | Variant = "tiny",
    num_classes: int = 1000,
    input_shape: Shape = (224, 224, 3),
    *,
    include_top: bool = True,
    pooling: str | None = None,
    classifier_activation: str | Callable | None = "softmax",
    stem_stride: int | str = "auto",
    downsample_strides: Strides = "auto",
    drop_path_rate: float = 0.0,
    dropout_rate: float = 0.0,
    layer_scale_init_value: float | None = None,
    name: str | None = None,
) -> keras.Model:
    """Build ConvNeXt V2 as a functional `keras.Model`: V1 with Global Response Normalization instead of LayerScale.

    Args:
        variant: "atto", "femto", "pico", "nano", "tiny", "small", "base", "large", "huge", or a `Variant`.
        layer_scale_init_value: None, as published; a number adds V1's LayerScale to each block.

    The other arguments, the returned model and the errors are those of `create_convnext_v1`.

    Reference: arXiv:2301.00808.
    """
    return _create_convnext("convnextv2", **locals())


def _create_convnext(family, variant, num_classes, input_shape, *, stem_stride, downsample_strides, name, **options):
    row, label = resolve_variant(family, variant)
    check_options(num_classes, options)
    stem_stride, strides = resolve_strides(row, input_shape, stem_stride, downsample_strides)
    prefix = prefix_of(name)
    images = keras.Input(input_shape, name=f"{prefix}{INPUT}")
    x = stem(images, row, stem_stride, prefix)
    rates = _drop_path_schedule(options["drop_path_rate"], sum(row.depths))
    for index, dim in enumerate(row.dims):
        if index:
            x = downsample(x, dim, strides[index - 1], row.epsilon, f"{prefix}stages_{index}_downsample")
        for number in range(row.depths[index]):
            x = block(
                x,
                row,
                use_grn=family == "convnextv2",
                layer_scale_init_value=options["layer_scale_init_value"],
                drop_path_rate=next(rates),
                name=f"{prefix}stages_{index}_blocks_{number}",
            )
    outputs = head(x, row.epsilon, num_classes, **{key: options[key] for key in HEAD_OPTIONS}, prefix=prefix)
    return Functional(images, outputs, name=name or f"{family}_{label}")


INPUT = "images"


def prefix_of(name):
    """What the names of layers start with when the caller gave a model this name, or None."""
    return f"{name}_" if name else ""


def layers_by_name(model: keras.Model) -> dict[str, keras.layers.Layer]:
    """Return {name: layer} of a backbone, names without the prefix that a model with a name of its own has."""
    first = model.layers[0].name
    prefix = first.removesuffix(INPUT) if first.endswith(f"_{INPUT}") else ""
    return {layer.name.removeprefix(prefix): layer for layer in model.layers}


def stem(images, row, stride, prefix):
    """(B, H, W, 3) → (B, H/stride, W/stride, dims[0]): a patch convolution and its norm."""
    x = Conv2D(
        row.dims[0],
        row.patch_size,
        strides=stride,
        padding="valid" if stride == row.patch_size else "same",
        kernel_initializer=Normal(INIT_STDDEV),
        data_format=CHANNELS_LAST,
        name=f"{prefix}stem_conv",
    )(images)
    return LayerNormalization(epsilon=row.epsilon, name=f"{prefix}stem_norm")(x)


def downsample(x, dim, stride, epsilon, name):
    """(B, H, W, C) → (B, H/stride, W/stride, dim); at 2 an odd last row or column is dropped, as in the reference."""
    x = LayerNormalization(epsilon=epsilon, name=f"{name}_norm")(x)
    return Conv2D(
        dim,
        2,
        strides=stride,
        padding="valid" if stride == 2 else "same",
        kernel_initializer=Normal(INIT_STDDEV),
        data_format=CHANNELS_LAST,
        name=f"{name}_conv",
    )(x)


def block(x, row, *, use_grn, layer_scale_init_value, drop_path_rate, name):
    """(B, H, W, C) → same: figure 4 of V1, figure 5 of V2."""
    shortcut, dim = x, x.shape[-1]
    x = DepthwiseConv2D(
        KERNEL_SIZE,
        padding="same",
        depthwise_initializer=Normal(INIT_STDDEV),
        data_format=CHANNELS_LAST,
        name=f"{name}_dwconv",
    )(x)
    x = LayerNormalization(epsilon=row.epsilon, name=f"{name}_norm")(x)
    x = Dense(4 * dim, row.activation, kernel_initializer=Normal(INIT_STDDEV), name=f"{name}_pwconv1")(x)
    if use_grn:
        x = GRN(name=f"{name}_grn")(x)
    x = Dense(dim, kernel_initializer=Normal(INIT_STDDEV), name=f"{name}_pwconv2")(x)
    if layer_scale_init_value is not None:
        x = LayerScale(layer_scale_init_value, name=f"{name}_gamma")(x)
    if drop_path_rate:
        x = drop_path(drop_path_rate, f"{name}_drop_path")(x)
    return layers.Add(name=f"{name}_out")([shortcut, x])


HEAD_OPTIONS = ("include_top", "pooling", "classifier_activation", "dropout_rate")


def head(x, epsilon, num_classes, *, include_top, pooling, classifier_activation, dropout_rate, prefix):
    """(B, H, W, C) → (B, K) class scores; without the top (B, C), or the map itself without pooling."""
    if not include_top and pooling is None:
        return x
    x = pool(x, pooling, prefix)
    x = LayerNormalization(epsilon=epsilon, name=f"{prefix}head_norm")(x)
    if include_top and dropout_rate:
        x = layers.Dropout(dropout_rate, name=f"{prefix}head_drop")(x)
    return classifier(x, num_classes, classifier_activation, prefix) if include_top else x


def pool(x, pooling, prefix):
    """(B, H, W, C) → (B, C), by "max", otherwise by the mean."""
    layer = layers.GlobalMaxPooling2D if pooling == "max" else layers.GlobalAveragePooling2D
    return layer(data_format=CHANNELS_LAST, name=f"{prefix}head_pool")(x)


def classifier(x, num_classes, activation, prefix):
    """(B, C) → (B, K), in float32 also under half-precision policies, so that softmax and loss are float32."""
    return layers.Dense(
        num_classes,
        activation=activation,
        kernel_initializer=Normal(INIT_STDDEV),
        dtype=at_least_float32(keras.config.dtype_policy().compute_dtype),
        name=f"{prefix}head_fc",
    )(x)


def _drop_path_schedule(rate, blocks):
    """Return an iterator over the blocks' rates, linear from 0 to `rate` (arXiv:1603.09382, equation 4)."""
    return iter([rate * index / max(blocks - 1, 1) for index in range(blocks)])


def resolve_variant(family, variant):
    """Return (row, label) of a variant's name or of a row; ValueError for an unknown name or another family's row."""
    table = TABLES[family]
    if isinstance(variant, Variant):
        is_resnet = isinstance(variant, ResNetVariant)
        if is_resnet != (family == "resnet"):
            needed, builder = ("Variant", "create_resnet") if is_resnet else ("ResNetVariant", "create_convnext_v1")
            raise ValueError(
                f"variant is a {type(variant).__name__}, which {builder} takes; {family} needs a {needed} or one of "
                f"{', '.join(table)}."
            )
        return variant, next((label for label, row in table.items() if row == variant), "custom")
    if not isinstance(variant, str) or variant not in table:
        raise ValueError(f"Unknown {family} variant {variant!r}.{closest(str(variant), table)}")
    return table[variant], variant


ONE_CLASS = (
    "num_classes=1 with softmax gives the probability 1 for every image. Use classifier_activation='sigmoid', or "
    "num_classes=2."
)


def check_options(num_classes, options):
    """Raise ValueError for options that are out of range or contradict each other."""
    if options["include_top"] and (not isinstance(num_classes, int) or num_classes < 1):
        raise ValueError(
            f"num_classes must be a positive integer, got {num_classes!r}; use include_top=False for no head."
        )
    if options["include_top"] and num_classes == 1 and options["classifier_activation"] == "softmax":
        raise ValueError(ONE_CLASS)
    if options["pooling"] not in (None, "avg", "max"):
        raise ValueError(f"pooling must be None, 'avg' or 'max', got {options['pooling']!r}.")
    if options["include_top"] and options["pooling"] == "max":
        raise ValueError("pooling='max' needs include_top=False: the classifier reads the mean over the map.")
    for rate in ("drop_path_rate", "dropout_rate"):
        if not 0.0 <= options.get(rate, 0.0) < 1.0:
            raise ValueError(f"{rate} must be in [0, 1), got {options[rate]!r}.")


def resolve_stem_stride(row: Variant, input_shape: Shape, stem_stride: int | str = "auto") -> int:
    """Return the first of `resolve_strides`."""
    return resolve_strides(row, input_shape, stem_stride)[0]


def resolve_strides(
    row: Variant, input_shape: Shape, stem_stride: int | str = "auto", downsample_strides: Strides = "auto"
) -> tuple[int, tuple[int, ...]]:
    """Return (the stem's stride, those of the downsampling layers) for images of `input_shape`.

    "auto" takes for the stem the largest of (patch_size, 2, 1) that leaves a last map of at least 4 on its shorter
    side, else 1, and patch_size where a side is None; for the rest see `create_convnext_v1`.

    Raises:
        ValueError: strides that are not allowed, or an empty last map.
    """
    check_input_shape(input_shape)
    downsamplings = len(row.dims) - 1
    allowed = [row.patch_size, *(stride for stride in (2, 1) if stride < row.patch_size)]
    sides = [side for side in input_shape[:2] if side is not None]
    first_map = {stride: min((_first_side(row, side, stride) for side in sides), default=0) for stride in allowed}
    if stem_stride == "auto":
        enough = (stride for stride in allowed if first_map[stride] >> downsamplings >= SMALLEST_LAST_MAP)
        stem_stride = row.patch_size if len(sides) < 2 else next(enough, allowed[-1])
    if stem_stride not in allowed:
        raise ValueError(f"stem_stride must be 'auto' or one of {allowed}, got {stem_stride!r}.")
    is_small = stem_stride == 1 and len(sides) == 2 and min(sides) < SMALL_IMAGE
    strides = _downsample_strides(downsample_strides, downsamplings, first_map[stem_stride] if is_small else None)
    if sides and first_map[stem_stride] < math.prod(strides):
        fits = [stride for stride in allowed if first_map[stride] >= math.prod(strides)]
        smallest = stem_stride * math.prod(strides)
        remedy = f"Use stem_stride={fits[0]} or i" if fits else "I"
        raise ValueError(
            f"input_shape={tuple(input_shape)} leaves an empty feature map at stem_stride={stem_stride} and "
            f"downsample_strides={strides}. {remedy}mages of at least {smallest}×{smallest}."
        )
    return stem_stride, strides


def _first_side(row, side, stride):
    return side // stride if stride == row.patch_size else -(-side // stride)


def _downsample_strides(strides, count, side):
    """Return `count` strides; "auto" depends on the side of the first map of a small image, None for other images."""
    if strides == "auto":
        ones = 0
        while side is not None and ones < count and side >> (count - ones) < SMALLEST_DOWNSAMPLED:
            ones += 1
        return (2,) * (count - ones) + (1,) * ones
    resolved = (strides,) * count if isinstance(strides, int) else tuple(strides)
    if isinstance(strides, str) or len(resolved) != count or not set(resolved) <= {1, 2}:
        raise ValueError(f"downsample_strides must be 'auto', 1, 2, or {count} numbers, each 1 or 2; got {strides!r}.")
    return resolved


def check_input_shape(input_shape):
    """ValueError unless `input_shape` is (H, W, C) with C known."""
    valid = isinstance(input_shape, list | tuple) and len(input_shape) == 3 and input_shape[-1] is not None
    if not valid or any(side is not None and side < 1 for side in input_shape):
        raise ValueError(
            f"input_shape must be (height, width, channels), channels last, got {input_shape!r}; "
            "height and width may be None."
        )


BLOCK_OUTPUT = re.compile(r"(?:stages_|layer)(\d+)_(?:blocks_)?(\d+)_out")


def feature_maps(model: keras.Model) -> keras.Model:
    """Return a model of the stage outputs of a ConvNeXt or ResNet of this package, before the head norm.

    Args:
        model: a `keras.Model` made by `create_convnext_v1`, `create_convnext_v2` or `create_resnet`.

    Returns:
        A `keras.Model` that shares the weights, from images (B, H, W, C) to a list of maps (B, H/s, W/s, C) with
        s = 4, 8, 16, 32 (times stem_stride / 4, less where `downsample_strides` has a 1).

    Raises:
        ValueError: the model has no ConvNeXt or ResNet blocks.
    """
    last = {}
    for name, layer in layers_by_name(model).items():
        if match := BLOCK_OUTPUT.fullmatch(name):
            last[int(match[1])] = layer.output  # layers are in order: the last block of a stage remains
    if not last:
        raise ValueError(f"Model {model.name!r} has no ConvNeXt or ResNet blocks.")
    return Functional(model.input, [last[stage] for stage in sorted(last)], name=f"{model.name}_feature_maps")
