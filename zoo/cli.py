"""The command `zoo`: a table from commands to functions. Each function is imported when its command runs."""

import argparse
import contextlib
import dataclasses
import importlib
import json
import sys
import traceback
from typing import NamedTuple

from zoo.env import BACKENDS, choose_backend
from zoo.experiments import EXPERIMENTS

BAD_INPUT = 2


class Command(NamedTuple):
    """A row: what the help says, the function ("module:name") and the one that shows its result, its arguments.

    `uses_backend` chooses Keras' backend before the function is imported and adds --backend; `succeeded` names the
    function that tells from the result whether the exit code is 0 or 1.
    """

    summary: str
    function: str
    show: str
    arguments: tuple = ()
    uses_backend: bool = False
    succeeded: str | None = None


def argument(*flags, **options):
    return flags, options


def positive(text):
    """An integer of at least 1, for argparse."""
    number = int(text) if text.lstrip("+-").isdigit() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be a positive integer, got {text!r}")
    return number


def words(text):
    """Words with commas between them, for argparse."""
    return tuple(word.strip() for word in text.split(",") if word.strip())


def numbers(text):
    """Positive integers with commas between them, for argparse."""
    return tuple(positive(word) for word in words(text))


SEED = argument("--seed", type=int, default=0, help="of the weights, captions and augmentation (default 0)")

PAIR = argument("--model", required=True, metavar="NAME|PATH", help="a saved file, or a pair's name with weights")
DATASET = argument(
    "--dataset", default="digits", metavar="NAME", help="digits, cifar10, cifar100, mnist, …, folder:DIR, shards:GLOB"
)
DATA = argument("--data", metavar="PATH", help="the data set's original files (default: Keras' cache, or its download)")
IMAGES_AT_A_TIME = argument("--batch-size", type=positive, default=64, help="images at a time (default 64)")
RESULTS = argument("--output", metavar="DIR", help="folder for JSON and pictures")

TEXT_CACHE = argument("--cache", metavar="FILE", help="of texts' embeddings (default: $ZOO_TEXT_CACHE, or the user's)")
INDEX = argument("index", metavar="INDEX", help="folder of an index")
INDEX_MODEL = argument("--model", metavar="NAME|PATH", help="that made the index (default: as the index says)")
CACHE_FILE = argument("path", metavar="FILE", help="of a cache")
NEW_INDEX = (
    argument("source", help="folder of images, CSV or TSV with a column filepath, or tar shards"),
    PAIR,
    argument("--output", "--out", required=True, metavar="INDEX", help="folder; one that is there is gone on with"),
    argument("--dtype", choices=("float32", "float16", "int8"), default="float32", help="of the vectors kept"),
    argument("--runtime", choices=("keras", "onnx"), default="keras"),
    IMAGES_AT_A_TIME,
)

GROUPS = {  # first words of commands of two
    "train": "train a pair or a classifier",
    "eval": "measure a pair",
    "index": "make and examine an index of images",
    "cache": "examine the cache of texts' embeddings",
}

