"""Commands for shards of images, embeddings, search indices and the text cache."""

from zoo.cli.command import BATCH_SIZE, PAIR, Command, argument, positive

SOURCE = argument("source", help="folder of images, CSV or TSV with a column filepath, or tar shards")
DATA_ROOT = argument("--data-root", metavar="DIR", help="base folder for paths in a table (default: that of the table)")
RUNTIME = argument(
    "--runtime", choices=("keras", "onnx", "tensorrt"), default="keras", help="what runs the towers (default keras)"
)
PRECISION = argument(
    "--precision",
    default="float32",
    metavar="NAME",
    help="precision of the towers. keras: float32, bfloat16, float16 or mixed_…; onnx: float32, float16 or int8",
)
INDEX = argument("index", metavar="INDEX", help="folder of an index")
INDEX_MODEL = argument(
    "--model", metavar="NAME|PATH", help="CLIP model that the index was built with (default: as recorded in the index)"
)
TEXT_CACHE = argument(
    "--cache",
    metavar="FILE",
    help="cache of text embeddings (default: $ZOO_TEXT_CACHE, else a file in the user's cache folder)",
)
CACHE_FILE = argument("path", metavar="FILE", help="the other cache file")

COMMANDS = {
    "embed": Command(
        "write the embeddings of images with their ids",
        "zoo.search.embed:embed_images",
        "zoo.search.build:to_text",
        (
            SOURCE,
            PAIR,
            argument(
                "--output",
                "--out",
                required=True,
                metavar="DIR",
                help="folder; the same command resumes an interrupted run",
            ),
            DATA_ROOT,
            RUNTIME,
            PRECISION,
            BATCH_SIZE,
            argument(
                "--engine", choices=("local", "ray"), default="local", help="what runs the workers (default local)"
            ),
            argument("--workers", type=positive, default=1, metavar="N", help="processes or Ray actors (default 1)"),
            argument("--address", metavar="HOST:PORT", help="a running Ray cluster (default: Ray on this machine)"),
            argument(
                "--part-size",
                type=positive,
                default=1024,
                metavar="N",
                help="images per part (default 1024); with tar shards, each shard is one part",
            ),
            argument("--overwrite", action="store_true", help="replace embeddings that are already in the folder"),
        ),
        backend="batches",
        examples=(
            "zoo embed photos --model ViT-B-32.openai --output vectors",
            "zoo embed 's3://bucket/{000..999}.tar' --model ViT-B-32.openai --output vectors --engine ray --workers 64",
        ),
    ),
    "data pack": Command(
        "write the images of a source, with captions and labels, as tar shards",
        "zoo.data.pack:pack",
        "zoo.search.build:to_text",
        (
            argument("source", help="folder, CSV or TSV, .parquet, .jsonl, tar shards, or a benchmark data set"),
            argument("output", metavar="SHARDS", help="new folder"),
            argument(
                "--shard-size", type=positive, default=1000, metavar="N", help="samples in a shard (default 1000)"
            ),
            argument("--shuffle-seed", type=int, metavar="N", help="shuffle with this seed (default: source's order)"),
            argument("--image-key", default="filepath", metavar="COLUMN", help="image column (default filepath)"),
            argument("--caption-key", metavar="COLUMN", help="caption column (default: caption, if it is there)"),
            argument("--label-key", metavar="COLUMN", help="column of classes"),
            DATA_ROOT,
        ),
        examples=("zoo data pack captions.csv shards --shuffle-seed 0",),
    ),
    "index build": Command(
        "build a search index of images; an interrupted build resumes",
        "zoo.search.build:build_index",
        "zoo.search.build:to_text",
        (
            argument("source", nargs="?", help="folder of images, CSV or TSV with a column filepath, or tar shards"),
            argument("--vectors", metavar="DIR", help="instead of a source: folder written by zoo embed"),
            PAIR,
            argument("--output", "--out", required=True, metavar="INDEX", help="folder; an existing index is resumed"),
            DATA_ROOT,
            argument(
                "--dtype", choices=("float32", "float16", "int8"), help="storage of the vectors (default float32)"
            ),
            RUNTIME,
            PRECISION,
            BATCH_SIZE,
        ),
        backend="batches",
        examples=("zoo index build photos --model ViT-B-32.openai --output photos-index",),
    ),
    "index add": Command(
        "add a source to an index, or the new images of its own sources",
        "zoo.search.build:index_add",
        "zoo.search.build:to_text",
        (
            INDEX,
            argument("source", nargs="?", help="folder, table or shards (default: the sources of the index)"),
            INDEX_MODEL,
            DATA_ROOT,
            BATCH_SIZE,
        ),
        backend="batches",
        examples=("zoo index add photos-index more-photos",),
    ),
    "index refresh": Command(
        "add the new images of an index's sources and remove those that no longer exist",
        "zoo.search.build:index_refresh",
        "zoo.search.build:to_text",
        (
            INDEX,
            argument("source", nargs="?", help="one of the sources of the index (default: all)"),
            INDEX_MODEL,
            BATCH_SIZE,
        ),
        backend="batches",
        examples=("zoo index refresh photos-index",),
    ),
    "index duplicates": Command(
        "find groups of images that are nearly the same",
        "zoo.search.build:index_duplicates",
        "zoo.search.build:groups_to_text",
        (
            INDEX,
            argument(
                "--threshold",
                type=float,
                default=0.95,
                metavar="COSINE",
                help="smallest cosine of two duplicates (default 0.95)",
            ),
            argument("--sheet", metavar="FILE", help="write the groups as .png or .html"),
        ),
        examples=("zoo index duplicates photos-index --threshold 0.97 --sheet duplicates.html",),
    ),
    "index calibrate": Command(
        "measure the scores of texts that match nothing, for zoo search --false-rate",
        "zoo.search.build:index_calibrate",
        "zoo.search.build:to_text",
        (
            INDEX,
            argument(
                "queries",
                nargs="?",
                metavar="FILE",
                help="texts that match no image, one per line (default: 108 built-in texts)",
            ),
            INDEX_MODEL,
        ),
        backend="batches",
        examples=("zoo index calibrate photos-index",),
    ),
    "index export": Command(
        "write the vectors of an index as a Lance data set",
        "zoo.search.lance_store:export_index",
        "zoo.search.build:to_text",
        (
            INDEX,
            argument("--to", required=True, metavar="PATH", help="data set, ending in .lance"),
            argument(
                "--ann",
                action="store_true",
                help="add an approximate index at any size (default: from a million vectors on)",
            ),
        ),
        examples=("zoo index export photos-index --to photos.lance",),
    ),
    "index accelerate": Command(
        "make searches of a large index faster with usearch",
        "zoo.search.build:index_accelerate",
        "zoo.search.build:to_text",
        (
            INDEX,
            argument(
                "--kind",
                choices=("float16", "int8", "hnsw"),
                default="int8",
                help="int8 (float16 means the same): a smaller copy of the vectors, with exact results; hnsw: a graph "
                "for searches with --approximate (default int8)",
            ),
        ),
        examples=("zoo index accelerate photos-index --kind hnsw",),
    ),
    "index remove": Command(
        "remove images from an index",
        "zoo.search.build:index_remove",
        "zoo.search.build:to_text",
        (INDEX, argument("ids", nargs="+", metavar="ID", help="as printed by zoo search")),
        examples=("zoo index remove photos-index 2023/beach.jpg",),
    ),
    "index info": Command(
        "show the size, storage and sources of an index",
        "zoo.search.build:index_info",
        "zoo.search.build:to_text",
        (INDEX,),
    ),
    "index verify": Command(
        "check every file of an index against its digest",
        "zoo.search.build:index_verify",
        "zoo.search.build:to_text",
        (INDEX,),
    ),
    "search": Command(
        "find the images that match texts and images",
        "zoo.search.query:search_images",
        "zoo.search.query:to_text",
        (
            INDEX,
            argument("query", nargs="?", help='a text, or an expression: "red car - truck + 2:night + dog.jpg"'),
            INDEX_MODEL,
            argument("--image", metavar="FILE", help="search with an image instead of a query"),
            argument("-k", type=positive, default=5, help="number of results (default 5)"),
            argument(
                "--where",
                action="append",
                metavar="KEY=VALUE",
                help="only images with this metadata; repeat for several conditions",
            ),
            argument("--min-score", type=float, metavar="COSINE", help="leave out images with a lower score"),
            argument(
                "--false-rate",
                type=float,
                metavar="RATE",
                help="share of texts matching nothing that may still find images, e.g. 0.05; needs zoo index calibrate",
            ),
            argument("--approximate", action="store_true", help="use the graph of zoo index accelerate --kind hnsw"),
            argument("--expansion", type=positive, metavar="N", help="--approximate with N candidates (default 128)"),
            argument("--sheet", metavar="FILE", help="write the results as .png or .html"),
            TEXT_CACHE,
        ),
        backend="batches",
        examples=(
            'zoo search photos-index "a dog on a beach" -k 10 --sheet found.html',
            "zoo search photos-index --image dog.jpg",
            'zoo search photos-index "dog.jpg - beach + 2:snow" --min-score 0.2',
        ),
    ),
    "serve": Command(
        "serve a model over HTTP, with a web page for search and classification",
        "zoo.serve.server:serve",
        "zoo.cli.command:show_nothing",
        (
            argument(
                "--model",
                required=True,
                metavar="NAME|PATH",
                help="saved CLIP model or classifier, or the name of published weights",
            ),
            argument("--index", metavar="INDEX", help="folder of an index that was built with the CLIP model"),
            argument(
                "--host",
                default="127.0.0.1",
                help="address to listen on; without --token-file only a loopback address (default 127.0.0.1)",
            ),
            argument("--port", type=int, default=8000, help="TCP port; 0 takes a free one (default 8000)"),
            argument("--name", help="name of the model in requests (default: the file's name)"),
            argument("--token-file", metavar="FILE", help="file with the token that requests must send"),
            argument(
                "--allowed-host",
                action="append",
                metavar="NAME",
                help="host name to accept in the Host header, besides localhost and IP addresses; may be repeated",
            ),
            RUNTIME,
            PRECISION,
            argument("--batch-size", type=positive, help="images per batch at most (default: the fastest)"),
            argument(
                "--max-wait-ms",
                type=float,
                default=0.0,
                metavar="MS",
                help="how long a batch waits for more inputs (default 0)",
            ),
        ),
        backend="batches",
        examples=(
            "zoo serve --model demo-output/model.safetensors --index demo-output/digits.index",
            "zoo serve --model ViT-B-32.openai --runtime onnx --host 0.0.0.0 --token-file token",
        ),
    ),
    **{
        f"cache {job}": Command(
            summary, f"zoo.search.cache:cache_{job}", "zoo.search.build:to_text", (*arguments, TEXT_CACHE)
        )
        for job, summary, arguments in (
            ("stats", "show the number of texts and the hit rate", ()),
            ("clear", "delete all entries", ()),
            ("verify", "read and check every entry", ()),
            ("export", "copy the cache to another file", (CACHE_FILE,)),
            ("import", "add the entries of another cache file", (CACHE_FILE,)),
        )
    },
}
