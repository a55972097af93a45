"""Oracle cases of classifiers: timm's and transformers' ConvNeXt V1, V2 and ResNet."""

from oracle_case import CLASSES, SEED, SIZES, Case, channels_first, draw_images

# The reference models


def timm_classifier(name, **options):
    import timm

    return timm.create_model(name, **options)


def timm_convnext(row):
    """A ConvNeXt of a size of its own, from timm's class."""
    from timm.models.convnext import ConvNeXt

    return ConvNeXt(depths=row["depths"], dims=row["dims"], norm_eps=row["epsilon"], num_classes=CLASSES)


def transformers_convnext(version, depths, dims):
    import transformers

    config = {"depths": list(depths), "hidden_sizes": list(dims), "num_labels": CLASSES}
    if version == 1:
        model = transformers.ConvNextForImageClassification(transformers.ConvNextConfig(**config))
    else:
        model = transformers.ConvNextV2ForImageClassification(transformers.ConvNextV2Config(**config))
    model.base_model.layernorm.eps = 1e-6  # 1e-12 there, against the papers and every other norm of the model
    return model


def transformers_resnet(depths, dims, layer_type):
    import transformers

    config = transformers.ResNetConfig(
        depths=list(depths), hidden_sizes=list(dims), layer_type=layer_type, num_labels=CLASSES
    )
    return transformers.ResNetForImageClassification(config)


# Outputs


def run_classifier(model, case):
    """Logits and the output of every stage, for each size."""
    arrays = {}
    for size in case.sizes:
        label, images = "x".join(map(str, size)), draw_images(2, size, SEED)
        stages, outputs = [], None
        hooks = [
            stage.register_forward_hook(lambda _, __, output, stages=stages: stages.append(output))
            for stage in find_stages(model)
        ]
        outputs = model(channels_first(images))
        for hook in hooks:
            hook.remove()
        arrays[f"{label}/images"] = images
        for index, stage in enumerate(stages):
            arrays[f"{label}/stage_{index}"] = stage.permute(0, 2, 3, 1).numpy()
        arrays[f"{label}/logits"] = getattr(outputs, "logits", outputs).numpy()
    return arrays


def find_stages(model):
    """The four modules whose outputs are the stage outputs."""
    if hasattr(model, "layer1"):
        return [model.layer1, model.layer2, model.layer3, model.layer4]
    return list(getattr(model, "stages", None) or model.base_model.encoder.stages)


# The cases

LOGITS = {"input_shape": (None, None, 3), "classifier_activation": None}
CONVNEXT = {**LOGITS, "stem_stride": 4}
TINY = {"depths": (3, 3, 9, 3), "dims": (96, 192, 384, 768)}
RESNET18 = {"depths": (2, 2, 2, 2), "dims": (64, 128, 256, 512), "layer_type": "basic"}
RESNET50 = {"depths": (3, 4, 6, 3), "dims": (256, 512, 1024, 2048), "layer_type": "bottleneck"}
WIDER_EPSILON = {
    "depths": (1, 2, 3, 1),
    "dims": (32, 48, 64, 96),
    "epsilon": 1e-5,
    "activation": "gelu",
    "patch_size": 4,
}


def classifier_cases():
    """Every classifier `Case`, small ones first within a source."""
    for name in ("convnext_atto", "convnextv2_atto", "convnext_tiny", "convnextv2_tiny"):
        sizes = SIZES if name.endswith("atto") else SIZES[:2]
        yield Case("timm", name, lambda name=name: timm_classifier(name), run_classifier, CONVNEXT, sizes=sizes)
    create = lambda: timm_convnext(WIDER_EPSILON)  # noqa: E731
    yield Case(
        "timm", "convnext", create, run_classifier, CONVNEXT, WIDER_EPSILON, ((96, 64),), "convnext_epsilon_1e-5"
    )
    for name, sizes in (("resnet18", SIZES), ("resnet50", SIZES[:2])):
        yield Case("timm", name, lambda name=name: timm_classifier(name), run_classifier, LOGITS, sizes=sizes)
    for version, name in ((1, "convnext_tiny"), (2, "convnextv2_tiny")):
        create = lambda version=version: transformers_convnext(version, **TINY)  # noqa: E731
        yield Case("transformers", name, create, run_classifier, CONVNEXT, sizes=SIZES[:2])
    for name, row in (("resnet18", RESNET18), ("resnet50", RESNET50)):
        create = lambda row=row: transformers_resnet(**row)  # noqa: E731
        yield Case("transformers", name, create, run_classifier, LOGITS, sizes=SIZES[:2])