RESUME = argument("--resume", action="store_true", help="go on from the newest checkpoint in the output folder")
CONTRASTIVE = (
    argument("--model", required=True, metavar="NAME", help="of a pair, e.g. convnext_v2_tiny"),
    argument(
        "--train-data", required=True, metavar="PATH", help="CSV, TSV, parquet, a folder, or shards-{0000..9}.tar"
    ),
    argument("--output", required=True, metavar="DIR", help="folder of model.safetensors, checkpoints and history"),
    argument("--image-key", default="filepath", metavar="COLUMN", help="of a table (default filepath)"),
    argument("--caption-key", default="caption", metavar="COLUMN", help="of a table (default caption)"),
    argument("--label-key", metavar="COLUMN", help="of classes: pairs of one class are positives of each other"),
    argument("--data-root", metavar="DIR", help="that a table's paths are seen from (default: the table's folder)"),
    argument("--batch-size", type=positive, default=32, help="pairs compared with each other (default 32)"),
    argument("--epochs", type=positive, default=10, help="default 10"),
    argument("--image-size", type=positive, metavar="PIXELS", help="default: the model's own"),
    argument("--stem-stride", type=int, choices=(4, 2, 1), help="of a ConvNeXt tower; finer for small images"),
    argument("--weights", metavar="TAG|PATH", help="to begin from"),
    argument("--loss", choices=("clip", "siglip"), default="clip", help="default clip"),
    argument("--learning-rate", type=float, default=5e-4, help="after the warm-up (default 5e-4)"),
    argument("--weight-decay", type=float, default=0.05, help="default 0.05"),
    argument("--warmup-steps", type=int, help="default: a tenth of the run"),
    argument("--clip-norm", type=float, default=1.0, help="of all gradients together; 0 for no limit (default 1)"),
    argument("--accumulate", type=positive, default=1, metavar="CHUNKS", help="of a batch, to save memory (default 1)"),
    argument("--precision", choices=("float32", "bfloat16", "float16"), default="float32"),
    argument("--ema", type=float, metavar="SHARE", help="of the weights' moving average that stays each step"),
    argument("--lock-image", action="store_true", help="leave the image tower as it is"),
    argument("--lock-text", action="store_true", help="leave the text tower as it is"),
    argument("--context-length", type=positive, default=77, help="tokens of a caption (default 77)"),
    argument("--validation-data", metavar="PATH", help="examined once an epoch"),
    argument("--validate-every", type=positive, metavar="STEPS", help="in place of once an epoch"),
    argument("--classes", metavar="NAME", help="digits, cifar10, …: zero-shot accuracy on the validation data"),
    argument("--teacher", metavar="NAME|PATH", help="of a pair to learn from too: a name with weights, a saved file"),
    argument("--distill-weight", type=float, default=1.0, help="of what the teacher adds to the loss (default 1)"),
    argument("--devices", type=positive, metavar="N", help="of JAX, among which each batch is divided"),
    argument("--save-every", type=positive, metavar="STEPS", help="in place of once an epoch"),
    argument("--log-every", type=positive, default=10, metavar="STEPS", help="default 10"),
    argument("--max-skipped", type=positive, default=10, help="non-finite updates before going back (default 10)"),
    argument("--max-bad-fraction", type=float, default=0.01, help="of bad records, to end the run (default 0.01)"),
    argument("--threads", type=positive, help="that decode images (default: the cores, at most 8)"),
    argument("--seed", type=int, default=0, help="of weights, order and augmentation (default 0)"),
    RESUME,
)

PRETRAIN = (
    argument("--model", required=True, metavar="NAME", help="of a ConvNeXt V2, e.g. convnextv2_tiny"),
    argument("--train-data", required=True, metavar="PATH", help="folder of images, CSV, TSV, parquet, or tar shards"),
    argument("--output", required=True, metavar="DIR", help="folder of model.safetensors, the report, checkpoints"),
    argument("--image-key", default="filepath", metavar="COLUMN", help="of a table (default filepath)"),
    argument("--data-root", metavar="DIR", help="that a table's paths are seen from (default: the table's folder)"),
    argument("--batch-size", type=positive, default=32, help="default 32"),
    argument("--epochs", type=positive, default=10, help="default 10"),
    argument("--image-size", type=positive, metavar="PIXELS", help="default 224"),
    argument("--stem-stride", type=int, choices=(4, 2, 1), help="finer for small images; patches follow it"),
    argument("--weights", metavar="TAG|PATH", help="to begin from"),
    argument("--mask-ratio", type=float, default=0.6, help="share of the patches that is hidden (default 0.6)"),
    argument("--decoder-dim", type=positive, default=512, help="channels of the decoder (default 512)"),
    argument("--decoder-depth", type=positive, default=1, help="blocks of the decoder (default 1)"),
    argument("--crop-scale", type=float, default=0.2, help="least share that a crop takes; 1 for none (default 0.2)"),
    argument("--flip", type=float, default=0.5, help="probability of mirroring (default 0.5)"),
    argument("--learning-rate", type=float, default=1e-3, help="after the warm-up (default 1e-3)"),
    argument("--weight-decay", type=float, default=0.05, help="default 0.05"),
    argument("--warmup-steps", type=int, help="default: a tenth of the run"),
    argument("--clip-norm", type=float, help="of all gradients together (default: no limit)"),
    argument("--precision", choices=("float32", "bfloat16", "float16"), default="float32"),
    argument("--ema", type=float, metavar="SHARE", help="of the weights' moving average that stays each step"),
    argument("--save-every", type=positive, metavar="STEPS", help="in place of once an epoch"),
    argument("--log-every", type=positive, default=10, metavar="STEPS", help="default 10"),
    argument("--max-skipped", type=positive, default=10, help="non-finite updates before going back (default 10)"),
    argument("--max-bad-fraction", type=float, default=0.01, help="of bad records, to end the run (default 0.01)"),
    argument("--threads", type=positive, help="that decode images (default: the cores, at most 8)"),
    argument("--seed", type=int, default=0, help="of weights, masks, order and augmentation (default 0)"),
    RESUME,
)

