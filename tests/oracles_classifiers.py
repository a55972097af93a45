"""Oracle cases of classifiers: every row of ours against timm, transformers, torchvision and facebookresearch's naming.

The suite has each row narrow, its dims divided and its stages shortened, through the same code path; a few are there
whole, and all are with `--full`. facebookresearch's code is not a package: its cases are timm's models, their weights
renamed as the authors' files have them, which timm's own `checkpoint_filter_fn` undoes (test_convert_facebook.py).
"""

import dataclasses
import math
import re

from oracle_case import CLASSES, SEED, SIZES, Case, channels_first, draw_images

from convnext import TABLES

FEW_CLASSES = 10

# The reference models


def timm_classifier(name, **options):
    """timm's model of that name; `options` may give it another row."""
    import timm

    return timm.create_model(name, **options)


def timm_convnext(row):
    """A ConvNeXt of a size of its own, from timm's class."""
    from timm.models.convnext import ConvNeXt

    return ConvNeXt(depths=row["depths"], dims=row["dims"], norm_eps=row["epsilon"], num_classes=CLASSES)


def timm_resnet(row):
    from timm.models.resnet import BasicBlock, Bottleneck, ResNet

    block = BasicBlock if row.block == "basic" else Bottleneck
    return ResNet(block, row.depths, num_classes=FEW_CLASSES, channels=row.dims)


def transformers_convnext(family, row, classes=CLASSES):
    import transformers

    config = {"depths": list(row.depths), "hidden_sizes": list(row.dims), "num_labels": classes}
    if family == "convnext":
        model = transformers.ConvNextForImageClassification(transformers.ConvNextConfig(**config))
    else:
        model = transformers.ConvNextV2ForImageClassification(transformers.ConvNextV2Config(**config))
    model.base_model.layernorm.eps = 1e-6  # 1e-12 there, against the papers and every other norm of the model
    return model


def transformers_resnet(row, classes=CLASSES):
    import transformers

    expansion = 4 if row.block == "bottleneck" else 1
    config = transformers.ResNetConfig(
        depths=list(row.depths),
        hidden_sizes=[dim * expansion for dim in row.dims],
        embedding_size=row.stem_dim,
        layer_type=row.block,
        num_labels=classes,
    )
    return transformers.ResNetForImageClassification(config)


def torchvision_convnext(row):
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt

    wider = (*row.dims[1:], None)
    blocks = [CNBlockConfig(*stage) for stage in zip(row.dims, wider, row.depths, strict=True)]
    return ConvNeXt(blocks, layer_scale=1.0, num_classes=FEW_CLASSES)


def torchvision_resnet(row):
    from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

    block = BasicBlock if row.block == "basic" else Bottleneck
    return ResNet(block, list(row.depths), num_classes=FEW_CLASSES)


# State dicts as others write them


def facebook_state(model):
    """timm's weights under facebookresearch's names, GRN as (1, 1, 1, C)."""
    state = {}
    for key, value in model.state_dict().items():
        key = re.sub(r"^stem\.", "downsample_layers.0.", key)
        key = re.sub(r"^stages\.(\d+)\.downsample", r"downsample_layers.\1", key).replace(".blocks", "")
        key = key.replace("conv_dw", "dwconv").replace("mlp.fc", "pwconv").replace("head.fc", "head")
        key = (
            key.replace("head.norm", "norm").replace("mlp.grn.weight", "grn.gamma").replace("mlp.grn.bias", "grn.beta")
        )
        if ".grn." in key:
            value = value[None, None, None]
        elif "pwconv" in key and key.endswith("weight"):
            value = value.flatten(1)  # timm's 1×1 convolutions are linear layers there
        state[key] = value
    return state


def headless(state):
    """What the published FCMAE files have: no final norm, no classifier."""
    return {key: value for key, value in state.items() if not key.startswith(("norm.", "head."))}


