"""Build, extend and inspect an index of images: the commands `zoo index …`."""

import contextlib
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from zoo.data import Dataset
from zoo.data.records import image_digest
from zoo.embeddings import Index
from zoo.embeddings.parts import Embeddings, Part, read_parts
from zoo.inference.pipeline import ClipPipeline
from zoo.search.embed import PORTION, embed_portions, open_images, recorded_root
from zoo.search.lance_store import LanceStore
from zoo.search.sheet import check_sheet_path, draw_groups
from zoo.utils.strict_json import check_fields, is_utf8, object_of, text
from zoo.utils.text import quoted, shown

DUPLICATE = "the same bytes as "
_MOST_DRAWN = 100  # groups of near-duplicates on a sheet
_MOST_NAMED = 8  # entries of a list in a text
# Facts of an index that the commands use; users of `Index` may keep others.
_FACTS = {
    "weights": text().or_null(),
    "runtime": text(100),
    "precision": text(100),
    "sources": object_of(text()),
    "data_roots": object_of(text()),
    "left_out": object_of(text()),
}
_SUBJECTS = (
    "an electron micrograph of a virus, an X-ray of a knee, a satellite image of a hurricane, a circuit diagram, "
    "a page of sheet music, a crossword puzzle, a tax form, a chess diagram, a periodic table, a weather chart, a "
    "knitting pattern, a seismogram, a treble clef, a Gothic altar, a steam turbine, a particle accelerator, a "
    "bathyscaphe, a pangolin, an axolotl, a narwhal, a trilobite fossil, a Viking helmet, a samurai sword, an "
    "Egyptian papyrus, a Mayan temple, an astrolabe, a telegraph key, a spinning wheel, a loom, a blast furnace, "
    "an oil rig, a combine harvester, a tank, an aircraft carrier, a space station, a Mars rover, a nuclear "
    "reactor, a court room, a boxing match, a bullfight, a rodeo, a curling stone, a bobsleigh, a harp, a "
    "bagpipe, a pipe organ, a coat of arms, a banknote, a fingerprint, a coral polyp under a microscope, an "
    "autopsy, a coal mine, a slaughterhouse, a spider eating a moth"
)
# Texts that match few collections, for `index_calibrate`.
UNRELATED = tuple(text for subject in _SUBJECTS.split(", ") for text in (subject, f"a photo of {subject}"))


def build_index(
    source: str | None = None,
    *,
    model: str,
    output: str,
    vectors: str | None = None,
    data_root: str | None = None,
    dtype: str | None = None,
    batch_size: int = 64,
    runtime: str = "keras",
    precision: str = "float32",
    pipeline: ClipPipeline | None = None,
) -> dict:
    """Index a folder, table or shards, and return `Index.info`: `zoo index build`.

    An existing index is resumed: its images stay, new ones are added. A file with the bytes of another is left out as
    its duplicate.

    Args:
        source: a folder of images, a CSV or TSV file with a column `filepath`, or tar shards.
        model: name or path of a pair.
        output: folder of the index.
        vectors: in place of a source, a folder that `zoo embed` has written with this model.
        data_root: base folder for the paths in a table, which the index records; default: the table's folder.
        dtype: dtype of the stored vectors; by default float32, or that of the existing index.
        batch_size, runtime, precision: options of `ClipPipeline`. The index records runtime and precision.
        pipeline: that of the model with these options, if there is one already.

    Raises:
        ValueError: no images in the source, in which case nothing is written; or the index has another dtype or model.
    """
    if (source is None) == (vectors is None):
        raise ValueError("an index is built either of a source or of the vectors of zoo embed (--vectors)")
    stored = None if vectors is None else read_parts(vectors)
    root = _absolute_root(source, data_root)
    records = None if source is None else open_images(source, root)
    if stored is not None:
        runtime, precision = stored.runtime, stored.precision
    if pipeline is None:
        pipeline = ClipPipeline(model, batch_size=batch_size, runtime=runtime, precision=precision, cache=False)
    if stored is not None and stored.model != pipeline.fingerprint:
        raise ValueError(f"{shown(vectors)} was embedded by another model than {shown(model)}")
    path = Path(output)
    if Index.exists(path):
        index = Index.open(path, model=pipeline.fingerprint)
        if dtype not in (None, index.dtype):
            raise ValueError(f"{shown(path)} stores {index.dtype}, not {dtype}; build another index for {dtype}")
    else:
        weights = str(Path(model).resolve()) if os.path.exists(model) else model
        facts = {"weights": weights, "runtime": runtime, "precision": precision, "sources": {}, "left_out": {}}
        empty = np.empty((0, pipeline.encoder.dim), np.float32)
        index = Index.build(empty, path, dtype=dtype or "float32", model=pipeline.fingerprint, facts=facts)
    if stored is not None:
        _add_parts(index, stored)
    elif source is not None and records is not None:
        add_images(index, pipeline, source, records, data_root=root)
    return index.info()