COMMANDS = {
    "list": Command(
        "names of the models, or of published weights for them",
        "zoo.names:listed",
        "zoo.names:to_text",
        (
            argument("pattern", nargs="?", default="*", help="as in a shell, e.g. 'convnextv2_*'"),
            argument("--weights", nargs="?", const="*", metavar="TAG", help="published weights, e.g. 'laion2b*'"),
        ),
    ),
    "info": Command(
        "parameters, FLOPs, input, preprocessing, licence of a model",
        "zoo.registry:model_info",
        "zoo.info:to_text",
        (argument("name", help="e.g. convnextv2_tiny, clip/ViT-B-32, ViT-B-32.openai"),),
    ),
    "convert": Command(
        "write weights from elsewhere as a file of this package's format",
        "zoo.conversion:convert",
        "builtins:str",
        (
            argument("source", help="weight file, folder with its configuration, or hf-hub:owner/name"),
            argument("path", metavar="OUT", help=".safetensors file"),
            argument("--arch", metavar="NAME[.TAG]", help="what the source is; not needed where it says so itself"),
        ),
        uses_backend=True,
    ),
    "train contrastive": Command(
        "train a pair on captioned images",
        "zoo.training.contrastive:train",
        "zoo.training.loop:to_text",
        CONTRASTIVE,
        uses_backend=True,
    ),
    "train classify": Command(
        "train a classifier as a JSON file says",
        "zoo.training.classify:run",
        "zoo.training.loop:to_text",
        (
            argument("--config", required=True, metavar="JSON", help="e.g. examples/config/convnext_example.json"),
            argument("--train-data", metavar="PATH", help="in place of the file's"),
            argument("--validation-data", metavar="PATH", help="in place of the file's"),
            argument("--weights", metavar="PATH", help="in place of the file's"),
            argument("--output", metavar="DIR", help="in place of the file's"),
            argument("--epochs", type=positive, help="in place of the file's"),
            argument("--layer-decay", type=float, metavar="FACTOR", help="in place of the file's"),
            argument("--devices", type=positive, metavar="N", help="in place of the file's"),
            argument("--seed", type=int, help="in place of the file's"),
            RESUME,
        ),
        uses_backend=True,
    ),
    "pretrain": Command(
        "pretrain a ConvNeXt V2 on images alone: hide most of each, rebuild it",
        "zoo.training.pretrain:pretrain",
        "zoo.training.loop:to_text",
        PRETRAIN,
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
    "demo": Command(
        "train a pair on handwritten digits, classify them from sentences, write a report",
        "zoo.demo:run_demo",
        "zoo.cli:show_nothing",
        (
            argument(
                "--output", default="demo-output", metavar="DIR", help="folder of the report (default demo-output)"
            ),
            SEED,
            argument("--epochs", type=int, default=None, help="of training (default: the demo's own)"),
        ),
        uses_backend=True,
    ),
    "bench": Command(
        "time models beside other libraries' in one run, turn by turn",
        "zoo.bench:bench",
        "zoo.bench:to_text",
        (
            argument("names", nargs="*", metavar="NAME", help="e.g. convnext_tiny clip/ViT-B-32"),
            argument(
                "--preset", metavar="NAME", help="towers, runtimes, batching, variants, bars, … in docs/benchmarks.md"
            ),
            argument(
                "--backend", type=words, metavar="A,B", help="default: $KERAS_BACKEND, else the first one installed"
            ),
            argument("--batch-size", type=numbers, metavar="N,M", help="default 8"),
            argument("--image-size", type=numbers, metavar="N,M", help="pixels (default: the model's own)"),
            argument("--dtype", type=words, metavar="A,B", help="float32, tfloat32, bfloat16, float16, int8"),
            argument(
                "--part", type=words, metavar="A,B", help="of a pair: image, text, pair, zero-shot (default pair)"
            ),
            argument(
                "--mode", type=words, metavar="A,B", help="eager, compiled, predict (default: the backend's usual)"
            ),
            argument("--runtime", type=words, metavar="A,B", help="keras, onnx (default keras)"),
            argument(
                "--peer",
                type=words,
                metavar="A,B",
                help="timm, open_clip, transformers, keras_applications, keras_hub, zeromodels, none "
                "(default: keras_applications where it has the model)",
            ),
            argument("--train", action="store_true", help="time a training step too"),
            argument("--rounds", type=positive, help="turns of each case (default 5)"),
            argument("--threads", type=positive, help="of a call (default: the cores this process may use)"),
            argument("--smoke", action="store_true", help="a tiny run, to see that everything works"),
            argument("--output", metavar="DIR", help="folder for bench.md, bench.json, bench.png"),
        ),
    ),
    "eval zero-shot": Command(
        "classify a data set from prompts alone: accuracy, recall, confusion, calibration",
        "zoo.evaluation.zero_shot:run",
        "zoo.evaluation.zero_shot:to_text",
        (
            PAIR,
            DATASET,
            DATA,
            argument("--templates", metavar="SET|FILE", help="of clip.TEMPLATES, or one a line (default: the data's)"),
            argument("--class-names", metavar="FILE", help="one a line, in the order of the labels"),
            IMAGES_AT_A_TIME,
            RESULTS,
        ),
        uses_backend=True,
    ),
    "eval retrieval": Command(
        "rank images for captions and captions for images",
        "zoo.evaluation.retrieval:run",
        "zoo.evaluation.retrieval:to_text",
        (
            PAIR,
            argument("--data", required=True, metavar="PATH", help="CSV or TSV, captioned folder, or tar shards"),
            argument("--image-key", default="filepath", metavar="COLUMN", help="of a table (default filepath)"),
            argument("--caption-key", default="caption", metavar="COLUMN", help="of a table (default caption)"),
            IMAGES_AT_A_TIME,
            RESULTS,
        ),
        uses_backend=True,
    ),
    "eval linear-probe": Command(
        "fit logistic regression to frozen image embeddings",
        "zoo.evaluation.linear_probe:run",
        "zoo.evaluation.linear_probe:to_text",
        (
            PAIR,
            DATASET,
            DATA,
            argument("--train", metavar="NAME", help="folder:DIR or shards:GLOB to learn from (default: the data's)"),
            IMAGES_AT_A_TIME,
        ),
        uses_backend=True,
    ),
    "experiment": Command(
        "run experiments with a pair: figures, plots and one report of them",
        "zoo.experiments.command:run_experiments",
        "zoo.cli:show_nothing",
        (
            argument("names", nargs="+", metavar="LIST", help=f"all, or some of {', '.join(EXPERIMENTS)}"),
            argument(
                "--model", metavar="NAME|PATH", help="a saved file, or a pair with weights (default: the demo's)"
            ),
            argument("--output", default="experiment-output", metavar="DIR", help="default experiment-output"),
            argument(
                "--images", metavar="DIR", help="your pictures; in a folder a class, they replace the digits"
            ),
            argument("--classes", metavar="NAMES", help="what your pictures may show: 'cat,dog'"),
            argument("--data", metavar="DIR", help="folder with the original files of CIFAR-10 and MNIST"),
            argument("--smoke", action="store_true", help="few pictures, few rounds, nothing fetched"),
            argument("--seed", type=int, default=0, help="of what is drawn (default 0)"),
        ),
        uses_backend=True,
    ),
    "parity": Command(
        "compare our models with reference outputs written by tests/oracles.py",
        "zoo.parity:parity",
        "zoo.parity:to_markdown",
        (
            argument("directory", help="folder of cases"),
            argument("--pattern", default="*", help="of case names, e.g. 'timm-*'"),
        ),
        uses_backend=True,
        succeeded="zoo.parity:all_within",
    ),
    "embed": Command(
        "write the embeddings of images, with their ids",
        "zoo.image_search:embed_images",
        "zoo.image_search:to_text",
        (
            argument("source", help="folder of images, CSV or TSV with a column filepath, or tar shards"),
            PAIR,
            argument("--output", "--out", required=True, metavar="DIR", help="folder for shards and a manifest"),
            IMAGES_AT_A_TIME,
        ),
        uses_backend=True,
    ),
    "index build": Command(
        "index images for search; goes on where it was stopped",
        "zoo.image_search:build_index",
        "zoo.image_search:to_text",
        NEW_INDEX,
        uses_backend=True,
    ),
    "index add": Command(
        "add another source to an index, or what is new in its own",
        "zoo.image_search:index_add",
        "zoo.image_search:to_text",
        (
            INDEX,
            argument("source", nargs="?", help="folder, table or shards (default: the index's own sources)"),
            INDEX_MODEL,
            IMAGES_AT_A_TIME,
        ),
        uses_backend=True,
    ),
    "index accelerate": Command(
        "make searches of a large index faster, by usearch",
        "zoo.image_search:index_accelerate",
        "zoo.image_search:to_text",
        (
            INDEX,
            argument(
                "--kind",
                choices=("float16", "int8", "hnsw"),
                default="int8",
                help="a narrow copy, with which results stay exact, or a graph for --approximate (default int8)",
            ),
        ),
    ),
    "index remove": Command(
        "take images out of an index",
        "zoo.image_search:index_remove",
        "zoo.image_search:to_text",
        (INDEX, argument("ids", nargs="+", metavar="ID", help="as a search prints them")),
    ),
    "index info": Command(
        "size, storage and source of an index",
        "zoo.image_search:index_info",
        "zoo.image_search:to_text",
        (INDEX,),
    ),
    "index verify": Command(
        "compare every file of an index with its digest",
        "zoo.image_search:index_verify",
        "zoo.image_search:to_text",
        (INDEX,),
    ),
    "search": Command(
        "find the images that match a sentence or an image",
        "zoo.image_search:search_images",
        "zoo.image_search:matches_to_text",
        (
            INDEX,
            argument("query", nargs="?", help='e.g. "a photo of a seven"'),
            INDEX_MODEL,
            argument("--image", metavar="FILE", help="an image in place of the sentence"),
            argument("-k", type=positive, default=5, help="how many (default 5)"),
            argument("--where", action="append", metavar="KEY=VALUE", help="only images of which the index says so"),
            argument("--approximate", action="store_true", help="through the graph of zoo index accelerate"),
            argument("--sheet", metavar="FILE", help=".png or .html of what was found"),
            TEXT_CACHE,
        ),
        uses_backend=True,
    ),
    **{
        f"cache {job}": Command(
            summary, f"zoo.image_search:cache_{job}", "zoo.image_search:to_text", (*arguments, TEXT_CACHE)
        )
        for job, summary, arguments in (
            ("stats", "how many texts it holds, and how often they were there", ()),
            ("clear", "drop all it holds", ()),
            ("verify", "read and check every entry", ()),
            ("export", "copy it to another file", (CACHE_FILE,)),
            ("import", "take in what another file holds", (CACHE_FILE,)),
        )
    },
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
        "zoo.exchange:export_weights",
        "builtins:str",
        (
            argument("model", help="a saved file, or a name with weights"),
            argument("path", metavar="OUT", help=".safetensors file, or a folder for weights and configuration"),
            argument("--format", required=True, metavar="LIBRARY", help="timm, transformers, torchvision, …"),
        ),
        uses_backend=True,
    ),
    "doctor": Command(
        "examine the installation",
        "zoo.doctor:examine",
        "zoo.doctor:to_text",
        (argument("--backend", choices=BACKENDS, help="to run a model on"),),
        succeeded="zoo.doctor:all_passed",
    ),
}


