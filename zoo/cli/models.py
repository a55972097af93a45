"""Commands about names, model files and formats."""

import argparse

from zoo.cli.command import Command, argument, words
from zoo.utils.env import BACKENDS

COMMANDS = {
    "list": Command(
        "list models, or published weights for them",
        "zoo.models.names:list_or_raise",
        "zoo.models.names:to_text",
        (
            argument("pattern", nargs="?", default="*", help="shell pattern, e.g. 'convnextv2_*'"),
            argument("--weights", nargs="?", const="*", metavar="TAG", help="list published weights, e.g. 'laion2b*'"),
        ),
        examples=("zoo list 'convnextv2_*'", "zoo list 'clip/*' --weights 'laion2b*'"),
    ),
    "info": Command(
        "show a model's parameters, FLOPs, input, preprocessing and licence",
        "zoo.models.registry:model_info",
        "zoo.models.info:to_text",
        (argument("name", help="e.g. convnextv2_tiny, clip/ViT-B-32, ViT-B-32.openai"),),
        examples=("zoo info convnextv2_tiny.fcmae_ft_in1k",),
    ),
    "convert": Command(
        "convert weights of another library to this package's format",
        "zoo.models.conversion:convert",
        "builtins:str",
        (
            argument("source", help="weight file, folder with its config, or hf-hub:owner/name"),
            argument("path", metavar="OUT", help=".safetensors file to write"),
            argument(
                "--arch", metavar="NAME[.TAG]", help="architecture, needed if the source has no config that names it"
            ),
            argument(
                "--no-ema", dest="ema", action="store_false", help="take raw weights if averaged ones are there too"
            ),
        ),
        backend="model",
        examples=("zoo convert resnet50.pth resnet50.safetensors --arch resnet50",),
    ),
    "export": Command(
        "export a model to one verified ONNX file",
        "zoo.export.command:export",
        "zoo.export.command:to_text",
        (
            argument("name", metavar="NAME|PATH", help="e.g. clip/ViT-B-32, model.safetensors, model.keras"),
            argument("output", metavar="OUT", nargs="?", default=argparse.SUPPRESS, help=".onnx file to write"),
            argument("--output", metavar="OUT", default=argparse.SUPPRESS, help="the same as OUT"),
            argument("--weights", metavar="TAG|FILE", help="weights for an architecture name (default: random)"),
            argument(
                "--part",
                choices=("image", "text", "pair", "zero-shot"),
                help="part of a CLIP model (default: pair, both towers)",
            ),
            argument("--classes", metavar="NAMES", help="for --part zero-shot: digits, or 'cat,dog'"),
            argument("--precision", choices=("float32", "float16", "int8"), default="float32", help="default float32"),
            argument("--opset", type=int, choices=(17, 20), default=20, help="17 for older runtimes (default 20)"),
            argument(
                "--include-preprocessing", action="store_true", help="take uint8 pixels and normalise in the graph"
            ),
            argument("--layout", choices=("NHWC", "NCHW"), default="NHWC", help="image layout (default NHWC)"),
            argument(
                "--normalize",
                action="store_true",
                help="L2-normalise the embeddings of an exported image or text tower",
            ),
            argument(
                "--logits", action="store_true", help="add a CLIP model's exp(logit_scale) · cosine as a third output"
            ),
            argument(
                "--no-fold", dest="fold", action="store_false", help="do not fold norms and scales into the weights"
            ),
            argument(
                "--no-verify", dest="verify", action="store_false", help="do not compare the file with the Keras model"
            ),
            argument("--calibration", metavar="DIR", help="images to verify with (default: scikit-learn's)"),
            argument(
                "--tolerance",
                type=float,
                help="largest allowed error in float32 (default 1e-4), or 1 − cosine in lower precisions",
            ),
            argument(
                "--via",
                choices=("zoo", "keras"),
                default="zoo",
                help="exporter; keras for models with custom layers (default zoo)",
            ),
        ),
        backend="model",
        examples=(
            "zoo export convnextv2_tiny.fcmae_ft_in1k tiny.onnx --precision float16",
            "zoo export ViT-B-32.openai pets.onnx --part zero-shot --classes 'cat,dog'",
        ),
    ),
    "export-weights": Command(
        "write a checkpoint that timm, transformers, torchvision, open_clip or Facebook's code loads",
        "zoo.models.conversion:export_weights",
        "builtins:str",
        (
            argument("model", help="saved model, or the name of published weights"),
            argument("path", metavar="OUT", help=".safetensors file, or folder for weights and config"),
            argument("--format", required=True, metavar="LIBRARY", help="timm, transformers, torchvision, …"),
        ),
        backend="model",
        examples=("zoo export-weights model.safetensors timm-folder --format timm",),
    ),
    "average": Command(
        "average the weights of two models of the same architecture",
        "zoo.training.average:average",
        "zoo.training.average:to_text",
        (
            argument("a", metavar="A", help="saved model"),
            argument("b", metavar="B", help="saved model"),
            argument("--alpha", type=float, default=0.5, help="share of B: 0 gives A, 1 gives B (default 0.5)"),
            argument("--output", required=True, metavar="FILE", help=".safetensors file to write"),
        ),
        examples=("zoo average zero-shot.safetensors fine-tuned.safetensors --alpha 0.4 --output mixed.safetensors",),
    ),
    "parity": Command(
        "compare our models with reference outputs written by tests/oracles.py",
        "zoo.bench.parity:parity_on",
        "zoo.bench.parity:to_markdown",
        (
            argument("directory", help="folder of reference cases"),
            argument("--pattern", default="*", help="pattern of case names, e.g. 'timm-*' (default all)"),
            argument("--backend", type=words, default=(), metavar="NAME,…", help="one or more backends, side by side"),
        ),
        succeeded="zoo.bench.parity:all_within",
        examples=("zoo parity build/oracles --pattern 'timm-*' --backend jax,torch",),
    ),
    "doctor": Command(
        "check the installation",
        "zoo.cli.doctor:examine",
        "zoo.cli.doctor:to_text",
        (argument("--backend", choices=BACKENDS, help="backend to run a small model on (default: as Keras chooses)"),),
        succeeded="zoo.cli.doctor:all_passed",
    ),
}
