"""Names of other libraries, and what they are called here. Strings only; this module imports the standard library.

docs/coming_from.md is made from this table, a test resolves every name in it, and an unknown name or option in
`convnext`, `clip`, `zoo` and on the command line is answered from it. It stands lowest so that all of them can read it.
"""

import re
from typing import NamedTuple


class Elsewhere(NamedTuple):
    """One row.

    Fields:
        theirs: a call, name, option or command of the other library.
        ours: the same here; "" if there is none.
        note: what differs, or what to do where there is none.
    """

    theirs: str
    ours: str
    note: str = ""


DOCUMENTS = "the source documents"


def _rows(*rows):
    return tuple(Elsewhere(*row) for row in rows)


ELSEWHERE: dict[str, tuple[Elsewhere, ...]] = {
    "timm": _rows(
        ('timm.create_model("convnextv2_tiny")', 'zoo.create_model("convnextv2_tiny")'),
        ("pretrained=True", 'zoo.create_model("convnextv2_tiny.fcmae_ft_in1k")', "the tag is part of the name"),
        ("checkpoint_path=FILE", "weights=FILE", "an argument of `zoo.create_model`"),
        ("num_classes=0", 'include_top=False, pooling="avg"'),
        ('global_pool=""', "include_top=False", "with num_classes=0"),
        ("features_only=True", "convnext.feature_maps(model)"),
        ("drop_rate=0.1", "dropout_rate=0.1"),
        ("ls_init_value=1e-6", "layer_scale_init_value=1e-6"),
        ("in_chans=4", "input_shape=(224, 224, 4)"),
        ("img_size=64", "input_shape=(64, 64, 3)", "of a CLIP model: image_size=64"),
        ("output_stride=16", "downsample_strides=(2, 2, 1)", "stride 1 without dilation"),
        ("logits", "classifier_activation=None", "the default is a softmax"),
        ('timm.list_models("convnext*")', 'zoo.list_models("convnext*")'),
        ("timm.list_pretrained()", 'zoo.list_models("*", weights="*")'),
        ("model.default_cfg", "zoo.model_info(name)"),
        ("timm.data.resolve_model_data_config(model)", "zoo.model_info(name).preprocess"),
        ("timm.data.create_transform(**config)", "zoo.model_info(name).preprocess.eval_transform()"),
        ("model.forward_features(x)", "convnext.feature_maps(model)(x)[-1]", "before the head norm; channels last"),
        ("model.reset_classifier(10)", "zoo.create_model(name, num_classes=10)"),
    ),
    "open_clip": _rows(
        ('open_clip.create_model("ViT-B-32")', 'clip.create_clip("ViT-B-32")'),
        (
            "open_clip.create_model_and_transforms(name, tag)",
            'zoo.load(f"{name}.{tag}")',
            "gives model, transform, tokenizer, info",
        ),
        ("open_clip.create_model_from_pretrained(name)", "zoo.load(name)", '"hf-hub:owner/name" too'),
        (
            "open_clip.get_tokenizer(name)",
            "clip.tokenize",
            "`truncate=True` cuts; without it a text that is too long raises an error",
        ),
        ("open_clip.list_models()", 'zoo.list_models("clip/*")'),
        ("open_clip.list_pretrained()", 'zoo.list_models("clip/*", weights="*")'),
        (
            "model.encode_image(x, normalize=True)",
            "model.encode_image(x)",
            "x is channels last; `normalize=False` for the features as they are",
        ),
        ("logit_scale.exp() * image @ text.T", "model.logits(image, text)"),
        (
            "open_clip.build_zero_shot_classifier(…)",
            "clip.zero_shot_classifier(model, class_names, templates)",
            "a model instead of a matrix",
        ),
        ("open_clip.OPENAI_IMAGENET_TEMPLATES", 'clip.TEMPLATES["imagenet"]'),
        ("open_clip.ClipLoss", "clip.clip_loss"),
        ("open_clip.SigLipLoss", "clip.siglip_loss"),
        ("open_clip.CustomTextCLIP", "clip.CLIP"),
        ("TimmModel", "clip.ConvNeXt", "the config of a ConvNeXt image tower"),
        ("force_quick_gelu=True", 'activation="quick_gelu"', "OpenAI's own models have it by default"),
        ("image_mean=…", "preprocess=PreprocessSpec(mean=…)", "an argument of `zoo.ClipPipeline` and `zoo.save`"),
    ),
    "open_clip's command line": _rows(
        ("python -m open_clip_train.main", "zoo train contrastive"),
        *((f"--{name}", f"--{name}", "the same") for name in ("model", "train-data", "epochs", "seed")),
        ("--batch-size", "--batch-size", "over all devices and processes, not of each GPU"),
        ("--val-data", "--validation-data"),
        ("--csv-img-key", "--image-key"),
        ("--csv-caption-key", "--caption-key"),
        ("--csv-separator", "--csv-separator", "accepted; the separator is detected from the header"),
        ("--lr", "--learning-rate"),
        ("--wd", "--weight-decay"),
        ("--warmup", "--warmup-steps", "default: a tenth of the run, not 10,000 steps"),
        ("--grad-clip-norm", "--clip-norm"),
        (
            "--precision amp|amp_bf16|fp32",
            "--precision float16|bfloat16|float32",
            "weights stay float32, as under autocast; pure fp16 and bf16 have no counterpart",
        ),
        ("--workers", "--threads", "threads, not processes"),
        (
            "--accum-freq 4",
            "--accumulate 4 --batch-size 128",
            "theirs multiplies --batch-size, ours divides it; --accum-freq multiplies too: 32 becomes 128 in 4 chunks",
        ),
        ("--grad-checkpointing", "--checkpoint-activations"),
        ("--lock-image", "--lock-image", "the same"),
        ("--lock-text", "--lock-text", "the same"),
        ("--siglip", "--loss siglip"),
        ("--logs L --name N", "--output L/N"),
        ("--name", "--output", "with --logs, the output folder is LOGS/NAME"),
        ("--report-to tensorboard", "--report-to tensorboard", "events are in the output folder's tensorboard/"),
        ("--pretrained", "--weights", "a tag or a file"),
        ("--resume latest", "--resume", "a run resumes in its own --output folder"),
        ("--log-every-n-steps", "--log-every"),
        ("--force-image-size", "--image-size"),
        ("--save-frequency", "--save-every", "in steps; default: each epoch"),
        ("--save-most-recent", "--save-every", "the newest two checkpoints are kept"),
        ("--delete-previous-checkpoint", "--save-every", "the newest two checkpoints are kept"),
        ("--val-frequency", "--validate-every", "in steps; default: each epoch"),
        ("--zeroshot-frequency", "--validate-every", "in steps, with --classes"),
        ("--distill-model", "--teacher", "name with its tag: ViT-B-32.openai"),
        ("--distill-pretrained", "--teacher", "name with its tag: ViT-B-32.openai"),
        ("--imagenet-val", "--validation-data", "with --classes; or `zoo eval zero-shot` after training"),
        ("--imagenet-v2", "--validation-data", "with --classes; or `zoo eval zero-shot` after training"),
        ("--dataset-type", "--train-data", "the kind of data is recognised from the path"),
        ("--train-num-samples", "--epochs", "an epoch is one pass over the data; shards are counted"),
        ("--val-num-samples", "--validation-data", "all of it is used"),
        ("--dataset-resampled", "--epochs", "an epoch is one pass over the data, in a new order"),
        ("--lr-scheduler", "--warmup-steps", "always a linear warm-up and a cosine"),
        ("--opt", "--learning-rate", "always AdamW"),
        ("--beta1", "--learning-rate", "AdamW's β₁ is fixed"),
        ("--beta2", "--learning-rate", "AdamW's β₂ is fixed"),
        ("--eps", "--learning-rate", "AdamW's ε is fixed"),
        ("--force-quick-gelu", "--model", "name with a suffix: ViT-B-32-quickgelu"),
        ("--force-context-length", "--context-length"),
        ("--torchcompile", "--backend", "steps are compiled where the backend compiles"),
        ("--device", "--backend", "the backend's default device is used"),
        ("--local-loss", "--local-processes", "the loss is always that of the whole batch, with gradients"),
        ("--gather-with-grad", "--local-processes", "the loss is always that of the whole batch, with gradients"),
        ("--dist-url", "--coordinator", "with --processes and --process-id; JAX and PyTorch"),
        ("--dist-backend", "--coordinator", "chosen automatically: gloo on CPUs, NCCL on GPUs"),
        ("--image-mean", "", "of a name: those of its published weights, else OpenAI's"),
        ("--image-std", "", "of a name: those of its published weights, else OpenAI's"),
        ("--aug-cfg", "", "contrastive training crops at random, from 0.9 of the image, as open_clip does by default"),
        ("--wandb-project-name", "--report-to", "tensorboard"),
        ("--cache-dir", "", "published weights lie in Hugging Face's cache: set HF_HOME"),
        ("--debug", "--traceback"),
    ),
    "OpenAI's clip": _rows(
        (
            'clip.load("ViT-B/32")',
            'clip.load("ViT-B/32")',
            "gives (model, preprocess); preprocess returns float32 (H, W, 3); `device` and `jit` are not used",
        ),
        ("clip.available_models()", "clip.available_models()", "the same"),
        ("clip.tokenize(texts)", "clip.tokenize(texts)", "the same ids, int32 (B, 77)"),
        ("model.encode_image(image)", "model.encode_image(image, normalize=False)", "normalised unless told otherwise"),
        ("model.encode_text(text)", "model.encode_text(text, normalize=False)", "normalised unless told otherwise"),
        (
            "logits_per_image, logits_per_text = model(image, text)",
            "model.logits(image_embeddings, text_embeddings)",
            "its transpose is logits_per_text",
        ),
        ("model.visual", "model.image_encoder", "a `keras.Model`"),
        ("model.visual.input_resolution", "model.image_encoder.input_shape[1]"),
        ("model.dtype", "keras.config.set_dtype_policy(…)", "before the model is created"),
        ("clip.model.build_model(state_dict)", 'zoo.create_model("clip/ViT-B-32", weights=FILE)'),
        ("clip.simple_tokenizer.SimpleTokenizer", "clip.Tokenizer"),
    ),
    "transformers": _rows(
        ('AutoModel.from_pretrained("facebook/convnext-tiny-224")', 'zoo.load("convnext_tiny.fb_in1k")'),
        ('CLIPModel.from_pretrained("openai/clip-vit-base-patch32")', 'zoo.load("ViT-B-32.openai")'),
        ("from_pretrained(folder)", "zoo.load(folder)", 'also "hf-hub:owner/name"'),
        ("model.save_pretrained(folder)", 'zoo.export_weights(model, folder, format="transformers")'),
        ("ConvNextForImageClassification", "convnext.create_convnext_v1", "classifier_activation=None for logits"),
        ("ConvNextV2ForImageClassification", "convnext.create_convnext_v2", "classifier_activation=None for logits"),
        ("ResNetForImageClassification", "convnext.create_resnet", "classifier_activation=None for logits"),
        ("ConvNextModel", 'convnext.create_convnext_v1(include_top=False, pooling="avg")'),
        ("ConvNextV2Model", 'convnext.create_convnext_v2(include_top=False, pooling="avg")'),
        ("ConvNextBackbone", "convnext.feature_maps(model)"),
        ("ConvNextConfig", "convnext.Variant", "or its keys in the JSON of `zoo train classify`"),
        ("ConvNextV2Config", "convnext.Variant", "or its keys in the JSON of `zoo train classify`"),
        ("ConvNextImageProcessor", "zoo.preprocess.PreprocessSpec"),
        ("AutoImageProcessor", "zoo.preprocess.PreprocessSpec"),
        ("CLIPModel", "clip.CLIP"),
        ("CLIPProcessor", "zoo.load(name)", "gives model, transform, tokenizer, info"),
        ("CLIPTokenizer", "clip.tokenize"),
        ("get_image_features(pixel_values)", "model.encode_image(images, normalize=False)"),
        ("get_text_features(input_ids)", "model.encode_text(tokens, normalize=False)"),
        ("logits_per_image", "model.logits(image_embeddings, text_embeddings)"),
        ('pipeline("zero-shot-image-classification")', "zoo.ClipPipeline(name).classify(images, class_names)"),
        ("Trainer", "zoo.train", "or `zoo train classify`"),
        ("TrainingArguments", "zoo.training.config.ClassifierConfig"),
    ),
    "keras.applications": _rows(
        ("ConvNeXtTiny(weights=None)", 'convnext.create_convnext_v1("tiny")'),
        ("classes=10", "num_classes=10"),
        ('include_top=False, pooling="avg"', 'include_top=False, pooling="avg"', "the same"),
        ("preprocess_input(x)", "zoo.model_info(name).preprocess.eval_transform()", "not in the model"),
        ("ResNet50(weights=None)", 'convnext.create_resnet("50")', "v1.5, the network of torchvision's weights"),
    ),
    DOCUMENTS: _rows(
        ("scripts/benchmark_inference.py", "zoo bench --preset towers"),
        ("scripts/benchmark_optimization.py", "zoo bench --preset runtimes"),
        ("scripts/export_onnx.py --output model.onnx", "zoo export clip/convnext_v2_tiny --output model.onnx"),
        ("model_configs/convnext_v2_tiny.json", "zoo info clip/convnext_v2_tiny"),
        ("train.py --config FILE", "zoo train classify --config FILE"),
        ("clip_paper_exploration.py", "zoo experiment all"),
        ("model_exploration()", "zoo experiment exploration"),
        ("zero_shot_classification()", "zoo experiment classification"),
        ("cifar_zero_shot()", "zoo experiment cifar10"),
        ("mnist_zero_shot()", "zoo experiment mnist"),
        ("text_to_image_retrieval()", "zoo experiment retrieval"),
        ("embedding_space_analysis()", "zoo experiment embedding_space"),
        ("performance_benchmark()", "zoo experiment performance"),
        ("temperature_scaling_analysis()", "zoo experiment temperature"),
        ("prompt_engineering_deep_dive()", "zoo experiment prompts"),
        ("clip_optimization.py", "zoo bench --preset optimizations"),
        ("demo_text_caching()", "zoo bench --preset cache"),
        ("fp16_quantization_benchmark()", "zoo bench --preset precision"),
        ("batch_processing_benchmark()", "zoo bench --preset batching"),
        ("model_variants_benchmark()", "zoo bench --preset variants"),
        ("combined_optimizations()", "zoo bench --preset combined"),
        ("image_search()", "zoo bench --preset search", "and `zoo search`, the application"),
        ("OptimizedClip", "zoo.ClipPipeline"),
        ("TextEmbeddingCache", "zoo.embeddings.TextCache"),
        ("ScriptTrainingArguments", "zoo.training.config.ClassifierConfig"),
        ("CustomConfig", "convnext.Variant"),
        ("CustomPreTrainedModel", "keras.Model", "with `zoo.save` and `zoo.load`"),
        ("ConvNextLayerNorm", "keras.layers.LayerNormalization", "epsilon 1e-6"),
        ("ConvNextEmbeddings", "convnext.model.stem"),
        ("ConvNextLayer", "convnext.model.block"),
        ("ConvNextStage", "convnext.feature_maps(model)", "the output of each stage"),
        ("ConvNextEncoder", 'convnext.create_convnext_v1(include_top=False)'),
    ),
}  # fmt: skip