def sparse_state(state):
    """A dense FCMAE state dict as the pretraining itself holds it, in MinkowskiEngine's layers, with a decoder."""
    import torch

    sparse = {"mask_token": torch.zeros(1, 4, 1, 1), "decoder.0.norm.weight": torch.zeros(4)}
    for key, value in state.items():
        if re.fullmatch(r"downsample_layers\.0\..*", key):
            pass
        elif ".dwconv.weight" in key or (value.ndim == 4 and ".grn." not in key):  # (O, I, H, W) → (W·H, I, O)
            key = key.replace("weight", "kernel")
            value = value.permute(3, 2, 1, 0).flatten(0, 1)
            value = value[:, 0] if "dwconv" in key else value
        elif key.endswith(("dwconv.bias", ".1.bias")) and "grn" not in key and "norm" not in key:
            value = value[None]
        elif ".grn." in key:
            value = value.flatten()[None]
        else:
            key = re.sub(r"(norm|downsample_layers\.\d\.0)\.(\w+)$", r"\1.ln.\2", key)
            key = re.sub(r"(pwconv\d)\.(\w+)$", r"\1.linear.\2", key)
        sparse[f"encoder.{key}"] = value.contiguous()
    return sparse


# Outputs


def run_classifier(model, case):
    """What leaves the stem and every stage, the features that the classifier reads, and logits, for each size."""
    arrays = {}
    for size in case.sizes:
        label, images = "x".join(map(str, size)), draw_images(2, size, SEED)
        maps, pooled, outputs = capture(model, channels_first(images))
        names = ["stem", *(f"stage_{index}" for index in range(len(maps) - 1))]
        arrays[f"{label}/images"] = images
        arrays |= {f"{label}/{name}": a.permute(0, 2, 3, 1).numpy() for name, a in zip(names, maps, strict=True)}
        if pooled:
            arrays[f"{label}/pooled"] = pooled[0].numpy()
            arrays[f"{label}/logits"] = getattr(outputs, "logits", outputs).numpy()
    return arrays


def capture(model, images):
    """([output of the stem, of each stage], [input of the classifier, if there is one], the model's output)."""
    maps, pooled = [], []
    hooks = [
        module.register_forward_hook(lambda _, __, output: maps.append(output))
        for module in (find_stem(model), *find_stages(model))
    ]
    if (head := find_head(model)) is not None:
        hooks.append(head.register_forward_pre_hook(lambda _, inputs: pooled.append(inputs[0])))
    outputs = model(images)
    for hook in hooks:
        hook.remove()
    return maps, pooled, outputs


def find_stem(model):
    """The module whose output the first stage reads."""
    if hasattr(model, "layer1"):
        return model.maxpool
    if hasattr(model, "features"):
        return model.features[0]
    return getattr(model, "stem", None) or getattr(model.base_model, "embeddings", None) or model.base_model.embedder


def find_stages(model):
    """The modules whose outputs are the stage outputs."""
    if hasattr(model, "layer1"):
        return [model.layer1, model.layer2, model.layer3, model.layer4]
    if hasattr(model, "features"):
        return [model.features[index] for index in range(1, len(model.features), 2)]
    return list(getattr(model, "stages", None) or model.base_model.encoder.stages)


def find_head(model):
    """The linear layer at the end, None for a trunk."""
    import torch

    last = list(model.modules())[-1]
    return last if isinstance(last, torch.nn.Linear) else None


# The cases

LOGITS = {"input_shape": (None, None, 3), "classifier_activation": None}
CONVNEXT = {**LOGITS, "stem_stride": 4}
TRUNK = {**CONVNEXT, "include_top": False}
NARROW_SIZES = ((75, 101),)  # no multiple of any stride
FEW = {"num_classes": FEW_CLASSES}
TORCHVISION_ROWS = ("tiny", "small", "base", "large")
NOT_FACEBOOKS = ("atto", "femto", "pico", "nano", "xxlarge")  # V1 rows that are timm's and open_clip's
WIDER_EPSILON = {
    "depths": (1, 2, 3, 1),
    "dims": (32, 48, 64, 96),
    "epsilon": 1e-5,
    "activation": "gelu",
    "patch_size": 4,
}


