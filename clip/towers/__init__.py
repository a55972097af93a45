"""The towers: one file each, with all that is known of the tower.

A tower file holds a config dataclass, a builder, the tower's parameter count, its FLOPs and the schema of its fields,
and registers them in one call of `register_tower`. Nothing else names the tower's type: `create_clip`, the tables, and
`zoo` ask the registry. A tower of your own is such a file anywhere; import it before use:

    register_tower(Tower(kind="mlp", side="image", config=MLP, build=create_mlp_tower, parameters=..., flops=...,
                         schema={"width": Field.integer(1, 4096)}))
    create_clip(Pair(embed_dim=512, image_size=224, image=MLP(width=256), text=Text(512, 8, 12)))

What to ask the registry:

    tower_of(config)            the `Tower` of a config: tower_of(pair.image), tower_of(pair.text)
    find_tower(side, kind)      the `Tower` of a kind in a file: find_tower("image", "vit")
    list_towers(side)           all of them: {kind: Tower}
    Tower.kind, .config         name in saved files; dataclass
    Tower.build(config, embed_dim, **options), Tower.options       e.g. "stem_stride" in tower.options
    Tower.parameters(...), Tower.flops(...)
    Tower.schema                {field: Field(allows, allowed)}
    Tower.to_dict, .from_dict   config ↔ JSON
    layer_weights(class name)   variables of a layer class that a tower brings, for saving

ONNX export goes by layer class: a class of your own needs a rule, `zoo.export.register_emission`.

Importing the files of this package loads no Keras; their builders do. A file of your own may import it.
"""

from clip.towers.convnext import ConvNeXt
from clip.towers.mobileclip import MCi
from clip.towers.registry import (
    Field,
    Tower,
    find_tower,
    in_scope_of_name,
    layer_weights,
    list_towers,
    register_tower,
    tower_of,
)
from clip.towers.resnet import ResNet
from clip.towers.text import Text
from clip.towers.vit import ViT
