"""Pictures embedded and searched, as commands: `zoo embed`, `zoo index`, `zoo search`, `zoo cache`."""

import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from zoo.data import Dataset, open_dataset, open_record
from zoo.embeddings import Index, TextCache, default_cache_path
from zoo.inference.pipeline import ClipPipeline
from zoo.search.embed import embed_portions
from zoo.search.sheet import check_sheet_path, write_sheet
from zoo.utils.files import atomic_write, sha256

TWIN = "the same bytes as "


@dataclass(frozen=True)
class Match:
    """One result of a search: its place, the id, the cosine, and what the index says of it."""

    rank: int
    id: str
    score: float
    metadata: dict


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
    """The command `zoo index build`: begins an index of a folder, table or shards, or goes on with one.

    What was indexed stays as it is; a file with the bytes of another is left out as its duplicate. Killed, it goes on
    where it was.

    Args:
        dtype: of the vectors kept: float32 unless given, or what an index that is there has.
        runtime, precision: of `ClipPipeline`; the index remembers them.

    Returns:
        What `Index.info` says.

    Raises:
        ValueError: nothing to read at the source, in which case nothing is written, or an index of another dtype.
    """
    records = open_images(source)
    pipeline = ClipPipeline(model, batch_size=batch_size, runtime=runtime, precision=precision, cache=False)
    path = Path(output)
    if (path / "manifest.json").is_file():
        index = Index.open(path, model=pipeline.fingerprint)
        if dtype not in (None, index.manifest["dtype"]):
            raise ValueError(f"{path} keeps {index.manifest['dtype']}, not {dtype}; build another index for that")
    else:
        weights = str(Path(model).resolve()) if Path(model).exists() else model
        facts = {"weights": weights, "runtime": runtime, "precision": precision, "sources": {}, "left_out": {}}
        empty = np.empty((0, pipeline.encoder.dim), np.float32)
        index = Index.build(empty, path, dtype=dtype or "float32", model=pipeline.fingerprint, facts=facts)
    _go_on(index, pipeline, source, records)
    return index.info()


def index_add(index: str, source: str | None = None, *, model: str | None = None, batch_size: int = 64) -> dict:
    """The command `zoo index add`: what a source has and the index has not; without one, of the index's own sources.

    Args:
        model: what made the index; as the index says unless given.
    """
    opened = Index.open(index)
    pipeline = open_pipeline(opened, model, batch_size=batch_size, cache=False)
    for place in [source] if source else list(opened.info().get("sources", {}).values()):
        _go_on(opened, pipeline, place, open_images(place))
    return opened.info()


def open_pipeline(index: Index, model: str | None = None, **options) -> ClipPipeline:
    """The pipeline whose vectors an index holds.

    Args:
        model: file or name; the one that the index was built with unless given.
        options: of `ClipPipeline`.

    Raises:
        ValueError: the index does not say, or was made with another model. FileNotFoundError: it has moved.
    """
    facts = index.info()
    made = facts.get("weights")
    if (model or made) is None:
        raise ValueError(f"{index.path} does not say which model made it; name it with --model")
    encoded = {"runtime": facts.get("runtime", "keras"), "precision": facts.get("precision", "float32")}
    try:
        pipeline = ClipPipeline(model or made, **encoded, **options)
    except FileNotFoundError as error:
        if model is not None:
            raise
        raise FileNotFoundError(f"{error} It made {index.path}; say with --model where it is now.") from error
    index.require(pipeline.fingerprint)
    return pipeline


def open_images(source: str | Path) -> Dataset:
    """Return the images of a folder, table or tar shards, each name once, with their metadata."""
    return open_dataset(source, needs="images", metadata=True).unique()


def _go_on(index: Index, pipeline: ClipPipeline, source: str | Path, records: Dataset) -> None:
    """Indexes what is not there yet. A portion of images and what is left out of it are committed together."""
    prefix = _prefix(index, str(Path(source).resolve()))
    row_of = {name: i for i, name in enumerate(records.names)}
    seen = {index.metadata(identity).get("sha256"): identity for identity in index.ids}
    known = {*index.ids, *_twins(index)}
    todo = [i for i, name in enumerate(records.names) if prefix + name not in known]

    for names, vectors, digests, bad in embed_portions(pipeline.encoder, records.subset(todo)):
        left_out = {**index.info().get("left_out", {}), **{prefix + name: why for name, why in bad.items()}}
        fresh = []
        for i, (name, digest) in enumerate(zip(names, digests, strict=True)):
            twin = seen.setdefault(digest, prefix + name)
            if twin == prefix + name:
                fresh.append(i)
                left_out.pop(twin, None)
            else:
                left_out[prefix + name] = TWIN + twin
        ids = [prefix + names[i] for i in fresh]
        metadata = [{**records.metadata(row_of[names[i]]), "sha256": digests[i]} for i in fresh]
        vectors = vectors[fresh] if fresh else np.empty((0, index.dim), np.float32)
        index.add(vectors, ids=ids, metadata=metadata, facts={"left_out": left_out})


