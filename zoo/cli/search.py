"""Embeddings, indexes of images and the cache of texts."""

from zoo.cli.command import IMAGES_AT_A_TIME, PAIR, Command, argument, positive

TEXT_CACHE = argument("--cache", metavar="FILE", help="of texts' embeddings (default: $ZOO_TEXT_CACHE, or the user's)")
INDEX = argument("index", metavar="INDEX", help="folder of an index")
INDEX_MODEL = argument("--model", metavar="NAME|PATH", help="that made the index (default: as the index says)")
CACHE_FILE = argument("path", metavar="FILE", help="of a cache")
RUNTIME = argument("--runtime", choices=("keras", "onnx"), default="keras", help="default keras")
PRECISION = argument(
    "--precision",
    default="float32",
    metavar="NAME",
    help="of the towers: with keras float32, bfloat16, float16 and mixed_…, with onnx float32, float16, int8",
)
NEW_INDEX = (
    argument("source", help="folder of images, CSV or TSV with a column filepath, or tar shards"),
    PAIR,
    argument("--output", "--out", required=True, metavar="INDEX", help="folder; one that is there is gone on with"),
    argument("--dtype", choices=("float32", "float16", "int8"), help="of the vectors kept (default float32)"),
    RUNTIME,
    PRECISION,
    IMAGES_AT_A_TIME,
)


COMMANDS = {
    "embed": Command(
        "write the embeddings of images, with their ids",
        "zoo.search.build:embed_images",
        "zoo.search.build:to_text",
        (
            argument("source", help="folder of images, CSV or TSV with a column filepath, or tar shards"),
            PAIR,
            argument("--output", "--out", required=True, metavar="DIR", help="folder for shards and a manifest"),
            RUNTIME,
            PRECISION,
            IMAGES_AT_A_TIME,
        ),
        uses_backend=True,
    ),
    "index build": Command(
        "index images for search; goes on where it was stopped",
        "zoo.search.build:build_index",
        "zoo.search.build:to_text",
        NEW_INDEX,
        uses_backend=True,
    ),
    "index add": Command(
        "add another source to an index, or what is new in its own",
        "zoo.search.build:index_add",
        "zoo.search.build:to_text",
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
        "zoo.search.build:index_accelerate",
        "zoo.search.build:to_text",
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
        "zoo.search.build:index_remove",
        "zoo.search.build:to_text",
        (INDEX, argument("ids", nargs="+", metavar="ID", help="as a search prints them")),
    ),
    "index info": Command(
        "size, storage and source of an index",
        "zoo.search.build:index_info",
        "zoo.search.build:to_text",
        (INDEX,),
    ),
    "index verify": Command(
        "compare every file of an index with its digest",
        "zoo.search.build:index_verify",
        "zoo.search.build:to_text",
        (INDEX,),
    ),
    "search": Command(
        "find the images that match a sentence or an image",
        "zoo.search.build:search_images",
        "zoo.search.build:matches_to_text",
        (
            INDEX,
            argument("query", nargs="?", help='e.g. "a photo of a seven"'),
            INDEX_MODEL,
            argument("--image", metavar="FILE", help="an image in place of the sentence"),
            argument("-k", type=positive, default=5, help="how many (default 5)"),
            argument("--where", action="append", metavar="KEY=VALUE", help="only images of which the index says so"),
            argument("--approximate", action="store_true", help="through the graph of zoo index accelerate"),
            argument("--expansion", type=positive, metavar="N", help="the same, with N vectors in view (default 128)"),
            argument("--sheet", metavar="FILE", help=".png or .html of what was found"),
            TEXT_CACHE,
        ),
        uses_backend=True,
    ),
    **{
        f"cache {job}": Command(
            summary, f"zoo.search.build:cache_{job}", "zoo.search.build:to_text", (*arguments, TEXT_CACHE)
        )
        for job, summary, arguments in (
            ("stats", "how many texts it holds, and how often they were there", ()),
            ("clear", "drop all it holds", ()),
            ("verify", "read and check every entry", ()),
            ("export", "copy it to another file", (CACHE_FILE,)),
            ("import", "take in what another file holds", (CACHE_FILE,)),
        )
    },
}