def _add_parts(index: Index, stored: Embeddings) -> None:
    """Add embeddings on disk that the index does not have, one part per commit."""
    prefix, facts = _source_prefix(index, stored.source, stored.data_root)
    for part in stored.parts:
        _commit(index, prefix, part, facts)
    if facts:
        index.set_facts(facts)


def facts_of(index: "Index | LanceStore") -> dict:
    """Return the facts of an index; ValueError if one that the commands use is not of the type that they write."""
    facts = index.facts
    check_fields(facts, _FACTS, index.path.name, "facts", optional=_FACTS, others=True)
    return facts


def index_add(
    index: str,
    source: str | None = None,
    *,
    model: str | None = None,
    data_root: str | None = None,
    batch_size: int = 64,
) -> dict:
    """Add the new images of a source, or of the index's own sources, and return `Index.info`: `zoo index add`.

    Args:
        source, data_root: see `build_index`.
        model: the pair that built the index; by default the one that the index records.
    """
    opened = Index.open(index)
    sources = _open_sources(opened, source, _absolute_root(source, data_root))
    pipeline = open_pipeline(opened, model, batch_size=batch_size, cache=False)
    for place, root, records in sources:
        add_images(opened, pipeline, place, records, data_root=root)
    return opened.info()


def _open_sources(
    index: Index, source: str | None, data_root: str | None = None
) -> list[tuple[str, str | None, Dataset]]:
    """Return (place, data root, records) of a source, or of all that the index records, before anything is changed."""
    facts = facts_of(index)
    places = [source] if source else list(facts.get("sources", {}).values())
    roots = [data_root or recorded_root(facts, place) for place in places]
    return [(place, root, open_images(place, root)) for place, root in zip(places, roots, strict=True)]


def _absolute_root(source: str | None, data_root: str | None) -> str | None:
    if source is None and data_root is not None:
        raise ValueError(f"data_root={quoted(data_root)} is for a source, which is missing")
    return None if data_root is None else os.path.abspath(data_root)


def open_pipeline(index: "Index | LanceStore", model: str | None = None, **options) -> ClipPipeline:
    """Return the pipeline that an index was built with.

    Args:
        model: name or path of its pair; by default the one that the index records.
        options: options of `ClipPipeline`.

    Raises:
        ValueError: the index records no model, or was built with another one.
        FileNotFoundError: the recorded file does not exist any more.
    """
    facts = facts_of(index)
    recorded = facts.get("weights")
    if (model or recorded) is None:
        raise ValueError(f"{shown(index.path)} does not record its model; name it with --model")
    encoded = {"runtime": facts.get("runtime", "keras"), "precision": facts.get("precision", "float32")}
    try:
        pipeline = ClipPipeline(model or recorded, **encoded, **options)
    except FileNotFoundError as error:
        if model is not None:
            raise
        raise FileNotFoundError(f"{error} {index.path} was built with it; if it has moved, pass --model.") from error
    index.require(pipeline.fingerprint)
    return pipeline


def index_refresh(index: str, source: str | None = None, *, model: str | None = None, batch_size: int = 64) -> dict:
    """Make an index agree with its sources: `zoo index refresh`.

    New images are added and those that are gone are dropped. A file that was renamed or moved within its source is
    recognised by its digest and is not embedded again. A source that cannot be read changes nothing.

    Args:
        source: one of the index's sources; by default all.
        model: see `index_add`.

    Returns:
        {"added", "dropped", "kept", "renamed"}: numbers of images; those renamed are among those kept.
    """
    opened = Index.open(index)
    sources = list(facts_of(opened).get("sources", {}).values())
    if source is not None and str(Path(source).resolve()) not in sources:
        names = shown(", ".join(sources)) or "not recorded"
        raise ValueError(f"{shown(source)} is not a source of {shown(index)}; its sources are {names}")
    opened_sources = _open_sources(opened, source)
    pipeline = open_pipeline(opened, model, batch_size=batch_size, cache=False)
    before = len(opened)
    counts = Counter[str]()
    for place, root, records in opened_sources:
        counts.update(add_images(opened, pipeline, place, records, data_root=root, drop=True))
    kept = before - counts["dropped"]
    return {"added": counts["added"], "dropped": counts["dropped"], "kept": kept, "renamed": counts["renamed"]}