def _prefix(index: Index, place: str) -> str:
    """What the ids of a source's images begin with: nothing for the first source, its name for a further one."""
    sources = index.info().get("sources", {})
    for prefix, known in sources.items():
        if known == place:
            return prefix
    name, number = Path(place).name, 2
    prefix = f"{name}/" if sources else ""
    while prefix in sources or prefix and any(identity.startswith(prefix) for identity in index.ids):
        prefix, number = f"{name}~{number}/", number + 1
    index.set_facts({"sources": {**sources, prefix: place}})
    return prefix


def _twins(index: Index) -> set[str]:
    """Names left out as duplicates of what is still there."""
    ids = set(index.ids)
    left_out = index.info().get("left_out", {}).items()
    return {name for name, why in left_out if why.startswith(TWIN) and why.removeprefix(TWIN) in ids}


def index_accelerate(index: str, kind: str = "int8") -> dict:
    """The command `zoo index accelerate`."""
    return Index.open(index).accelerate(kind)


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
    model: str | None = None,
    image: str | None = None,
    k: int = 5,
    where: Sequence[str] | None = None,
    approximate: bool = False,
    expansion: int | None = None,
    sheet: str | None = None,
    cache: str | None = None,
) -> list[Match]:
    """The command `zoo search`: the images that match a sentence, or an image, best first.

    Args:
        model: what made the index; as the index says unless given.
        where: "KEY=VALUE" each, that the metadata must have.
        approximate: through the graph of `zoo index accelerate --kind hnsw`.
        expansion: the same, with so many vectors kept in view.
        sheet: .png or .html of them to write; a warning names those that are no longer where they were.
        cache: file of the text cache; the user's own unless given.
    """
    if (query is None) == (image is None):
        raise ValueError("give a sentence or --image FILE, one of the two")
    if sheet is not None:
        check_sheet_path(Path(sheet))
    opened = Index.open(index)
    fits = _filter(where)
    texts = TextCache(cache or default_cache_path())
    pipeline = open_pipeline(opened, model, cache=texts)
    asked = Path(image) if image else query
    ids, scores = pipeline.search(opened, asked, k, where=fits, approximate=expansion or approximate)
    texts.close()
    pairs = enumerate(zip(ids, scores, strict=True), 1)
    matches = [Match(rank, identity, float(score), opened.metadata(identity)) for rank, (identity, score) in pairs]
    if sheet is not None:
        draw_sheet(Path(sheet), query or Path(image).name, matches, opened.info().get("sources", {}))
    return matches


def _filter(where: Sequence[str] | None) -> Callable[[dict], bool] | None:
    """Whether metadata has every "KEY=VALUE", values compared as they are written."""
    pairs = [text.partition("=") for text in where or ()]
    for key, equals, value in pairs:
        if not key or not equals:
            raise ValueError(f"--where {key}{equals}{value} is not KEY=VALUE")
    return (lambda entry: all(str(entry.get(key, "")) == value for key, _, value in pairs)) if pairs else None


def draw_sheet(path: Path, text: str, matches: list[Match], sources: dict[str, str]) -> None:
    """The matches as pictures. Warns of one that cannot be drawn; ValueError when that is all of them."""
    if not matches:
        raise ValueError("nothing was found, so that there is nothing to draw")
    places, found, reasons = _places(sources), [], []
    for match in matches:
        try:
            found.append((_picture(match.id, places), f"{match.score:.3f}", match.id))
        except (OSError, ValueError) as error:
            reasons.append(f"{match.id} is not drawn: {error}")
            warnings.warn(reasons[-1], stacklevel=2)
    if not found:
        where = ", ".join(sources.values()) or "any place that the index names"
        raise ValueError(f"none of the images found can still be read from {where}; {reasons[0]}")
    write_sheet(path, text, found)


