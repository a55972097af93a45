"""Oracle cases of MobileCLIP by Apple's own code, where a checkout of github.com/apple/ml-mobileclip lies on the disk.

    python tests/oracles.py build/oracles --apple ml-mobileclip --only 'ml_mobileclip-*'

Its code stays in its folder, under its own licence, and is run as it is: a random model of each of its configurations
writes the file, and its modules' outputs are what ours are compared with. The suite does without.
"""

import dataclasses
import functools
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

from oracle_case import SEED, Case
from oracles_mobileclip import pieces_of
from oracles_pairs import run_pair

import clip

SOURCE = "ml_mobileclip"
LAYER_SCALE = 0.25  # at 0.5 activations pass 100, and rounding alone moves Apple's own gradient of logit_scale by 2e-5
CONFIGURATIONS = {"s0": "MobileCLIP-S0", "s1": "MobileCLIP-S1", "s2": "MobileCLIP-S2"}


def cases(checkout):
    """Every `Case` of a checkout. MobileCLIP-B's row says where Apple's code departs from open_clip's."""
    for configuration, name in CONFIGURATIONS.items():
        create = functools.partial(create_apples, checkout, f"mobileclip_{configuration}")
        yield apple_case(f"clip/{name}", create, clip.VARIANTS[name])
    open_clips = clip.VARIANTS["MobileCLIP-B"]
    row = dataclasses.replace(open_clips, image=dataclasses.replace(open_clips.image, epsilon=1e-5, stem_padding=1))
    create = functools.partial(create_apples, checkout, "mobileclip_b")
    yield apple_case("clip", create, row, row=row.to_dict(), label="MobileCLIP-B")


def apple_case(model, create, pair, **fields):
    return Case(SOURCE, model, create, run, sizes=((pair.image_size,) * 2,), pieces=pieces_of(pair), **fields)


def create_apples(checkout, configuration):
    """Apple's model in its training form, every branch of it."""
    checkout = str(Path(checkout).resolve())
    if checkout not in sys.path:
        sys.path.insert(0, checkout)
    import mobileclip

    return mobileclip.create_model_and_transforms(configuration, reparameterize=False)[0]


def version():
    """The commit of the checkout that was imported."""
    import mobileclip

    command = ["git", "-C", str(Path(mobileclip.__file__).parent), "rev-parse", "--short=12", "HEAD"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def run(model, case):
    """`run_pair` of Apple's model, with positions, class token and LayerScale of a size that shows."""
    import torch

    generator = torch.Generator().manual_seed(SEED)
    for name, parameter in model.image_encoder.named_parameters():
        if name.endswith(("cls_token", "pos_embed")):
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    for name, parameter in model.named_parameters():
        if "layer_scale" in name:
            parameter.mul_(LAYER_SCALE)
    return run_pair(in_open_clips_names(model), case)


def in_open_clips_names(model):
    """Apple's modules where `oracles_pairs.inner_modules` looks for timm's and open_clip's."""
    text, image = model.text_encoder, model.image_encoder.model
    blocks = SimpleNamespace(resblocks=text.transformer)
    text = SimpleNamespace(token_embedding=text.embedding_layer, transformer=blocks, ln_final=text.final_layer_norm)
    trunk = vit_trunk(image) if hasattr(image, "patch_emb") else mci_trunk(image)
    encoders = {"encode_image": model.encode_image, "encode_text": model.encode_text}
    visual = SimpleNamespace(trunk=trunk)
    return SimpleNamespace(visual=visual, text=text, logit_scale=model.logit_scale, **encoders)


def mci_trunk(image):
    """Of the flat list `network` the stages: downsampling stands between them, and positions before the last."""
    stages = [image.network[index] for index in (0, 2, 4, 7)]
    head = SimpleNamespace(global_pool=image.head.pool)
    return SimpleNamespace(stem=image.patch_embed, stages=stages, final_conv=image.conv_exp, head=head)


def vit_trunk(image):
    """The dropout is where patches, positions and class token are first together."""
    return SimpleNamespace(norm_pre=image.emb_dropout, blocks=image.transformer, norm=image.post_transformer_norm)
