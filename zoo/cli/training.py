"""What trains."""

from zoo.cli.command import Command, argument, positive

SEED = argument("--seed", type=int, default=0, help="of the weights, captions and augmentation (default 0)")
RESUME = argument("--resume", action="store_true", help="go on from the newest checkpoint in the output folder")
TABLE = (
    argument("--image-key", default="filepath", metavar="COLUMN", help="of a table (default filepath)"),
    argument("--data-root", metavar="DIR", help="that a table's paths are seen from (default: the table's folder)"),
)
OPTIMIZER = (
    argument("--weight-decay", type=float, default=0.05, help="default 0.05"),
    argument("--warmup-steps", type=int, help="default: a tenth of the run"),
    argument("--precision", choices=("float32", "bfloat16", "float16"), default="float32"),
    argument("--ema", type=float, metavar="SHARE", help="of the weights' moving average that stays each step"),
)
VALIDATION = (
    argument("--validation-data", metavar="PATH", help="examined once an epoch"),
    argument("--validate-every", type=positive, metavar="STEPS", help="in place of once an epoch"),
)
DEVICES = argument("--devices", type=positive, metavar="N", help="of JAX, among which each batch is divided")
RUN = (
    argument("--epochs", type=positive, default=10, help="default 10"),
    argument("--save-every", type=positive, metavar="STEPS", help="in place of once an epoch"),
    argument("--log-every", type=positive, default=10, metavar="STEPS", help="default 10"),
    argument("--max-skipped", type=positive, default=10, help="non-finite updates before going back (default 10)"),
    argument("--max-bad-fraction", type=float, default=0.01, help="of bad records, to end the run (default 0.01)"),
    argument("--threads", type=positive, help="that decode images (default: the cores, at most 8)"),
)
CONTRASTIVE = (
    argument("--model", required=True, metavar="NAME", help="of a pair, e.g. convnext_v2_tiny"),
    argument(
        "--train-data", required=True, metavar="PATH", help="CSV, TSV, parquet, a folder, or shards-{0000..9}.tar"
    ),
    argument(
        "--output",
        default="contrastive-output",
        metavar="DIR",
        help="folder of model.safetensors, checkpoints and history (default contrastive-output)",
    ),
    argument("--caption-key", default="caption", metavar="COLUMN", help="of a table (default caption)"),
    argument("--label-key", metavar="COLUMN", help="of classes: pairs of one class are positives of each other"),
    *TABLE,
    argument("--batch-size", type=positive, default=32, help="pairs compared with each other (default 32)"),
    argument("--image-size", type=positive, metavar="PIXELS", help="default: the model's own"),
    argument("--stem-stride", type=int, choices=(4, 2, 1), help="of a ConvNeXt tower; finer for small images"),
    argument("--weights", metavar="TAG|PATH", help="to begin from"),
    argument("--loss", choices=("clip", "siglip"), default="clip", help="default clip"),
    argument("--learning-rate", type=float, default=5e-4, help="after the warm-up (default 5e-4)"),
    argument("--clip-norm", type=float, default=1.0, help="of all gradients together; 0 for no limit (default 1)"),
    argument("--accumulate", type=positive, default=1, metavar="CHUNKS", help="of a batch, to save memory (default 1)"),
    *OPTIMIZER,
    argument("--lock-image", action="store_true", help="leave the image tower as it is"),
    argument("--lock-text", action="store_true", help="leave the text tower as it is"),
    argument("--context-length", type=positive, default=77, help="tokens of a caption (default 77)"),
    *VALIDATION,
    argument("--classes", metavar="NAME", help="digits, cifar10, …: zero-shot accuracy on the validation data"),
    argument("--teacher", metavar="NAME|PATH", help="of a pair to learn from too: a name with weights, a saved file"),
    argument("--distill-weight", type=float, default=1.0, help="of what the teacher adds to the loss (default 1)"),
    DEVICES,
    *RUN,
    argument("--seed", type=int, default=0, help="of weights, order and augmentation (default 0)"),
    RESUME,
)

