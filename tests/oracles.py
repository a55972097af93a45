"""What the reference implementations answer, on random weights: computed once, shared by every backend's tests.

    python tests/oracles.py build/oracles                    # skips what is up to date
    python tests/oracles.py build/oracles --only 'timm-*'    # --list shows the names
    python tests/oracles.py build/oracles --full             # and those too big for the suite

A case is a folder: `model.safetensors`, the reference's own state dict; `reference.npz`, inputs and outputs, images and
maps as (B, H, W, C); `case.json`, which model of ours it is and how it was made, written last. `zoo.parity` compares.
The pairs are here, the classifiers in oracles_classifiers.py.
"""

import argparse
import fnmatch
import hashlib
import importlib.metadata
import inspect
import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import oracle_case
import oracles_classifiers
from helpers import declare_torchvision_operators
from oracle_case import EOT, LOGIT_BIAS, SEED, SIZES, Case, channels_first, draw_images, draw_tokens, randomise

LIBRARIES = {  # source of a case → the distribution that computes it
    "timm": "timm",
    "transformers": "transformers",
    "open_clip": "open_clip_torch",
    "torchvision": "torchvision",
    "facebook": "timm",  # whose models stand for the authors' code
}


# The reference models


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


# Outputs


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
    yield from oracles_classifiers.classifier_cases()
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
    state = {key: value.detach().clone().contiguous() for key, value in (case.state or own_state)(model).items()}
    replace(folder / "model.safetensors", lambda path: save_file(state, path))
    replace(folder / "reference.npz", lambda path: np.savez(path, **arrays))
    description = {
        "model": case.model,
        "row": case.row,
        "arguments": case.arguments,
        "library": f"{LIBRARIES[case.source]} {version_of(case.source)}",
        "tolerance": case.tolerance,
        "key": key_of(case),
    }
    replace(folder / "case.json", lambda path: path.write_text(json.dumps(description, indent=1), encoding="utf-8"))
    extremes = {
        name: f"{np.abs(a).max():.2g}" for name, a in arrays.items() if "image" not in name and "token" not in name
    }
    return time.monotonic() - started, extremes


def own_state(model):
    return model.state_dict()


def replace(path, write):
    """Lets `write` make the file under another name and gives it its own when it is whole."""
    temporary = path.with_name(f".tmp-{path.name}")
    write(temporary)
    os.replace(temporary, path)


def version_of(source):
    return importlib.metadata.version(LIBRARIES[source])


def key_of(case):
    """Changes when the files that define the case or a library that takes part do."""
    digest = hashlib.sha256()
    for module in (oracle_case, case.run):
        digest.update(Path(inspect.getfile(module)).read_bytes())
    for name in (LIBRARIES[case.source], "torch", "timm", "numpy"):
        digest.update(f"{name} {importlib.metadata.version(name)}".encode())
    return digest.hexdigest()


def is_current(case, folder):
    try:
        return json.loads((folder / case.name / "case.json").read_text(encoding="utf-8"))["key"] == key_of(case)
    except (OSError, ValueError, KeyError):
        return False


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", default="*", metavar="PATTERN", help="names to compute, e.g. 'timm-*'")
    parser.add_argument("--full", action="store_true", help="also the cases too big for the suite")
    parser.add_argument("--list", action="store_true", help="print the names and stop")
    options = parser.parse_args()
    wanted = [case for case in cases() if options.full or not case.full]
    wanted = [case for case in wanted if fnmatch.fnmatchcase(case.name, options.only)]
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
