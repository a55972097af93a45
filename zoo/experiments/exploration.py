"""Experiment 1: what the pair is made of, among all the pairs that the zoo builds."""

import clip
from zoo.experiments.plots import plot_sizes
from zoo.experiments.setting import Outcome, Setting
from zoo.models.info import model_info
from zoo.utils import report
from zoo.weights import native
from zoo.weights.describe import describe
from zoo.weights.published import tags
from zoo.weights.schema import CLIP

KINDS = {"ViT": clip.ViT, "ConvNeXt": clip.ConvNeXt, "ResNet": clip.ResNet, "MobileCLIP": clip.MCi}


def run(setting: Setting) -> Outcome:
    own, variants = own_facts(setting), [variant_facts(name) for name in clip.VARIANTS]
    path = setting.folder / "exploration-sizes.png"
    here = own["flops"] and (f"this pair: {own['name']}", own["flops"] / 1e9, own["parameters"] / 1e6)
    plot_sizes(path, groups_of(variants), here)
    header = ["pair", "image tower", "parameters", "image", "context", "vocabulary", "D", "GFLOPs", "published weights"]
    rows = [
        [
            row["name"],
            row["kind"],
            f"{row['parameters']:,}",
            row["image_size"],
            row["context_length"],
            f"{row['vocabulary']:,}",
            row["embed_dim"],
            f"{row['flops'] / 1e9:.1f}",
            row["published"],
        ]
        for row in variants
    ]
    return Outcome(
        "The pair, and its relations",
        ("parameters in the pair", f"{own['parameters'] / 1e6:.1f} M"),
        {"model": own, "variants": variants},
        (
            report.table(["", own["name"]], list(facts_table(own).items())),
            report.figure(
                path,
                f"The {len(variants)} pairs that the zoo builds. Names that would overlap are left out.",
            ),
            report.details(f"All {len(variants)} pairs in numbers", report.table(header, rows)),
        ),
    )


def own_facts(setting: Setting) -> dict:
    """The pair at hand, read off its towers; of towers of the user's own the vocabulary is not known."""
    model, info = setting.loaded.model, setting.loaded.info
    row = native.row_of(CLIP, describe(model).arguments["variant"]) if model.architecture else None
    towers = {"image": model.image_encoder.count_params(), "text": model.text_encoder.count_params()}
    return {
        "name": info.name,
        "parameters": model.count_params(),
        "image_parameters": towers["image"],
        "text_parameters": towers["text"],
        "flops": info.flops,
        "image_size": info.input[0],
        "context_length": int(setting.loaded.tokenizer(["a"]).shape[1]),
        "vocabulary": row and row.text.vocabulary_size,
        "embed_dim": int(model.image_encoder.output_shape[-1]),
        "logit_scale": setting.pipeline.scale,
        "logit_bias": setting.pipeline.bias,
        "licence": info.licence,
    }


def variant_facts(name: str) -> dict:
    info, pair = model_info(f"{CLIP}/{name}"), clip.VARIANTS[name]
    return {
        "name": name,
        "kind": next(kind for kind, row in KINDS.items() if isinstance(pair.image, row)),
        "parameters": info.parameters,
        "flops": info.flops,
        "image_size": pair.image_size,
        "context_length": pair.text.context_length,
        "vocabulary": pair.text.vocabulary_size,
        "embed_dim": pair.embed_dim,
        "published": len(tags(info.name)),
    }


def groups_of(variants: list[dict]) -> dict[str, list[tuple[str, float, float]]]:
    """{kind of image tower: [(name, GFLOPs, millions of parameters)]}."""
    groups = {kind: [] for kind in KINDS}
    for row in variants:
        groups[row["kind"]].append((row["name"], row["flops"] / 1e9, row["parameters"] / 1e6))
    return groups


def facts_table(own: dict) -> dict[str, str]:
    share = own["image_parameters"] / own["parameters"]
    return {
        "parameters": f"{own['parameters']:,}",
        "of them in the image tower": f"{own['image_parameters']:,} ({report.percent(share)})",
        "in the text tower": f"{own['text_parameters']:,}",
        "work": f"{own['flops'] / 1e9:.2f} GFLOPs a picture and caption" if own["flops"] else "not known",
        "input resolution": f"{own['image_size']} × {own['image_size']} pixels",
        "context length": f"{own['context_length']} tokens",
        "vocabulary": f"{own['vocabulary']:,} tokens" if own["vocabulary"] else "not known",
        "embedding": f"{own['embed_dim']} dimensions",
        "1 / temperature": f"{own['logit_scale']:.2f}"
        + (f", bias {own['logit_bias']:.2f}" if own["logit_bias"] else ""),
        "licence": own["licence"] or "not said",
    }