def called_here(name: str) -> str:
    """Return " open_clip's `ClipLoss` is `clip.clip_loss` here." for a message, with the leading space, or ""."""
    wanted = _key(name[:200])  # a name may be anything that a user typed
    for library, rows in ELSEWHERE.items():
        for row in rows:
            if _key(row.theirs) == wanted != _key(row.ours):
                return f" {_owner(library)} `{row.theirs}` {_is(row)}."
    return ""


def renamed(command: str) -> dict[str, str]:
    """Return {a function of the source documents: the name it has after this command}."""
    rows = (row for row in ELSEWHERE[DOCUMENTS] if row.ours.startswith(f"{command} "))
    return {_key(row.theirs): row.ours.removeprefix(f"{command} ") for row in rows}


def _owner(library):
    if library == DOCUMENTS:
        return "The source documents'"
    name = library.removesuffix("'s command line")
    if "'" in name:
        return name
    return f"{name}'" if name.endswith("s") else f"{name}'s"


def _is(row):
    if not row.ours:
        return f"has no counterpart: {row.note}"
    return f"is `{row.ours}` here{f': {row.note}' if row.note else ''}"


def _key(text):
    """The name in "open_clip.create_model(name)", "--accum-freq 4", "drop_rate=0.1", "scripts/train.py --config"."""
    word = re.split(r"[\s(=|]", text.strip())[0]
    if word.startswith("--"):
        return word
    word = word.rpartition("/")[2]
    return word.removesuffix(".py").rpartition(".")[2] if not word.endswith(".json") else word