def main(argv=None):
    """Runs one command; returns 0, 1 when what it looked at failed, or 2 on bad input with one line saying why."""
    options = vars(build_parser().parse_args(argv))
    command = COMMANDS[options.pop("command")]
    as_json, show_traceback = options.pop("json"), options.pop("traceback")
    sys.stdout.reconfigure(errors="replace")  # a Windows pipe may not know "→" or "×"
    progress = sys.stderr if as_json else sys.stdout  # with --json, stdout holds nothing else
    try:
        if command.uses_backend:
            choose_backend(options.pop("backend"))
        with contextlib.redirect_stdout(progress):
            result = resolve(command.function)(**options)
    except (ValueError, TypeError, OSError, ImportError) as error:
        if show_traceback:
            traceback.print_exc()
        return refuse(error)
    text = to_json(result) if as_json else resolve(command.show)(result)
    with contextlib.suppress(BrokenPipeError):  # the reader, such as `head`, may have seen enough
        print(text, end="\n" if text else "", flush=True)
    return 0 if command.succeeded is None or resolve(command.succeeded)(result) else 1


def refuse(error):
    """One line on stderr, whatever the message's own lines; the exit code of bad input."""
    print(f"zoo: error: {' '.join(str(error).split())}", file=sys.stderr)
    return BAD_INPUT


