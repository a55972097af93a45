"""Commands that evaluate, experiment with and benchmark models."""

from zoo.cli.command import BATCH_SIZE, PAIR, Command, argument, numbers, positive, words
from zoo.experiments import EXPERIMENTS

DATASET = argument(
    "--dataset",
    default="digits",
    metavar="NAME",
    help="digits, cifar10, cifar100, mnist, fashion_mnist, folder:DIR or shards:GLOB (default digits)",
)
DATA = argument(
    "--data",
    metavar="PATH",
    help="the data set's original files or their folder (default: Keras' cache, else downloaded)",
)
CLASSES = argument(
    "--class-names",
    metavar="FILE",
    help="one name per line, in label order; or JSON, optionally with each class's prompts: {name: [prompt, …]}",
)
EMBEDDINGS = argument(
    "--embeddings",
    action="append",
    default=[],
    metavar="DIR",
    help="use the image embeddings in a folder written by zoo embed; may be repeated",
)
RESULTS = argument("--output", metavar="DIR", help="folder for the results as JSON and plots")

COMMANDS = {
    "eval zero-shot": Command(
        "evaluate zero-shot classification: accuracy, recall, confusion matrix, calibration",
        "zoo.evaluation.zero_shot:run",
        "zoo.evaluation.zero_shot:to_text",
        (
            PAIR,
            DATASET,
            DATA,
            argument(
                "--templates",
                metavar="SET|FILE",
                help="name in clip.TEMPLATES, or file with one per line (default: the data set's)",
            ),
            CLASSES,
            argument(
                "--random-weights",
                action="store_true",
                help="evaluate a randomly initialised model of that name, to check the data and the chance level",
            ),
            BATCH_SIZE,
            EMBEDDINGS,
            RESULTS,
        ),
        backend="batches",
        examples=(
            "zoo eval zero-shot --model ViT-B-32.openai --dataset cifar10",
            "zoo eval zero-shot --model convnext_v2_tiny --random-weights --dataset cifar100",
        ),
    ),
    "eval retrieval": Command(
        "evaluate image–text retrieval in both directions",
        "zoo.evaluation.retrieval:run",
        "zoo.evaluation.retrieval:to_text",
        (
            PAIR,
            argument("--data", required=True, metavar="PATH", help="CSV or TSV, captioned folder, or tar shards"),
            argument("--image-key", default="filepath", metavar="COLUMN", help="image column (default filepath)"),
            argument("--caption-key", default="caption", metavar="COLUMN", help="caption column (default caption)"),
            argument(
                "--data-root", metavar="DIR", help="base folder for paths in a table (default: the table's folder)"
            ),
            BATCH_SIZE,
            EMBEDDINGS,
            argument(
                "--max-rows",
                type=positive,
                default=250_000,
                metavar="N",
                help="refuse data with more captions, because the work grows with their square (default 250000)",
            ),
            RESULTS,
        ),
        backend="batches",
        examples=("zoo eval retrieval --model ViT-B-32.openai --data captions.csv",),
    ),
    "eval linear-probe": Command(
        "fit logistic regression to frozen image embeddings",
        "zoo.evaluation.linear_probe:run",
        "zoo.evaluation.linear_probe:to_text",
        (
            PAIR,
            DATASET,
            DATA,
            argument(
                "--train", metavar="NAME", help="training data, folder:DIR or shards:GLOB (default: the data set's own)"
            ),
            CLASSES,
            BATCH_SIZE,
            EMBEDDINGS,
            RESULTS,
        ),
        backend="batches",
        examples=(
            "zoo eval linear-probe --model ViT-B-32.openai --dataset folder:photos/test --train folder:photos/train",
        ),
    ),
    "experiment": Command(
        "run experiments with a CLIP model and write plots and a report",
        "zoo.experiments.command:run_experiments",
        "zoo.cli.command:show_nothing",
        (
            argument("names", nargs="+", metavar="NAME", help=f"all, or some of {', '.join(EXPERIMENTS)}"),
            argument(
                "--model",
                metavar="NAME|PATH",
                help="saved CLIP model, or the name of published weights (default: the demo's model)",
            ),
            argument(
                "--output",
                default="experiment-output",
                metavar="DIR",
                help="folder for the report (default experiment-output)",
            ),
            argument(
                "--images", metavar="DIR", help="your own images; in one folder per class they replace the digits"
            ),
            argument("--classes", metavar="NAMES", help="possible classes of your images: 'cat,dog'"),
            argument("--data", metavar="DIR", help="folder with the original files of CIFAR-10 and MNIST"),
            argument("--smoke", action="store_true", help="few images, few rounds, no download"),
            argument("--seed", type=int, default=0, help="random seed (default 0)"),
        ),
        backend="batches",
        succeeded="zoo.experiments.command:all_succeeded",
        examples=(
            "zoo experiment all --smoke",
            "zoo experiment classification --model ViT-B-32.openai --images photos",
        ),
    ),
    "bench": Command(
        "benchmark models against other libraries, in alternating rounds",
        "zoo.bench:bench",
        "zoo.bench:to_text",
        (
            argument("names", nargs="*", metavar="NAME", help="e.g. convnext_tiny clip/ViT-B-32"),
            argument(
                "--preset",
                metavar="NAME",
                help="predefined cases: towers, optimizations, variants, bars, serve, … (docs/how-to/benchmark.md)",
            ),
            argument(
                "--backend", type=words, metavar="A,B", help="default: $KERAS_BACKEND, else the first one installed"
            ),
            argument("--batch-size", type=numbers, metavar="N,M", help="images or texts per batch (default 8)"),
            argument("--image-size", type=numbers, metavar="N,M", help="pixels (default: the model's own)"),
            argument("--dtype", type=words, metavar="A,B", help="float32, tfloat32, bfloat16, float16, int8"),
            argument(
                "--part",
                type=words,
                metavar="A,B",
                help="part of a CLIP model: image, text, zero-shot, … (default: pair, both towers)",
            ),
            argument(
                "--mode",
                type=words,
                metavar="A,B",
                help="eager, compiled, predict, predictor (default: eager in torch, else compiled)",
            ),
            argument("--runtime", type=words, metavar="A,B", help="keras, folded, onnx (default keras)"),
            argument(
                "--peer",
                type=words,
                metavar="A,B",
                help="timm, open_clip, transformers, keras_applications, keras_hub, zeromodels, none "
                "(default: keras_applications where it has the model)",
            ),
            argument("--train", action="store_true", help="also time a training step"),
            argument("--rounds", type=positive, help="rounds, in each of which every case runs once (default 5)"),
            argument("--threads", type=positive, help="threads per call (default: the available cores)"),
            argument("--limit", type=float, metavar="SECONDS", help="skip cases whose warm-up takes longer"),
            argument("--memory", type=float, metavar="GB", help="skip cases whose process needs more memory"),
            argument(
                "--peer-url",
                metavar="URL",
                help="with --preset serve: another server with OpenAI's embeddings API for images, to compare with",
            ),
            argument("--smoke", action="store_true", help="a tiny run to check that everything works"),
            argument("--output", metavar="DIR", help="folder for bench.md, bench.json, bench.png"),
        ),
        examples=("zoo bench convnext_tiny --backend jax,torch --peer timm", "zoo bench --preset bars --output bars"),
    ),
}
