"""Build, extend and inspect an index of images: the commands `zoo index …`."""

from pathlib import Path

import numpy as np

from zoo.data import Dataset
from zoo.embeddings import Index
from zoo.inference.pipeline import ClipPipeline
from zoo.search.embed import Portion, embed_portions, open_images

DUPLICATE = "the same bytes as "


def build_index(
    source: str,
    *,
    model: str,
    output: str,
    dtype: str | None = None,
    batch_size: int = 64,
    runtime: str = "keras",
    precision: str = "float32",
) -> dict:
    """Index a folder, table or shards, and return `Index.info`: `zoo index build`.

    An existing index is resumed: its images stay, new ones are added. A file with the bytes of another is left out as
    its duplicate.

    Args:
        source: a folder of images, a CSV or TSV file with a column `filepath`, or tar shards.
        model: name or path of a pair.
        output: folder of the index.
        dtype: dtype of the stored vectors; by default float32, or that of the existing index.
        batch_size, runtime, precision: options of `ClipPipeline`. The index records runtime and precision.

    Raises:
        ValueError: no images in the source, in which case nothing is written; or the index has another dtype or model.
    """
    records = open_images(source)
    pipeline = ClipPipeline(model, batch_size=batch_size, runtime=runtime, precision=precision, cache=False)
    path = Path(output)
    if (path / "manifest.json").is_file():
        index = Index.open(path, model=pipeline.fingerprint)
        if dtype not in (None, index.manifest["dtype"]):
            raise ValueError(f"{path} stores {index.manifest['dtype']}, not {dtype}; build another index for {dtype}")
    else:
        weights = str(Path(model).resolve()) if Path(model).exists() else model
        facts = {"weights": weights, "runtime": runtime, "precision": precision, "sources": {}, "left_out": {}}
        empty = np.empty((0, pipeline.encoder.dim), np.float32)
        index = Index.build(empty, path, dtype=dtype or "float32", model=pipeline.fingerprint, facts=facts)
    add_images(index, pipeline, source, records)
    return index.info()


def index_add(index: str, source: str | None = None, *, model: str | None = None, batch_size: int = 64) -> dict:
    """Add the new images of a source, or of the index's own sources, and return `Index.info`: `zoo index add`.

    Args:
        source: see `build_index`.
        model: the pair that built the index; by default the one that the index records.
    """
    opened = Index.open(index)
    pipeline = open_pipeline(opened, model, batch_size=batch_size, cache=False)
    for place in [source] if source else list(opened.facts.get("sources", {}).values()):
        add_images(opened, pipeline, place, open_images(place))
    return opened.info()


def open_pipeline(index: Index, model: str | None = None, **options) -> ClipPipeline:
    """Return the pipeline that an index was built with.

    Args:
        model: name or path of its pair; by default the one that the index records.
        options: options of `ClipPipeline`.

    Raises:
        ValueError: the index records no model, or was built with another one.
        FileNotFoundError: the recorded file does not exist any more.
    """
    facts = index.facts
    recorded = facts.get("weights")
    if (model or recorded) is None:
        raise ValueError(f"{index.path} does not record its model; name it with --model")
    encoded = {"runtime": facts.get("runtime", "keras"), "precision": facts.get("precision", "float32")}
    try:
        pipeline = ClipPipeline(model or recorded, **encoded, **options)
    except FileNotFoundError as error:
        if model is not None:
            raise
        raise FileNotFoundError(f"{error} {index.path} was built with it; if it has moved, pass --model.") from error
    index.require(pipeline.fingerprint)
    return pipeline


def add_images(index: Index, pipeline: ClipPipeline, source: str | Path, records: Dataset) -> None:
    """Add the images of a source that the index does not have, one portion per commit."""
    prefix = _source_prefix(index, str(Path(source).resolve()))
    id_of_digest = {index.metadata(identity).get("sha256"): identity for identity in index.ids}
    known = {*index.ids, *_duplicates(index)}
    new = records.subset([i for i, name in enumerate(records.names) if prefix + name not in known])
    for portion in embed_portions(pipeline.encoder, new):
        _commit(index, prefix, new, portion, id_of_digest)


def _commit(index: Index, prefix: str, records: Dataset, portion: Portion, id_of_digest: dict) -> None:
    """Add a portion, and the reasons for the images left out, in one write."""
    left_out = index.facts.get("left_out", {}) | {prefix + name: why for name, why in portion.left_out.items()}
    rows, ids, metadata = [], [], []
    for row, (i, digest) in enumerate(zip(portion.indices, portion.digests, strict=True)):
        identity = prefix + records.names[i]
        first = id_of_digest.setdefault(digest, identity)
        if first != identity:
            left_out[identity] = DUPLICATE + first
            continue
        left_out.pop(identity, None)
        rows.append(row)
        ids.append(identity)
        metadata.append({**records.metadata(i), "sha256": digest})
    index.add(portion.vectors[rows], ids=ids, metadata=metadata, facts={"left_out": left_out})


def _source_prefix(index: Index, place: str) -> str:
    """Return the prefix of the ids of a source's images: "" for the first source, the name of a further one."""
    sources = index.facts.get("sources", {})
    for prefix, known in sources.items():
        if known == place:
            return prefix
    name, number = Path(place).name, 2
    prefix = f"{name}/" if sources else ""
    while prefix in sources or prefix and any(identity.startswith(prefix) for identity in index.ids):
        prefix, number = f"{name}~{number}/", number + 1
    index.set_facts({"sources": {**sources, prefix: place}})
    return prefix


def _duplicates(index: Index) -> set[str]:
    """Return the names left out as duplicates of an image that is still in the index."""
    ids = set(index.ids)
    left_out = index.facts.get("left_out", {}).items()
    return {name for name, why in left_out if why.startswith(DUPLICATE) and why.removeprefix(DUPLICATE) in ids}


def index_accelerate(index: str, kind: str = "int8") -> dict:
    """Build an accelerator and return what `Index.accelerate` returns: `zoo index accelerate`."""
    return Index.open(index).accelerate(kind)


def index_remove(index: str, ids: list[str]) -> dict:
    """Remove images and return `Index.info`: `zoo index remove`."""
    opened = Index.open(index)
    try:
        opened.remove(ids)
    except KeyError as error:
        raise ValueError(error.args[0]) from error
    return opened.info()


def index_info(index: str) -> dict:
    """Return `Index.info`: `zoo index info`."""
    return Index.open(index).info()


def index_verify(index: str) -> dict:
    """Check every file's digest and return {"verified": vectors}: `zoo index verify`."""
    return {"verified": Index.open(index).verify()}


def to_text(facts: dict) -> str:
    """Format facts, one per line; of a dict, its size and first entry."""
    width = 2 + max(map(len, facts), default=0)
    return "\n".join(f"{name.replace('_', ' '):<{width}}{_format(value)}" for name, value in facts.items())


def _format(value) -> str:
    if isinstance(value, dict):
        return f"{len(value)}, e.g. {': '.join(filter(None, next(iter(value.items()))))}" if value else "0"
    return ", ".join(value) or "none" if isinstance(value, list) else str(value)
