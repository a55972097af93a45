"""What measures."""

from zoo.cli.command import IMAGES_AT_A_TIME, PAIR, Command, argument, numbers, positive, words
from zoo.experiments import EXPERIMENTS

DATASET = argument(
    "--dataset", default="digits", metavar="NAME", help="digits, cifar10, cifar100, mnist, …, folder:DIR, shards:GLOB"
)

DATA = argument(
    "--data", metavar="PATH", help="the original files, or their folder (default: Keras' cache or download)"
)
CLASSES = argument(
    "--class-names",
    metavar="FILE",
    help="one a line, in the order of the labels; or JSON, also of prompts for each: {name: [prompt, …]}",
)
RESULTS = argument("--output", metavar="DIR", help="folder for JSON and pictures")

COMMANDS = {
    "eval zero-shot": Command(
        "classify a data set from prompts alone: accuracy, recall, confusion, calibration",
        "zoo.evaluation.zero_shot:run",
        "zoo.evaluation.zero_shot:to_text",
        (
            PAIR,
            DATASET,
            DATA,
            argument("--templates", metavar="SET|FILE", help="of clip.TEMPLATES, or one a line (default: the data's)"),
            CLASSES,
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
            CLASSES,
            IMAGES_AT_A_TIME,
            RESULTS,
        ),
        uses_backend=True,
    ),
    "experiment": Command(
        "run experiments with a pair: figures, plots and one report of them",
        "zoo.experiments.command:run_experiments",
        "zoo.cli.command:show_nothing",
        (
            argument("names", nargs="+", metavar="LIST", help=f"all, or some of {', '.join(EXPERIMENTS)}"),
            argument("--model", metavar="NAME|PATH", help="a saved file, or a pair with weights (default: the demo's)"),
            argument("--output", default="experiment-output", metavar="DIR", help="default experiment-output"),
            argument("--images", metavar="DIR", help="your pictures; in a folder a class, they replace the digits"),
            argument("--classes", metavar="NAMES", help="what your pictures may show: 'cat,dog'"),
            argument("--data", metavar="DIR", help="folder with the original files of CIFAR-10 and MNIST"),
            argument("--smoke", action="store_true", help="few pictures, few rounds, nothing fetched"),
            argument("--seed", type=int, default=0, help="of what is drawn (default 0)"),
        ),
        uses_backend=True,
        succeeded="zoo.experiments.command:all_succeeded",
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
                "--part",
                type=words,
                metavar="A,B",
                help="of a pair: image, text, zero-shot, … (default pair)",
            ),
            argument(
                "--mode",
                type=words,
                metavar="A,B",
                help="eager, compiled, predict, predictor (default: the backend's usual)",
            ),
            argument("--runtime", type=words, metavar="A,B", help="keras, folded, onnx (default keras)"),
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
            argument("--limit", type=float, metavar="SECONDS", help="leave out a case that takes longer to get warm"),
            argument("--memory", type=float, metavar="GB", help="leave out a case whose process holds more"),
            argument("--smoke", action="store_true", help="a tiny run, to see that everything works"),
            argument("--output", metavar="DIR", help="folder for bench.md, bench.json, bench.png"),
        ),
    ),
}