class Parser(argparse.ArgumentParser):
    """argparse without the usage lines above an error."""

    def error(self, message):
        sys.exit(refuse(message))


def build_parser():
    parser = Parser(prog="zoo", description="ConvNeXt, ResNet and CLIP models in Keras 3.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    groups = {
        group: commands.add_parser(group, help=summary, description=summary).add_subparsers(
            required=True, metavar="JOB"
        )
        for group, summary in GROUPS.items()
    }
    for name, command in COMMANDS.items():
        group, _, job = name.rpartition(" ")
        sub = groups.get(group, commands).add_parser(job, help=command.summary, description=command.summary)
        sub.set_defaults(command=name)
        for flags, options in command.arguments:
            sub.add_argument(*flags, **options)
        if command.uses_backend:
            sub.add_argument(
                "--backend", choices=BACKENDS, help="default: $KERAS_BACKEND, else the first one installed"
            )
        sub.add_argument("--json", action="store_true", help="print the result for a program to read")
        sub.add_argument("--traceback", action="store_true", help="on an error, show where it arose")
    return parser


def resolve(path):
    """The function "module:name"."""
    module, name = path.split(":")
    return getattr(importlib.import_module(module), name)


def to_json(result):
    """JSON of dataclasses, named tuples, and lists of them."""
    return json.dumps(_plain(result), indent=1, ensure_ascii=False)


def _plain(value):
    if dataclasses.is_dataclass(value):
        return dataclasses.asdict(value)
    if hasattr(value, "_asdict"):
        return value._asdict()
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def show_nothing(_):
    """For commands that say what they do while they do it."""
    return ""
