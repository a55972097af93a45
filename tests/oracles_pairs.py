"""Oracle cases of pairs: open_clip's and transformers' CLIP, tower by tower and piece by piece."""

from oracle_case import EOT, LOGIT_BIAS, SEED, Case, channels_first, draw_images, draw_tokens

import clip

COUNT = 3  # images and captions

# The reference models


def open_clip_named(name):
    """A model of open_clip's own configuration."""
    import open_clip

    return open_clip.create_model(name)


def open_clip_pair(pair, **options):
    """open_clip's model of a row of ours; a timm trunk is configured as open_clip's own ConvNeXt pairs are."""
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    image, size = pair.image, {"image_size": pair.image_size}
    if isinstance(image, clip.ConvNeXt):
        trunk = {"timm_model_name": f"{image.family}_{image.variant}", "timm_proj": image.projection}
        drop = {"timm_drop": 0.0, "timm_drop_path": 0.1}
        vision = CLIPVisionCfg(timm_model_pretrained=False, timm_pool="", **trunk, **drop, **size)
    elif isinstance(image, clip.ResNet):
        vision = CLIPVisionCfg(layers=list(image.layers), width=image.width, patch_size=None, **size)
    else:
        fields = {key: getattr(image, key) for key in ("width", "layers", "patch_size", "head_width", "mlp_ratio")}
        vision = CLIPVisionCfg(**fields, **size)
    text = CLIPTextCfg(width=pair.text.width, heads=pair.text.heads, layers=pair.text.layers)
    return CLIP(pair.embed_dim, vision, text, quick_gelu=pair.activation == "quick_gelu", **options)


def transformers_pair(pair):
    """transformers' CLIP of a row of ours that has a ViT."""
    import transformers

    image, text = pair.image, pair.text
    vision_config = {
        "hidden_size": image.width,
        "intermediate_size": int(image.width * image.mlp_ratio),
        "num_hidden_layers": image.layers,
        "num_attention_heads": image.width // image.head_width,
        "patch_size": image.patch_size,
        "image_size": pair.image_size,
        "hidden_act": pair.activation,
    }
    text_config = {
        "hidden_size": text.width,
        "intermediate_size": 4 * text.width,
        "num_hidden_layers": text.layers,
        "num_attention_heads": text.heads,
        "hidden_act": pair.activation,
        "eos_token_id": EOT,
    }
    config = {"projection_dim": pair.embed_dim, "vision_config": vision_config, "text_config": text_config}
    return transformers.CLIPModel(transformers.CLIPConfig(**config))


# The pieces


