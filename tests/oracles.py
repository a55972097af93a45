"""What the reference implementations answer, on random weights: computed once, shared by every backend's tests.

    python tests/oracles.py build/oracles                    # skips what is up to date
    python tests/oracles.py build/oracles --only 'timm-*'    # --list shows the names

A case is a folder: `model.safetensors`, the reference's own state dict; `reference.npz`, inputs and outputs, images and
maps as (B, H, W, C); `case.json`, which model of ours it is and how it was made, written last. Weights are drawn so
that every block matters: LayerScale and GRN far from their initial values, norms with an affine part, moving
statistics. `zoo.parity` compares.
"""

import argparse
import fnmatch
import hashlib
import importlib.metadata
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from helpers import declare_torchvision_operators

SEED = 20240229
TOLERANCE = 2e-5
LIBRARIES = {"timm": "timm", "transformers": "transformers", "open_clip": "open_clip_torch"}
SIZES = ((224, 224), (192, 256), (205, 237))  # the last is no multiple of any stride
CLASSES = 1000
EOT, CONTEXT, VOCABULARY = 49407, 77, 49408
LOGIT_SCALE, LOGIT_BIAS = 4.5, -5.0


@dataclass(frozen=True)
class Case:
    """One reference model and ours.

    Args:
        source: key of LIBRARIES.
        model: our name, or the family when `row` is given.
        create: makes the reference model.
        arguments: of our builder.
        row: the fields of a row of its own, for models without a name.
        sizes: (H, W) of the images.
        run: (reference model, case) → {name: array}.
    """

    source: str
    model: str
    create: Callable
    run: Callable
    arguments: dict = field(default_factory=dict)
    row: dict | None = None
    sizes: tuple = SIZES
    label: str | None = None

    @property
    def name(self):
        return f"{self.source}-{(self.label or self.model).removeprefix('clip/')}"


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


def transformers_clip(row):
    import transformers

    image, text = row["image"], row["text"]
    config = transformers.CLIPConfig(
        projection_dim=row["embed_dim"],
        vision_config={
            "hidden_size": image["width"],
            "intermediate_size": 4 * image["width"],
            "num_hidden_layers": image["layers"],
            "num_attention_heads": image["width"] // 64,
            "patch_size": image["patch_size"],
            "image_size": row["image_size"],
            "hidden_act": row["activation"],
        },
        text_config={
            "hidden_size": text["width"],
            "intermediate_size": 4 * text["width"],
            "num_hidden_layers": text["layers"],
            "num_attention_heads": text["heads"],
            "hidden_act": row["activation"],
            "eos_token_id": EOT,
        },
    )
    return transformers.CLIPModel(config)


def open_clip_named(name):
    import open_clip

    return open_clip.create_model(name)


def open_clip_convnext(trunk, embed_dim, image_size, text, projection="linear", **options):
    """A pair with a timm trunk, configured as open_clip's own ConvNeXt pairs are."""
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    image = CLIPVisionCfg(
        timm_model_name=trunk,
        timm_model_pretrained=False,
        timm_pool="",
        timm_proj=projection,
        timm_drop=0.0,
        timm_drop_path=0.1,
        image_size=image_size,
    )
    return CLIP(embed_dim, image, CLIPTextCfg(**text), **options)


# Weights


def randomise(model, seed):
    """Draws every parameter and moving statistic of a torch model so that activations stay near 1 through its depth."""
    import torch

    generator = torch.Generator().manual_seed(seed)

    def normal(tensor, scale, mean=0.0):
        tensor.copy_(mean + scale * torch.randn(tensor.shape, generator=generator))

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            draw_parameter(name, parameter, normal)
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                normal(buffer, 0.2)
            elif name.endswith("running_var"):
                buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))