def add_images(
    index: Index,
    pipeline: ClipPipeline,
    source: str | Path,
    records: Dataset,
    *,
    data_root: str | None = None,
    drop: bool = False,
) -> dict[str, int]:
    """Add the images of a source that the index does not have, one portion per commit.

    A new name whose image has the digest of one that is gone takes over its embedding.

    Args:
        data_root: absolute path of the records' data root, which the index records.
        drop: remove the images that the source does not have any more.

    Returns:
        {"added", "dropped", "renamed"}: numbers of images.
    """
    prefix, facts = _source_prefix(index, str(Path(source).resolve()), data_root)
    names = {prefix + name for name in records.names}
    gone = set(_of_source(index, prefix, index.iterate_ids())) - names
    duplicates = _duplicates(index)
    known = index.places(name for name in names if is_utf8(name)).keys() | {
        name for name, first in duplicates.items() if first not in gone
    }
    new = records.subset([i for i, name in enumerate(records.names) if prefix + name not in known])
    renamed = _rename(index, prefix, new, gone, facts) if gone else {}
    if drop:
        dropped = sorted(gone - set(renamed.values()))
        left = set(_of_source(index, prefix, facts_of(index).get("left_out", {}))) - names
        index.add(np.empty((0, index.dim)), remove=dropped, left_out=dict.fromkeys(left))
    else:
        dropped = []
    new = new.subset([i for i, name in enumerate(new.names) if prefix + name not in renamed])
    before = len(index)
    for part in embed_portions(pipeline.encoder, new):
        _commit(index, prefix, part, facts)
    if facts:
        index.set_facts(facts)
    return {"added": len(index) - before, "dropped": len(dropped), "renamed": len(renamed)}


def _rename(index: Index, prefix: str, new: Dataset, gone: set[str], facts: dict) -> dict[str, str]:
    """Move the embeddings of images that are gone to new names of the same bytes; return {new id: old id}.

    `facts`: see `_source_prefix`.
    """
    renamed: dict[str, str] = {}
    free = set(gone)
    for first in range(0, len(new), PORTION):
        digests = _read_digests(new, range(first, min(first + PORTION, len(new))))
        old_ids = index.ids_by("sha256", set(digests.values()))
        found: dict[str, str] = {}
        metadata = []
        for i, digest in digests.items():
            old = old_ids.get(digest)
            if old in free:
                free.discard(old)
                found[prefix + new.names[i]] = old
                metadata.append({**new.metadata(i), "sha256": digest})
        if found:
            ids, moved = list(found), list(found.values())
            vectors, left_out = np.stack([index.vector(old) for old in moved]), dict.fromkeys(ids)
            index.add(vectors, ids=ids, metadata=metadata, left_out=left_out, remove=moved, facts=facts)
            facts.clear()
            renamed |= found
    return renamed


def _read_digests(records: Dataset, indices: range) -> dict[int, str]:
    """Return {index: digest} of the records that can be read."""
    digests = {}
    for i in indices:
        with contextlib.suppress(OSError, ValueError):
            if is_utf8(records.names[i]):
                digests[i] = image_digest(records.read(i))
    return digests


def _of_source(index: Index, prefix: str, ids: Iterable[str]) -> list[str]:
    """Return the ids of one source: those with its prefix; of the first source, those with no other's prefix."""
    others = tuple(one for one in facts_of(index).get("sources", {}) if one)
    return [one for one in ids if (one.startswith(prefix) if prefix else not one.startswith(others))]


def _commit(index: Index, prefix: str, part: Part, facts: dict) -> None:
    """Add what the index does not have of a part, and what `_source_prefix` returns, in one write."""
    left_out: dict[str, str | None] = {prefix + name: why for name, why in part.left_out.items()}
    there = index.places(prefix + name for name in part.ids)
    known = index.ids_by("sha256", part.digests)
    rows, ids, metadata = [], [], []
    for row, (name, digest) in enumerate(zip(part.ids, part.digests, strict=True)):
        identity = prefix + name
        if identity in there:
            continue
        first = known.setdefault(digest, identity)
        left_out[identity] = None if first == identity else DUPLICATE + first
        if first == identity:
            rows.append(row)
            ids.append(identity)
            metadata.append({**part.metadata[row], "sha256": digest})
    vectors = part.vectors[rows].reshape(-1, index.dim)  # a part without images has no dimension
    index.add(vectors, ids=ids, metadata=metadata, left_out=left_out, facts=facts)
    facts.clear()