def some(count):
    """The first block, the last, and three between them."""
    return sorted({0, count // 4, count // 2, 3 * count // 4, count - 1})


def pieces_of(pair):
    """What is compared of a pair of this row."""
    image, blocks = pair.image, [f"text_block_{i}" for i in some(pair.text.layers)]
    if isinstance(image, clip.ViT):
        inner = [f"image_block_{i}" for i in some(image.layers)] + ["image_pooled"]
    else:
        inner = [f"image_stage_{stage}" for stage in range(4)]
        inner += [] if isinstance(image, clip.ResNet) else ["image_pooled"]  # the attention pool projects as well
    return [
        *("image_stem", *inner, "image_embedding", "image_normalized"),
        *("text_token_embedding", *blocks, "text_pooled", "text_embedding", "text_normalized"),
        *("logits", "loss", "logit_scale_gradient"),
    ]


def inner_modules(model):
    """{piece: the module of open_clip or transformers whose output it is}."""
    if hasattr(model, "vision_model"):
        image, text = model.vision_model, model.text_model
        ends = {"image_stem": image.pre_layrnorm, "image_pooled": image.post_layernorm}
        ends |= {"text_token_embedding": text.embeddings.token_embedding, "text_pooled": text.final_layer_norm}
        return {**ends, **blocks_of("image", image.encoder.layers), **blocks_of("text", text.encoder.layers)}
    image, text = model.visual, getattr(model, "text", model)
    ends = {"text_token_embedding": text.token_embedding, "text_pooled": text.ln_final}
    modules = {**ends, **blocks_of("text", text.transformer.resblocks)}
    if hasattr(image, "attnpool"):
        stages = (image.layer1, image.layer2, image.layer3, image.layer4)
        return {**modules, "image_stem": image.avgpool, **stages_of(stages)}
    if hasattr(image, "trunk"):
        return {**modules, **trunk_modules(image.trunk)}
    blocks = blocks_of("image", image.transformer.resblocks)
    return {**modules, "image_stem": image.ln_pre, **blocks, "image_pooled": image.ln_post}


def trunk_modules(trunk):
    """{piece: module} of timm's ConvNeXt, FastViT or ViT."""
    if hasattr(trunk, "blocks"):
        return {"image_stem": trunk.norm_pre, **blocks_of("image", trunk.blocks), "image_pooled": trunk.norm}
    pooled = trunk.head.global_pool if hasattr(trunk, "final_conv") else trunk.head.norm
    return {"image_stem": trunk.stem, **stages_of(trunk.stages), "image_pooled": pooled}


def blocks_of(side, blocks):
    return {f"{side}_block_{index}": blocks[index] for index in some(len(blocks))}


def stages_of(stages):
    return {f"image_stage_{index}": stage for index, stage in enumerate(stages)}


def watch(model, tokens):
    """{piece: array}, filled while the model runs: maps as (B, H, W, C), sequences (B, L, W), pooled ones (B, W)."""
    recorded = {}

    def keep(name):
        def hook(_, __, output):
            output = output[0] if isinstance(output, tuple) else output
            if name == "image_pooled":
                output = output.flatten(1) if output.ndim == 4 else output[:, 0] if output.ndim == 3 else output
            elif name == "text_pooled":
                output = output[range(len(tokens)), tokens.argmax(1)]
            elif output.ndim == 4:
                output = output.permute(0, 2, 3, 1)
            recorded[name] = output.numpy().copy()

        return hook

    for name, module in inner_modules(model).items():
        module.register_forward_hook(keep(name))
    return recorded


# Outputs


def run_pair(model, case):
    """The towers' outputs, their inner pieces, logits, loss, and the loss's derivative by logit_scale."""
    import torch

    (size,) = case.sizes
    images, tokens = draw_images(COUNT, size, SEED), draw_tokens(COUNT, SEED)
    recorded = watch(model, tokens)
    if hasattr(model, "vision_model"):  # transformers
        image = model.get_image_features(pixel_values=channels_first(images)).pooler_output
        text = model.get_text_features(input_ids=torch.from_numpy(tokens).long()).pooler_output
    else:
        image, text = model.encode_image(channels_first(images)), model.encode_text(torch.from_numpy(tokens).long())
    arrays = {"images": images, "tokens": tokens, "image_embedding": image.numpy(), "text_embedding": text.numpy()}
    return {**arrays, **recorded, **score(model, image, text)}


def score(model, image, text):
    """What becomes of two towers' outputs."""
    import torch

    image, text = (torch.nn.functional.normalize(features, dim=-1) for features in (image, text))
    with torch.enable_grad():
        logits = model.logit_scale.exp() * image @ text.T
        if getattr(model, "logit_bias", None) is not None:
            logits = logits + model.logit_bias
        target = torch.arange(len(image))
        cross_entropy = torch.nn.functional.cross_entropy
        loss = (cross_entropy(logits, target) + cross_entropy(logits.T, target)) / 2
        (gradient,) = torch.autograd.grad(loss, model.logit_scale)
    named = {"image_normalized": image, "text_normalized": text, "logits": logits, "loss": loss}
    return {name: value.detach().numpy() for name, value in {**named, "logit_scale_gradient": gradient}.items()}


# The cases

TEXT = clip.Text(128, 2, 3)
NARROW = {  # each in the shape of published rows, named after them
    "RN50-narrow": clip.Pair(48, 96, clip.ResNet((2, 1, 2, 1), 16), TEXT, "quick_gelu"),
    "RN50x4-narrow": clip.Pair(40, 80, clip.ResNet((1, 2, 1, 2), 20), TEXT),  # 80: maps of 5 lose a row and a column
    "ViT-B-16-narrow": clip.Pair(64, 72, clip.ViT(128, 5, 16), TEXT),  # 72: pixels past the last patch
    "ViT-H-14-narrow": clip.Pair(64, 70, clip.ViT(160, 3, 14, 80), TEXT),
    "ViT-g-14-narrow": clip.Pair(64, 70, clip.ViT(176, 3, 14, 88, 4.3637), TEXT),
    "ViT-bigG-14-narrow": clip.Pair(64, 70, clip.ViT(208, 3, 14, 104, 4.9231), TEXT),
    "convnext_tiny_mlp": clip.Pair(192, 160, clip.ConvNeXt("convnext", "tiny", "mlp"), TEXT),
}
SMALL_VIT = clip.Pair(96, 160, clip.ViT(192, 4, 32), TEXT, "quick_gelu")
WIDE_VIT = clip.Pair(64, 84, clip.ViT(160, 3, 14, 80, 4.3637), TEXT)
OWN = ("convnext_v2_tiny", "convnext_v2_atto")  # rows that open_clip has no configuration for
FULL = (
    *("RN50-quickgelu", "RN101-quickgelu", "RN50x4-quickgelu", "RN50x16-quickgelu"),
    *("ViT-S-32-alt", "ViT-M-16", "ViT-B-32-256", "ViT-B-16-quickgelu", "ViT-L-14-quickgelu", "ViT-L-14-336-quickgelu"),
    *("ViT-B-32-quickgelu", "convnext_tiny", "convnext_base", "convnext_base_w", "convnext_large_d"),
)
# The deepest. Its loss has a small derivative by logit_scale, in which larger terms cancel: open_clip's own in float32
# is 9e-6 from that in float64, and its logits 4e-6.
TOLERANCES = {"convnext_large_d": 1e-4}
FULL_TRANSFORMERS = ("ViT-B-16",)


def pair_cases():
    """Every pair's `Case`."""
    for name in OWN:
        bias = {"init_logit_bias": LOGIT_BIAS} if name == "convnext_v2_atto" else {}
        create = lambda name=name, bias=bias: open_clip_pair(clip.VARIANTS[name], **bias)  # noqa: E731
        yield pair_case("open_clip", create, name, bias, full=name != "convnext_v2_atto")
    for label, row in NARROW.items():
        yield own_case("open_clip", lambda row=row: open_clip_pair(row), row, label)
    for label, row in (("ViT-small-32", SMALL_VIT), ("ViT-g-14-narrow", WIDE_VIT)):
        yield own_case("transformers", lambda row=row: transformers_pair(row), row, label)
    for name in FULL:
        yield pair_case("open_clip", lambda name=name: open_clip_named(name), name, full=True)
    for name in FULL_TRANSFORMERS:
        create = lambda name=name: transformers_pair(clip.VARIANTS[name])  # noqa: E731
        yield pair_case("transformers", create, name, full=True)


def pair_case(source, create, name, arguments=None, full=False):
    """A case of a named row, at the row's image size."""
    row = clip.VARIANTS[clip.canonical_name(name)[0]]
    fields = {"sizes": ((row.image_size,) * 2,), "full": full, "pieces": pieces_of(row)}
    fields |= {"tolerance": TOLERANCES[name]} if name in TOLERANCES else {}
    return Case(source, f"clip/{name}", create, run_pair, arguments or {}, **fields)


def own_case(source, create, row, label):
    """A case of a row without a name."""
    sizes = ((row.image_size,) * 2,)
    return Case(source, "clip", create, run_pair, row=row.to_dict(), sizes=sizes, label=label, pieces=pieces_of(row))