def _places(sources: dict[str, str]) -> dict[str, tuple[Dataset, int]]:
    """{id: (records, which of them)} of all that the sources still have."""
    places = {}
    for prefix, place in sources.items():
        try:
            records = open_images(place)
        except (OSError, ValueError):  # its pictures are named where they are missed
            continue
        places |= {prefix + name: (records, i) for i, name in enumerate(records.names)}
    return places


def _picture(identity: str, places: dict[str, tuple[Dataset, int]]) -> np.ndarray:
    if identity not in places:
        raise ValueError("no source of the index has it any more")
    records, i = places[identity]
    return np.asarray(open_record(records.record(i)).convert("RGB"))


def embed_images(
    source: str,
    *,
    model: str,
    output: str,
    batch_size: int = 64,
    runtime: str = "keras",
    precision: str = "float32",
) -> dict:
    """The command `zoo embed`: unit vectors with their ids, in shards of safetensors, and a manifest with digests.

    Shard i holds `embeddings` float32 (n, D); the manifest names the ids of each, and what was left out. Shards of an
    earlier run in the same folder give way.

    Args:
        runtime, precision: of `ClipPipeline`.
    """
    from zoo.weights import write_safetensors

    records = open_images(source)
    pipeline = ClipPipeline(model, batch_size=batch_size, runtime=runtime, precision=precision, cache=False)
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    shards, left_out = [], {}

    for names, vectors, digests, bad in embed_portions(pipeline.encoder, records):
        left_out.update(bad)
        if names:
            path = folder / f"embeddings-{len(shards):05d}.safetensors"
            write_safetensors(path, {"embeddings": vectors}, {"model": pipeline.fingerprint})
            shards.append({"file": path.name, "sha256": sha256(path), "ids": names, "images": digests})

    manifest = {"model": pipeline.fingerprint, "source": str(source), "shards": shards, "left_out": left_out}
    with atomic_write(folder / "manifest.json", "w") as file:
        json.dump(manifest, file, indent=1, ensure_ascii=False)
    for path in set(folder.glob("embeddings-*.safetensors")) - {folder / shard["file"] for shard in shards}:
        path.unlink()  # of a longer run before
    return {"images": sum(len(shard["ids"]) for shard in shards), "shards": len(shards), "left out": len(left_out)}


def cache_stats(cache: str | None = None) -> dict:
    """The command `zoo cache stats`."""
    texts = _cache(cache)
    stats = texts.stats()
    facts = {"file": str(texts.path), "entries": stats.entries, "bytes": stats.bytes}
    return {**facts, **texts.lifetime()}


def cache_clear(cache: str | None = None) -> dict:
    """The command `zoo cache clear`."""
    return {"dropped": _cache(cache).clear()}


def cache_verify(cache: str | None = None) -> dict:
    """The command `zoo cache verify`."""
    entries, damaged = _cache(cache).verify()
    return {"entries": entries, "damaged": damaged}


def cache_export(path: str, cache: str | None = None) -> dict:
    """The command `zoo cache export`."""
    return {"written": _cache(cache).copy_to(TextCache(_absent(path)))}


def cache_import(path: str, cache: str | None = None) -> dict:
    """The command `zoo cache import`."""
    return {"read": _cache(path).copy_to(TextCache(cache or default_cache_path()))}


def _cache(path: str | None) -> TextCache:
    """The cache in a file, the user's own unless given, which is there and stays where it is."""
    return TextCache(path or default_cache_path(), create=False)


def _absent(path: str) -> Path:
    if Path(path).exists():
        raise FileExistsError(f"{path} is there already; name another file")
    return Path(path)


def to_text(facts: dict) -> str:
    """A line a fact; of what was left out the number and the first."""
    width = 2 + max(map(len, facts), default=0)
    return "\n".join(f"{name.replace('_', ' '):<{width}}{_shown(value)}" for name, value in facts.items())


def _shown(value) -> str:
    if isinstance(value, dict):
        return f"{len(value)}, e.g. {': '.join(filter(None, next(iter(value.items()))))}" if value else "0"
    return ", ".join(value) or "none" if isinstance(value, list) else str(value)


def matches_to_text(matches: list[Match]) -> str:
    """A line a match: place, cosine, id."""
    return "\n".join(f"{match.rank:>3}  {match.score:.4f}  {match.id}" for match in matches)