def draw_parameter(name, parameter, normal):
    """The rule for one parameter, by its name and its number of axes."""
    last = name.rpartition(".")[2]
    if "logit_scale" in name:
        parameter.fill_(LOGIT_SCALE)
    elif "logit_bias" in name:
        parameter.fill_(LOGIT_BIAS)
    elif ".grn." in name or last in ("gamma", "layer_scale_parameter"):
        normal(parameter, 0.5)
    elif "embedding" in name and "patch" not in name and "norm" not in name:
        normal(parameter, 0.05)
    elif "conv_dw" in name or "dwconv" in name:  # faint, so that the epsilon of the norm that follows shows
        normal(parameter, 0.02)
    elif last in ("proj", "text_projection"):  # (in, out)
        normal(parameter, parameter.shape[0] ** -0.5)
    elif parameter.ndim > 1:  # (out, in, …)
        normal(parameter, (parameter[0].numel()) ** -0.5)
    elif last == "weight":  # a norm's
        normal(parameter, 0.2, mean=0.5 if is_batch_norm(name) else 1.0)
    else:
        normal(parameter, 0.2)


def is_batch_norm(name):
    return any(part in name for part in ("bn", "downsample.1", "normalization"))


# Inputs and outputs


def draw_images(count, size, seed):
    """float32 (B, H, W, 3) with structure at several scales, of mean 0 and deviation about 1, as pictures have."""
    rng = np.random.default_rng([seed, *size])
    images = np.zeros((count, *size, 3), np.float32)
    for cell in (1, 4, 16, 64):
        coarse = rng.standard_normal((count, -(-size[0] // cell), -(-size[1] // cell), 3), np.float32)
        images += 0.5 * coarse.repeat(cell, 1).repeat(cell, 2)[:, : size[0], : size[1]]
    return images


def draw_tokens(count, seed):
    """int32 (B, 77): a caption of one word, one that fills the context, others between; 0 after the end."""
    rng = np.random.default_rng(seed)
    tokens = np.zeros((count, CONTEXT), np.int32)
    for row, length in enumerate(np.linspace(3, CONTEXT, count).astype(int)):
        tokens[row, :length] = [EOT - 1, *rng.integers(1, EOT - 1, length - 2), EOT]
    return tokens


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


def channels_first(images):
    import torch

    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


def find_stages(model):
    """The four modules whose outputs are the stage outputs."""
    if hasattr(model, "layer1"):
        return [model.layer1, model.layer2, model.layer3, model.layer4]
    return list(getattr(model, "stages", None) or model.base_model.encoder.stages)


def run_pair(model, case):
    """Both towers' outputs, plain and normalised, logits, loss, and the loss's derivative by logit_scale."""
    import torch

    count = 3
    (size,) = case.sizes
    images, tokens = draw_images(count, size, SEED), draw_tokens(count, SEED)
    encode_image, encode_text = getattr(model, "encode_image", None), getattr(model, "encode_text", None)
    if encode_image is None:  # transformers
        encode_image = lambda x: model.get_image_features(pixel_values=x).pooler_output  # noqa: E731
        encode_text = lambda x: model.get_text_features(input_ids=x).pooler_output  # noqa: E731
    image = encode_image(channels_first(images))
    text = encode_text(torch.from_numpy(tokens).long())
    arrays = {"images": images, "tokens": tokens, "image_embedding": image, "text_embedding": text}
    image, text = (torch.nn.functional.normalize(features, dim=-1) for features in (image, text))
    with torch.enable_grad():
        logits = model.logit_scale.exp() * image @ text.T
        if getattr(model, "logit_bias", None) is not None:
            logits = logits + model.logit_bias
        target = torch.arange(count)
        cross_entropy = torch.nn.functional.cross_entropy
        loss = (cross_entropy(logits, target) + cross_entropy(logits.T, target)) / 2
        (gradient,) = torch.autograd.grad(loss, model.logit_scale)
    arrays |= {"image_normalized": image, "text_normalized": text, "logits": logits.detach()}
    arrays |= {"loss": loss.detach(), "logit_scale_gradient": gradient}
    return {name: np.asarray(value) for name, value in arrays.items()}


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
MLP_PAIR = {
    "embed_dim": 192,
    "image_size": 160,
    "image": {"family": "convnext", "variant": "tiny", "projection": "mlp"},
    "text": {"width": 128, "heads": 2, "layers": 3},
    "activation": "gelu",
}
HF_PAIR = {
    "embed_dim": 96,
    "image_size": 160,
    "image": {"width": 192, "layers": 4, "patch_size": 32},
    "text": {"width": 128, "heads": 2, "layers": 3},
    "activation": "quick_gelu",
}


def cases():
    """Every `Case`, small ones first within a source."""
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
    yield from pair_cases()


def pair_cases():
    small, usual = {"width": 256, "heads": 4, "layers": 4}, {"width": 512, "heads": 8, "layers": 12}
    tower = {"sizes": SIZES[:1], "run": run_pair}
    create = lambda: open_clip_convnext("convnextv2_atto", 256, 224, small, init_logit_bias=LOGIT_BIAS)  # noqa: E731
    yield Case("open_clip", "clip/convnext_v2_atto", create, arguments={"init_logit_bias": LOGIT_BIAS}, **tower)
    create = lambda: open_clip_convnext("convnextv2_tiny", 512, 224, usual)  # noqa: E731
    yield Case("open_clip", "clip/convnext_v2_tiny", create, **tower)
    yield Case("open_clip", "clip/convnext_base", lambda: open_clip_named("convnext_base"), **tower)
    quick = "ViT-B-32-quickgelu"
    yield Case("open_clip", f"clip/{quick}", lambda: open_clip_named(quick), **tower)
    row, sizes = MLP_PAIR, ((160, 160),)
    create = lambda: open_clip_convnext("convnext_tiny", 192, 160, MLP_PAIR["text"], "mlp")  # noqa: E731
    yield Case("open_clip", "clip", create, run_pair, row=row, sizes=sizes, label="convnext_tiny_mlp")
    create = lambda: transformers_clip(HF_PAIR)  # noqa: E731
    yield Case("transformers", "clip", create, run_pair, row=HF_PAIR, sizes=sizes, label="ViT-small-32")


# Writing


def write_case(case, folder):
    """Computes a case; `case.json` appears only when the other two files are complete."""
    import torch
    from safetensors.torch import save_file

    started, folder = time.monotonic(), folder / case.name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "case.json").unlink(missing_ok=True)
    model = case.create().eval()
    randomise(model, SEED)
    with torch.no_grad():
        arrays = case.run(model, case)
    state = {key: value.detach().clone().contiguous() for key, value in model.state_dict().items()}
    replace(folder / "model.safetensors", lambda path: save_file(state, path))
    replace(folder / "reference.npz", lambda path: np.savez(path, **arrays))
    description = {
        "model": case.model,
        "row": case.row,
        "arguments": case.arguments,
        "library": f"{case.source} {version_of(case.source)}",
        "tolerance": TOLERANCE,
        "key": key_of(case.source),
    }
    replace(folder / "case.json", lambda path: path.write_text(json.dumps(description, indent=1), encoding="utf-8"))
    extremes = {
        name: f"{np.abs(a).max():.2g}" for name, a in arrays.items() if "image" not in name and "token" not in name
    }
    return time.monotonic() - started, extremes


def replace(path, write):
    """Lets `write` make the file under another name and gives it its own when it is whole."""
    temporary = path.with_name(f".tmp-{path.name}")
    write(temporary)
    os.replace(temporary, path)


def version_of(source):
    return importlib.metadata.version(LIBRARIES[source])


def key_of(source):
    """Changes when this script or a library that takes part does."""
    digest = hashlib.sha256(Path(__file__).read_bytes())
    for name in (LIBRARIES[source], "torch", "timm", "numpy"):
        digest.update(f"{name} {importlib.metadata.version(name)}".encode())
    return digest.hexdigest()


def is_current(case, folder):
    try:
        return json.loads((folder / case.name / "case.json").read_text(encoding="utf-8"))["key"] == key_of(case.source)
    except (OSError, ValueError, KeyError):
        return False


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", default="*", metavar="PATTERN", help="names to compute, e.g. 'timm-*'")
    parser.add_argument("--list", action="store_true", help="print the names and stop")
    options = parser.parse_args()
    wanted = [case for case in cases() if fnmatch.fnmatchcase(case.name, options.only)]
    if options.list:
        print("\n".join(case.name for case in wanted))
        return
    todo = [case for case in wanted if not is_current(case, options.folder)]
    print(f"{len(wanted) - len(todo)} of {len(wanted)} oracles are up to date")
    if not todo:
        return
    declare_torchvision_operators()
    for case in todo:
        seconds, extremes = write_case(case, options.folder)
        print(f"{case.name}: {seconds:.1f} s; largest values {extremes}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
