"""A ConvNeXt as an image tower: trunk, mean over the map, norm, projection without bias, as in open_clip."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from clip.towers.registry import Field, Tower, in_scope_of_name, register_tower
from convnext import TABLES, Variant, closest
from convnext import flops as trunk_flops
from convnext import parameters as trunk_parameters

if TYPE_CHECKING:
    import keras

FAMILIES = ("convnext", "convnextv2")
PROJECTIONS = ("linear", "mlp")


@dataclass(frozen=True)
class ConvNeXt:
    """Config of a ConvNeXt tower.

    Args:
        family: "convnext" or "convnextv2".
        variant: a name of the family's table, or a `convnext.Variant` of your own.
        projection: "linear", or "mlp" with 2·embed_dim hidden units.
    """

    family: str
    variant: str | Variant
    projection: str = "linear"

    def __post_init__(self):
        for name, value, allowed in (
            ("family", self.family, FAMILIES),
            ("variant", self.variant, TABLES.get(self.family, ())),
            ("projection", self.projection, PROJECTIONS),
        ):
            if value not in allowed and not isinstance(value, Variant):
                raise ValueError(f"{name} is {value!r}.{closest(str(value), allowed)}")


@in_scope_of_name
def create_convnext_tower(
    convnext: ConvNeXt,
    embed_dim: int,
    *,
    image_size: int = 224,
    stem_stride: int | str = "auto",
    name: str = "image_encoder",
) -> "keras.Model":
    """Build a `keras.Model` from images to embeddings that are not normalised.

    Args:
        convnext: the config.
        embed_dim: D.
        image_size: side of the square images in pixels.
        stem_stride: as in `convnext.create_convnext_v1`.

    Returns:
        A model from float32 (B, H, H, 3), already normalised, to (B, D).
    """
    from keras import layers

    from convnext import Functional, Normal, create_convnext_v1, create_convnext_v2

    trunk = (create_convnext_v2 if convnext.family == "convnextv2" else create_convnext_v1)(
        convnext.variant,
        input_shape=(image_size, image_size, 3),
        include_top=False,
        pooling="avg",
        stem_stride=stem_stride,
        downsample_strides=2,
    )
    x = trunk.output  # (B, C)
    if convnext.projection == "mlp":
        x = layers.Dense(2 * embed_dim, kernel_initializer=Normal(0.02), name="head_mlp_fc1")(x)
        x = layers.Activation("gelu", name="head_mlp_act")(x)
        x = layers.Dense(embed_dim, use_bias=False, kernel_initializer=Normal(0.02), name="head_mlp_fc2")(x)
    else:
        initializer = Normal(x.shape[-1] ** -0.5)
        x = layers.Dense(embed_dim, use_bias=False, kernel_initializer=initializer, name="head_proj")(x)
    return Functional(trunk.input, x, name=name)


def parameters(convnext: ConvNeXt, embed_dim: int, image_size: int) -> int:  # noqa: ARG001 (the same at every size)
    """Trainable parameters, projection included."""
    trunk = trunk_parameters(_row(convnext), v2=convnext.family == "convnextv2", num_classes=None)
    return trunk + sum(i * o + bias * o for i, o, bias in _projection(convnext, embed_dim))


def flops(convnext: ConvNeXt, embed_dim: int, image_size: int) -> int:
    """Floating-point operations of one image at stem stride 4, two per multiply–add."""
    head = sum(i * o for i, o, _ in _projection(convnext, embed_dim))
    return trunk_flops(_row(convnext), image_size=image_size, num_classes=None) + 2 * head


def _row(convnext):
    own = isinstance(convnext.variant, Variant)
    return convnext.variant if own else TABLES[convnext.family][convnext.variant]


def _projection(convnext, embed_dim):
    """[(in, out, has bias), …] of the Dense layers from the trunk's features to the embedding."""
    features, hidden = _row(convnext).dims[-1], 2 * embed_dim
    if convnext.projection == "mlp":
        return [(features, hidden, True), (hidden, embed_dim, False)]
    return [(features, embed_dim, False)]


register_tower(
    Tower(
        kind="convnext",
        side="image",
        config=ConvNeXt,
        build=create_convnext_tower,
        parameters=parameters,
        flops=flops,
        schema={"family": Field.one_of(*FAMILIES), "variant": Field.name(), "projection": Field.one_of(*PROJECTIONS)},
    )
)