PRETRAIN = (
    argument("--model", required=True, metavar="NAME", help="of a ConvNeXt V2, e.g. convnextv2_tiny"),
    argument("--train-data", required=True, metavar="PATH", help="folder of images, CSV, TSV, parquet, or tar shards"),
    argument(
        "--output",
        default="pretrain-output",
        metavar="DIR",
        help="folder of model.safetensors, the report, checkpoints (default pretrain-output)",
    ),
    *TABLE,
    argument("--batch-size", type=positive, default=32, help="default 32"),
    argument("--image-size", type=positive, metavar="PIXELS", help="default 224"),
    argument("--stem-stride", type=int, choices=(4, 2, 1), help="finer for small images; patches follow it"),
    argument("--weights", metavar="TAG|PATH", help="to begin from"),
    argument("--mask-ratio", type=float, default=0.6, help="share of the patches that is hidden (default 0.6)"),
    argument("--decoder-dim", type=positive, default=512, help="channels of the decoder (default 512)"),
    argument("--decoder-depth", type=positive, default=1, help="blocks of the decoder (default 1)"),
    argument("--crop-scale", type=float, default=0.2, help="least share that a crop takes; 1 for none (default 0.2)"),
    argument("--flip", type=float, default=0.5, help="probability of mirroring (default 0.5)"),
    argument("--learning-rate", type=float, default=1e-3, help="after the warm-up (default 1e-3)"),
    argument("--clip-norm", type=float, help="of all gradients together (default: no limit)"),
    *OPTIMIZER,
    *VALIDATION,
    DEVICES,
    *RUN,
    argument("--seed", type=int, default=0, help="of weights, masks, order and augmentation (default 0)"),
    RESUME,
)


COMMANDS = {
    "train contrastive": Command(
        "train a CLIP pair on captioned images",
        "zoo.training.contrastive:train",
        "zoo.training.loop:to_text",
        CONTRASTIVE,
        backend="training",
        examples=("zoo train contrastive --model convnext_v2_tiny --train-data captions.csv",),
    ),
    "train classify": Command(
        "train a classifier from a JSON config",
        "zoo.training.classify:run",
        "zoo.training.loop:to_text",
        (
            argument("--config", required=True, metavar="JSON", help="e.g. examples/config/convnext_example.json"),
            argument("--train-data", metavar="PATH", help="in place of the file's"),
            argument("--validation-data", metavar="PATH", help="in place of the file's"),
            argument("--weights", metavar="TAG|PATH", help="in place of the file's"),
            argument("--output", metavar="DIR", help="in place of the file's (default classify-output)"),
            argument("--epochs", type=positive, help="in place of the file's"),
            argument("--layer-decay", type=float, metavar="FACTOR", help="in place of the file's"),
            argument("--devices", type=positive, metavar="N", help="in place of the file's"),
            argument("--seed", type=int, help="in place of the file's"),
            RESUME,
        ),
        backend="training",
        examples=("zoo train classify --config examples/config/convnext_example.json --epochs 5",),
    ),
    "pretrain": Command(
        "pretrain a ConvNeXt V2 on unlabelled images (masked autoencoder)",
        "zoo.training.pretrain:pretrain",
        "zoo.training.loop:to_text",
        PRETRAIN,
        backend="training",
        examples=("zoo pretrain --model convnextv2_tiny --train-data photos",),
    ),
    "demo": Command(
        "train a small CLIP pair on handwritten digits, evaluate it and write a report",
        "zoo.demo:run_demo",
        "zoo.cli.command:show_nothing",
        (
            argument("--output", default="demo-output", metavar="DIR", help="output folder (default demo-output)"),
            SEED,
            argument("--epochs", type=int, default=None, help="training epochs (default 10)"),
        ),
        backend="training",
    ),
}
