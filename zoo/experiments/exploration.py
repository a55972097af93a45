"""Experiment 1: size and cost of the pair, compared with every pair the zoo can build."""

import clip
from zoo.experiments.context import Context, Outcome
from zoo.experiments.plots import plot_sizes
from zoo.models.info import model_info
from zoo.utils import report
from zoo.weights.describe import describe
from zoo.weights.published import tags
from zoo.weights.schema import CLIP

KINDS = {"ViT": clip.ViT, "ConvNeXt": clip.ConvNeXt, "ResNet": clip.ResNet, "MobileCLIP": clip.MCi}


def run(context: Context) -> Outcome:
    own, variants = _own_facts(context), [_variant_facts(name) for name in clip.VARIANTS]
    path = context.folder / "exploration-sizes.png"
    here = own["flops"] and (f"this model: {own['name']}", own["flops"] / 1e9, own["parameters"] / 1e6)
    plot_sizes(path, _group_by_kind(variants), here)
    header = ["name", "image tower", "parameters", "image", "context", "vocabulary", "D", "GFLOPs", "published weights"]
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
        "Size and cost",
        ("parameters", f"{own['parameters'] / 1e6:.1f} M"),
        {"model": own, "variants": variants},
        (
            report.table(["", own["name"]], list(_facts_table(own).items())),
            report.figure(
                path, f"The {len(variants)} CLIP models of this package. Names that would overlap are left out."
            ),
            report.details(f"All {len(variants)} CLIP models", report.table(header, rows)),
        ),
    )


def _own_facts(context: Context) -> dict:
    """Return the facts of the pair in use; the vocabulary of a custom text tower is unknown."""
    model, info = context.pair.model, context.pair.info
    row = describe(model).row if model.architecture else None
    return {
        "name": context.name,
        "parameters": model.count_params(),
        "image_parameters": model.image_encoder.count_params(),
        "text_parameters": model.text_encoder.count_params(),
        "flops": info and info.flops,
        "image_size": model.image_encoder.input_shape[1],
        "context_length": int(context.pair.tokenizer(["a"]).shape[1]),
        "vocabulary": row and row.text.vocabulary_size,
        "embed_dim": int(model.image_encoder.output_shape[-1]),
        "logit_scale": context.pipeline.scale,
        "logit_bias": context.pipeline.bias,
        "licence": info and info.licence,
    }


def _variant_facts(name: str) -> dict:
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


def _group_by_kind(variants: list[dict]) -> dict[str, list[tuple[str, float, float]]]:
    """Return {kind of image tower: [(name, GFLOPs, millions of parameters)]}."""
    return {
        kind: [(row["name"], row["flops"] / 1e9, row["parameters"] / 1e6) for row in variants if row["kind"] == kind]
        for kind in KINDS
    }


def _facts_table(own: dict) -> dict[str, str]:
    share = own["image_parameters"] / own["parameters"]
    bias = f", bias {own['logit_bias']:.2f}" if own["logit_bias"] else ""
    return {
        "parameters": f"{own['parameters']:,}",
        "image tower": f"{own['image_parameters']:,} parameters ({report.percent(share)})",
        "text tower": f"{own['text_parameters']:,} parameters",
        "cost": f"{own['flops'] / 1e9:.2f} GFLOPs per image and caption" if own["flops"] else "unknown",
        "image size": f"{own['image_size']} × {own['image_size']} pixels",
        "context length": f"{own['context_length']} tokens",
        "vocabulary": f"{own['vocabulary']:,} tokens" if own["vocabulary"] else "unknown",
        "embedding": f"{own['embed_dim']} dimensions",
        "logit scale": f"{own['logit_scale']:.2f}{bias}",
        "licence": own["licence"] or "not stated",
    }
