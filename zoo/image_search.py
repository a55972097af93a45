"""Pictures embedded and searched, as commands: `zoo embed`, `zoo index`, `zoo search`, `zoo cache`."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from zoo.data import Dataset, Record, open_record, read_csv, read_shards
from zoo.data.folders import image_names
from zoo.data.paths import inside, read_file
from zoo.files import atomic_write, sha256
from zoo.pipeline import ClipPipeline
from zoo.report import SheetRow, plot_sheet
from zoo.search import Index, TextCache, default_cache_path

PORTION = 1024  # images between two commits of an index
SHEET_COLUMNS = 10


@dataclass(frozen=True)
class Match:
    """One result of a search: its place, the id, the cosine, and what the index says of it."""

    rank: int
    id: str
    score: float
    metadata: dict


def read_source(source: str | Path) -> Dataset:
    """Records of a folder of images, at any depth and with nothing beside them; of a CSV or TSV file with a column
    `filepath`; or of tar shards."""
    path = Path(source)
    if path.suffix.lower() in (".csv", ".tsv"):
        return read_csv(path, caption_key=None)
    if not path.is_dir():
        return read_shards(source)
    root = path.resolve()
    names = image_names(root)
    return Dataset(names, lambda i: Record(read_file(inside(str(root), names[i])), names[i]), fingerprint="")


def embed_source(pipeline: ClipPipeline, records: Dataset, keep: Callable, *, skip=frozenset()) -> dict[str, str]:
    """Embeds what is not in `skip`, a portion at a time: keep(names, vectors (n, D), digests).

    Args:
        keep: is handed each portion; what it has returned from is safe.
        skip: names.

    Returns:
        {name: why it was left out}.
    """
    rest = [i for i, name in enumerate(records.names) if name not in skip]
    left_out = {}
    for first in range(0, len(rest), PORTION):
        digests = {}
        part = _digested(records.subset(rest[first : first + PORTION]), digests)
        vectors, kept, bad = pipeline.encoder.embed_records(part, progress=True)
        names = [part.names[i] for i in kept]
        left_out |= {part.names[i]: reason for i, reason in bad.items()}
        keep(names, vectors, [digests[name] for name in names])
    return left_out


def _digested(records: Dataset, digests: dict[str, str]) -> Dataset:
    """The same records; reading one notes the digest of its bytes."""

    def read(i: int) -> Record:
        record = records.read(i)
        data = record.image.tobytes() if isinstance(record.image, np.ndarray) else record.image
        digests[records.names[i]] = hashlib.sha256(data).hexdigest()
        return record

    return replace(records, read=read)


def build_index(
    source: str, *, model: str, output: str, dtype: str = "float32", batch_size: int = 64, runtime: str = "keras"
) -> dict:
    """The command `zoo index build`: begins an index of a folder, table or shards, or goes on with one.

    What was indexed stays as it is; a file with the bytes of another is left out as its duplicate. Killed, it goes on
    where it was.

    Returns:
        What `Index.info` says.
    """
    pipeline = ClipPipeline(model, batch_size=batch_size, runtime=runtime, cache=False)
    records = read_source(source)
    path = Path(output)
    if (path / "manifest.json").is_file():
        index = Index.open(path, model=pipeline.fingerprint)
    else:
        dim = pipeline.embed_texts(["a"]).shape[1]
        facts = {"source": str(Path(source).resolve()), "left_out": {}}
        empty = np.empty((0, dim), np.float32)
        index = Index.build(empty, path, dtype=dtype, model=pipeline.fingerprint, facts=facts)
    seen = {index.metadata(identity).get("sha256"): identity for identity in index.ids}
    twins = {}

    def keep(names, vectors, digests):
        fresh = []
        for i, (name, digest) in enumerate(zip(names, digests, strict=True)):
            if digest in seen:
                twins[name] = f"the same bytes as {seen[digest]}"
            else:
                seen[digest] = name
                fresh.append(i)
        metadata = [{"sha256": digests[i]} for i in fresh]
        if fresh:
            index.add(vectors[fresh], ids=[names[i] for i in fresh], metadata=metadata)

    left_out = embed_source(pipeline, records, keep, skip=frozenset(index.ids))
    index.state({"left_out": {**left_out, **twins}})
    return index.info()


def index_remove(index: str, ids: list[str]) -> dict:
    """The command `zoo index remove`."""
    opened = Index.open(index)
    try:
        opened.remove(ids)
    except KeyError as error:
        raise ValueError(error.args[0]) from error
    return opened.info()


def index_info(index: str) -> dict:
    """The command `zoo index info`."""
    return Index.open(index).info()


def index_verify(index: str) -> dict:
    """The command `zoo index verify`."""
    return {"verified": Index.open(index).verify()}


def search_images(
    index: str,
    query: str | None = None,
    *,
    model: str,
    image: str | None = None,
    k: int = 5,
    sheet: str | None = None,
    cache: str | None = None,
) -> list[Match]:
    """The command `zoo search`: the images that match a sentence, or an image, best first.

    Args:
        sheet: PNG of them to write.
        cache: file of the text cache; the user's own unless given.
    """
    if (query is None) == (image is None):
        raise ValueError("give a sentence or --image FILE, one of the two")
    pipeline = ClipPipeline(model, cache=TextCache(cache or default_cache_path()))
    opened = Index.open(index, model=pipeline.fingerprint)
    ids, scores = pipeline.search(opened, Path(image) if image else query, k)
    pairs = enumerate(zip(ids, scores, strict=True), 1)
    matches = [Match(rank, identity, float(score), opened.metadata(identity)) for rank, (identity, score) in pairs]
    if sheet is not None:
        draw_sheet(Path(sheet), f"“{query}”" if query else Path(image).name, matches, opened.info().get("source"))
    return matches


def draw_sheet(path: Path, text: str, matches: list[Match], source: str | None) -> None:
    """The matches as pictures, where the source still has them."""
    records = None if source is None else read_source(source)
    places = {} if records is None else {name: i for i, name in enumerate(records.names)}
    shown = []
    for match in matches:
        if match.id in places:
            picture = np.asarray(open_record(records.record(places[match.id])).convert("RGB"))
            shown.append((picture, f"{match.score:.3f}"))
    if not shown:
        raise ValueError(f"none of the images found is still in {source!r}, so that there is nothing to draw")
    lines = [shown[first : first + SHEET_COLUMNS] for first in range(0, len(shown), SHEET_COLUMNS)]
    rows = [
        SheetRow(text if i == 0 else "", [picture for picture, _ in line], [note for _, note in line])
        for i, line in enumerate(lines)
    ]
    plot_sheet(path, rows)


def embed_images(source: str, *, model: str, output: str, batch_size: int = 64) -> dict:
    """The command `zoo embed`: unit vectors with their ids, in shards of safetensors, and a manifest with digests.

    Shard i holds `embeddings` float32 (n, D); the manifest names the ids of each, and what was left out.
    """
    from zoo.convert import write_safetensors

    pipeline = ClipPipeline(model, batch_size=batch_size, cache=False)
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    shards = []

    def keep(names, vectors, digests):
        if names:
            path = folder / f"embeddings-{len(shards):05d}.safetensors"
            write_safetensors(path, {"embeddings": vectors}, {"model": pipeline.fingerprint})
            shards.append({"file": path.name, "sha256": sha256(path), "ids": names, "images": digests})

    left_out = embed_source(pipeline, read_source(source), keep)
    manifest = {"model": pipeline.fingerprint, "source": str(source), "shards": shards, "left_out": left_out}
    with atomic_write(folder / "manifest.json", "w") as file:
        json.dump(manifest, file, indent=1, ensure_ascii=False)
    return {"images": sum(len(shard["ids"]) for shard in shards), "shards": len(shards), "left out": len(left_out)}


def cache_stats(cache: str | None = None) -> dict:
    """The command `zoo cache stats`."""
    stats = TextCache(cache or default_cache_path()).stats()
    return {"file": str(cache or default_cache_path()), "entries": stats.entries, "bytes": stats.bytes}


def cache_clear(cache: str | None = None) -> dict:
    """The command `zoo cache clear`."""
    return {"dropped": TextCache(cache or default_cache_path()).clear()}


def cache_verify(cache: str | None = None) -> dict:
    """The command `zoo cache verify`."""
    entries, damaged = TextCache(cache or default_cache_path()).verify()
    return {"entries": entries, "damaged": damaged}


def to_text(facts: dict) -> str:
    """A line a fact; of what was left out the number and the first."""
    lines = []
    for name, value in facts.items():
        if isinstance(value, dict):
            value = f"{len(value)}, e.g. {next(iter(value.items()))}" if value else "0"
        lines.append(f"{name.replace('_', ' '):<12}{value}")
    return "\n".join(lines)


def matches_to_text(matches: list[Match]) -> str:
    """A line a match: place, cosine, id."""
    return "\n".join(f"{match.rank:>3}  {match.score:.4f}  {match.id}" for match in matches)