def _source_prefix(index: Index, place: str, data_root: str | None) -> tuple[str, dict]:
    """Return the prefix of the ids of a source's images, and facts to write with the first of them, if it is new.

    The prefix is "" for the first source, the name of a further one.
    """
    recorded, facts = facts_of(index), dict[str, dict[str, str]]()
    sources = recorded.get("sources", {})
    if data_root != recorded_root(recorded, place):
        roots = recorded.get("data_roots", {}) | {str(Path(place).resolve()): data_root}
        facts["data_roots"] = {known: root for known, root in roots.items() if root is not None}
    for prefix, known in sources.items():
        if known == place:
            return prefix, facts
    name, number = Path(place).name, 2
    prefix = f"{name}/" if sources else ""
    while prefix in sources or prefix and any(identity.startswith(prefix) for identity in index.iterate_ids()):
        prefix, number = f"{name}~{number}/", number + 1
    return prefix, {**facts, "sources": {**sources, prefix: place}}


def _duplicates(index: Index) -> dict[str, str]:
    """Return {name: id} of the names left out as duplicates of an image that is still in the index."""
    left_out = facts_of(index).get("left_out", {}).items()
    first_of = {name: why.removeprefix(DUPLICATE) for name, why in left_out if why.startswith(DUPLICATE)}
    there = index.places(set(first_of.values()))
    return {name: first for name, first in first_of.items() if first in there}


def index_calibrate(index: str, queries: str | None = None, *, model: str | None = None) -> dict:
    """Store how well texts that match nothing score, for `--false-rate`: `zoo index calibrate`.

    Args:
        queries: a file of texts, one a line, that match no image of the index; by default UNRELATED.
        model: see `index_add`.

    Returns:
        {"queries", "limit at 0.01", "limit at 0.05", "limit at 0.1"}: cosines.
    """
    opened = Index.open(index)
    texts = Path(queries).read_text("utf-8").split("\n") if queries else UNRELATED
    texts = list(dict.fromkeys(text.strip() for text in texts if text.strip()))
    opened.calibrate(open_pipeline(opened, model, cache=False).embed_texts(texts))
    return {"queries": len(texts)} | {f"limit at {rate}": opened.score_limit(rate) for rate in (0.01, 0.05, 0.1)}


def index_duplicates(index: str, *, threshold: float = 0.95, sheet: str | None = None) -> list[list[dict]]:
    """Return groups of near-duplicates, the largest first, each a list of {"id", "score"}: `zoo index duplicates`.

    Args:
        threshold, score: see `Index.duplicates`.
        sheet: a .png or .html file to write with the first 100 groups.
    """
    if sheet is not None:
        check_sheet_path(Path(sheet))
    opened = Index.open(index)
    groups = opened.duplicates(threshold)
    if sheet is not None:
        draw_groups(Path(sheet), groups[:_MOST_DRAWN], facts_of(opened))
    return [[{"id": identity, "score": score} for identity, score in group] for group in groups]


def groups_to_text(groups: list[list[dict]]) -> str:
    """Format groups: a line for each image, an empty line between groups, and the counts."""
    blocks = ["\n".join(f"{one['score']:.4f}  {one['id']}" for one in group) for group in groups]
    return "\n\n".join([*blocks, f"{sum(map(len, groups))} images in {len(groups)} groups"])


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
    """Format facts, one per line; of a dict or a long list, its size and first entry."""
    lines = {shown(name.replace("_", " "), 40): _format(value) for name, value in facts.items()}
    width = 2 + max(map(len, lines), default=0)
    return "\n".join(f"{name:<{width}}{value}" for name, value in lines.items())


def _format(value) -> str:
    if isinstance(value, dict):
        first = ": ".join(shown(part) for part in next(iter(value.items()), ()) if part)
        return f"{len(value)}, e.g. {first}" if value else "0"
    if isinstance(value, list):
        long = len(value) > _MOST_NAMED
        return f"{len(value)}, e.g. {shown(value[0])}" if long else shown(", ".join(map(shown, value))) or "none"
    return shown(round(value, 4) if isinstance(value, float) else value)
