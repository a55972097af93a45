"""Names, files and what they turn into."""

from zoo.cli.command import Command, argument, words
from zoo.utils.env import BACKENDS

COMMANDS = {
    "list": Command(
        "names of the models, or of published weights for them",
        "zoo.models.names:listed",
        "zoo.models.names:to_text",
        (
            argument("pattern", nargs="?", default="*", help="as in a shell, e.g. 'convnextv2_*'"),
            argument("--weights", nargs="?", const="*", metavar="TAG", help="published weights, e.g. 'laion2b*'"),
        ),
    ),
    "info": Command(
        "parameters, FLOPs, input, preprocessing, licence of a model",
        "zoo.models.registry:model_info",
        "zoo.models.info:to_text",
        (argument("name", help="e.g. convnextv2_tiny, clip/ViT-B-32, ViT-B-32.openai"),),
    ),
    "convert": Command(
        "write weights from elsewhere as a file of this package's format",
        "zoo.models.conversion:convert",
        "builtins:str",
        (
            argument("source", help="weight file, folder with its configuration, or hf-hub:owner/name"),
            argument("path", metavar="OUT", help=".safetensors file"),
            argument("--arch", metavar="NAME[.TAG]", help="what the source is; not needed where it says so itself"),
        ),
        uses_backend=True,
    ),
    "export": Command(
        "write a model as one verified ONNX file",
        "zoo.export.command:export",
        "zoo.export.command:to_text",
        (
            argument("name", metavar="NAME|PATH", help="e.g. clip/ViT-B-32, model.safetensors, model.keras"),
            argument("output", metavar="OUT", help=".onnx file"),
            argument("--weights", metavar="TAG|FILE", help="for the name of an architecture (default: random ones)"),
            argument("--part", choices=("image", "text", "pair", "zero-shot"), help="of a pair (default: pair)"),
            argument("--classes", metavar="NAMES", help="of --part zero-shot: digits, or 'cat,dog'"),
            argument("--precision", choices=("float32", "float16", "int8"), default="float32"),
            argument("--opset", type=int, choices=(17, 20), default=20, help="17 for older runtimes (default 20)"),
            argument("--include-preprocessing", action="store_true", help="take uint8 pixels and scale them inside"),
            argument("--layout", choices=("NHWC", "NCHW"), default="NHWC", help="of the images (default NHWC)"),
            argument("--normalize", action="store_true", help="L2-normalise a tower's embeddings"),
            argument("--logits", action="store_true", help="a pair's exp(logit_scale) · cosine as a third output"),
            argument("--no-fold", dest="fold", action="store_false", help="keep norms and scales as they are"),
            argument("--no-verify", dest="verify", action="store_false", help="do not compare the file with the model"),
            argument("--calibration", metavar="DIR", help="images to compare on (default: scikit-learn's)"),
            argument("--tolerance", type=float, help="of the error in float32 (1e-4), of 1 − cosine below it"),
            argument("--via", choices=("zoo", "keras"), default="zoo", help="keras: its own exporter, for others"),
        ),
        uses_backend=True,
    ),
    "export-weights": Command(
        "write a checkpoint that timm, transformers, torchvision, open_clip or facebookresearch's code loads",
        "zoo.models.exchange:export_weights",
        "builtins:str",
        (
            argument("model", help="a saved file, or a name with weights"),
            argument("path", metavar="OUT", help=".safetensors file, or a folder for weights and configuration"),
            argument("--format", required=True, metavar="LIBRARY", help="timm, transformers, torchvision, …"),
        ),
        uses_backend=True,
    ),
    "average": Command(
        "mix the weights of two models of one architecture",
        "zoo.training.average:average",
        "zoo.training.average:to_text",
        (
            argument("a", metavar="A", help="a saved file"),
            argument("b", metavar="B", help="a saved file"),
            argument("--alpha", type=float, default=0.5, help="0 for A, 1 for B (default 0.5)"),
            argument("--output", required=True, metavar="FILE", help="a .safetensors file to write"),
        ),
    ),
    "parity": Command(
        "compare our models with reference outputs written by tests/oracles.py",
        "zoo.bench.parity:parity_on",
        "zoo.bench.parity:to_markdown",
        (
            argument("directory", help="folder of cases"),
            argument("--pattern", default="*", help="of case names, e.g. 'timm-*'"),
            argument("--backend", type=words, default=(), metavar="NAME,…", help="several stand side by side"),
        ),
        succeeded="zoo.bench.parity:all_within",
    ),
    "doctor": Command(
        "examine the installation",
        "zoo.cli.doctor:examine",
        "zoo.cli.doctor:to_text",
        (argument("--backend", choices=BACKENDS, help="to run a model on"),),
        succeeded="zoo.cli.doctor:all_passed",
    ),
}