def narrow(row):
    """A row with an eighth of the channels and of each stage's blocks, rounded up."""
    return dataclasses.replace(
        row, depths=tuple(math.ceil(d / 8) for d in row.depths), dims=tuple(d // 8 for d in row.dims)
    )


def shallow(row):
    """A row with an eighth of each stage's blocks, rounded up."""
    return dataclasses.replace(row, depths=narrow(row).depths)


def full_name(family, label):
    return f"resnet{label}" if family == "resnet" else f"{family}_{label}"


def classifier_cases():
    """Every classifier `Case`, those of the suite first."""
    yield from whole_cases()
    for family, table in TABLES.items():
        for label, row in table.items():
            yield from (resnet_cases if family == "resnet" else convnext_cases)(family, label, row)
    yield from fcmae_cases()
    yield from full_cases()


GIANTS = ("convnextv2_huge", "convnext_xxlarge")  # of 0.7 and 0.8 billion parameters
IN_SUITE = ("convnext_atto", "convnextv2_atto", "resnet18")


def whole_cases():
    """The rows that the suite has whole, and one with another epsilon."""
    for name in IN_SUITE:
        yield whole_case(name)
    create, label = lambda: timm_convnext(WIDER_EPSILON), "convnext_epsilon_1e-5"
    yield Case("timm", "convnext", create, run_classifier, CONVNEXT, WIDER_EPSILON, ((96, 64),), label)


def small_case(source, family, label, row, create, arguments=None, state=None):
    """A `Case` of a row of its own under the name of the row that it stands for."""
    arguments = arguments or {**(LOGITS if family == "resnet" else CONVNEXT), **FEW}
    fields = dataclasses.asdict(row)
    label = f"{full_name(family, label)}-narrow"
    return Case(source, family, create, run_classifier, arguments, fields, NARROW_SIZES, label, state=state)


def convnext_cases(family, label, row):
    row, name = narrow(row), full_name(family, label)
    create = lambda: timm_classifier(name, depths=row.depths, dims=row.dims, num_classes=FEW_CLASSES)  # noqa: E731
    yield small_case("timm", family, label, row, create)
    if row.epsilon == 1e-6:  # of transformers' blocks
        yield small_case("transformers", family, label, row, lambda: transformers_convnext(family, row, FEW_CLASSES))
    if family == "convnextv2" or label not in NOT_FACEBOOKS:
        yield small_case("facebook", family, label, row, create, state=facebook_state)
    if family == "convnext" and label in TORCHVISION_ROWS:
        yield small_case("torchvision", family, label, row, lambda: torchvision_convnext(row))


def resnet_cases(family, label, row):
    """Narrow for transformers; timm's and torchvision's stems have 64 channels, and torchvision fixes all widths."""
    tight, short = dataclasses.replace(narrow(row), stem_dim=8), shallow(row)
    stemmed = dataclasses.replace(narrow(row), stem_dim=64)
    yield small_case("timm", family, label, stemmed, lambda: timm_resnet(stemmed))
    yield small_case("transformers", family, label, tight, lambda: transformers_resnet(tight, FEW_CLASSES))
    yield small_case("torchvision", family, label, short, lambda: torchvision_resnet(short))


def fcmae_cases():
    """Masked pretraining's encoder, without norm and head: as published, and with its sparse layers."""
    row = narrow(TABLES["convnextv2"]["pico"])
    create = lambda: timm_classifier("convnextv2_pico", depths=row.depths, dims=row.dims, num_classes=0)  # noqa: E731
    for label, state in (
        ("pico_fcmae", lambda model: headless(facebook_state(model))),
        ("pico_fcmae_sparse", lambda model: sparse_state(headless(facebook_state(model)))),
    ):
        yield small_case("facebook", "convnextv2", label, row, create, TRUNK, state)


def full_cases():
    """timm's of every row but the giants, those of the suite at further sizes; some of transformers' rows."""
    names = [full_name(family, label) for family, table in TABLES.items() for label in table]
    for name in names:
        if name in IN_SUITE:
            yield dataclasses.replace(whole_case(name, SIZES[1:], full=True), label=f"{name}-sizes")
        elif name not in GIANTS:
            yield whole_case(name, full=True)
    for family in ("convnext", "convnextv2"):
        create = lambda family=family: transformers_convnext(family, TABLES[family]["tiny"])  # noqa: E731
        yield Case("transformers", f"{family}_tiny", create, run_classifier, CONVNEXT, sizes=SIZES[:2], full=True)
    for label in ("18", "50"):
        create = lambda label=label: transformers_resnet(TABLES["resnet"][label])  # noqa: E731
        yield Case("transformers", f"resnet{label}", create, run_classifier, LOGITS, sizes=SIZES[:2], full=True)


def giant_cases():
    return [whole_case(name) for name in GIANTS]


def whole_case(name, sizes=SIZES[:1], full=False):
    arguments = LOGITS if "resnet" in name else CONVNEXT
    return Case("timm", name, lambda: timm_classifier(name), run_classifier, arguments, sizes=sizes, full=full)
