"""The files of an index, as one process sees them: the catalogue and the segments. One process writes at a time.

The catalogue is written last, in one transaction; files that it does not list are ignored. So a killed writer leaves
the index unchanged. An add writes a new segment, whatever the size of the index; a thread then merges small segments,
whose places stay the same.
"""

import contextlib
import functools
import itertools
import json
import os
import threading
import time
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from zoo.embeddings import manifest
from zoo.embeddings.catalogue import FORMAT, NAME, VERSION, Catalogue
from zoo.embeddings.segment import (
    Row,
    Segment,
    Terms,
    digest,
    file_name,
    files_of,
    merge_segments,
    write_segment,
    write_terms,
)
from zoo.embeddings.terms import collect_terms
from zoo.embeddings.vectors import Vectors
from zoo.utils.files import lock
from zoo.utils.strict_json import is_utf8
from zoo.utils.text import quoted, shown

MOST_SMALL = 32  # segments; with more, MERGED neighbours become one
MERGED = 8
_LARGE_BYTES = 64 << 20  # of vectors; a larger segment is not merged
_LOCK_SECONDS = 2.0  # to wait for another writer, who may only be recording a merge


class Store:
    """The files in the folder of an index. Create one with `Store.new` or `Store.open`; threads may share it.

    It sees what other processes have written since it was opened.
    """

    def __init__(self, path: Path, catalogue: Catalogue, old: dict | None = None):
        self.path = path
        self._lock = threading.RLock()  # held by the writing thread
        self._merger: threading.Thread | None = None
        self._use(catalogue, old)

    @classmethod
    def exists(cls, path: Path) -> bool:
        return any(os.path.isfile(path / name) for name in (NAME, manifest.NAME))

    @classmethod
    def new(cls, path: Path, dim: int, dtype: str, model: str | None) -> "Store":
        """Return the store of an empty index, which the first write puts into the folder."""
        path.mkdir(parents=True, exist_ok=True)
        catalogue = Catalogue(None)
        info = {"format": FORMAT, "version": VERSION, "dim": dim, "dtype": dtype, "model": model}
        with catalogue.transaction():
            catalogue.set_info(info | {"facts": {}, "next": 1})
        return cls(path, catalogue, {"segments": []})

    @classmethod
    def open(cls, path: Path) -> "Store":
        """Return the store of an index, of this layout or the earlier one."""
        if not cls.exists(path):
            raise FileNotFoundError(f"No index at {quoted(str(path))}.")
        return cls(path, *_read(path))

    def close(self) -> None:
        self.finish_merge()
        self._finalizer()

    # Reading.

    def _use(self, catalogue: Catalogue, old: dict | None = None) -> None:
        """Take over a catalogue; of an index of the earlier layout, also its manifest."""
        self.catalogue, self._old = catalogue, old
        self._finalizer = weakref.finalize(self, catalogue.close)
        self._load()

    def _load(self, opened: Iterable[Segment] = ()) -> None:
        """Read what the catalogue says now; `opened` are segments that it may still list."""
        self.version = self.catalogue.version()
        info = self.catalogue.info()
        self.dim, self.dtype, self.model, self.facts = (info[key] for key in ("dim", "dtype", "model", "facts"))
        known = {segment.row: segment for segment in opened}
        segments = tuple(known.get(row) or self._open_segment(row) for row in self.catalogue.segments())
        vectors = Vectors(self.path, self.dim, segments, self.catalogue.removed())
        if len(vectors.removed) and not 0 <= vectors.removed[0] <= vectors.removed[-1] < vectors.total:
            raise ValueError(f"{self.catalogue.path} is damaged: it removes vectors that it does not have")
        self._vectors = vectors

    def _open_segment(self, row: Row) -> Segment:
        make = functools.partial(_collect_terms, self.catalogue, row) if row.digest is None else None
        return Segment(self.path, row, self.dim, self.dtype, make)

    def current(self) -> Vectors:
        """Return the vectors, with what other processes have written."""
        if self.catalogue.version() != self.version:
            with self._lock:
                self._reload()
        return self._vectors

    def _reload(self, attempts: int = 5) -> None:
        for attempt in range(attempts):
            try:
                return self._load(self._vectors.segments)
            except ValueError:  # a merge may have replaced the segments that were just read
                if attempt == attempts - 1:
                    raise
                time.sleep(0.01)

    def entries(self, vectors: Vectors) -> Iterator[tuple[int, str, str | None]]:
        """Yield (place, id, metadata as JSON or None) of the vectors that are not removed."""
        removed = set(vectors.removed.tolist())
        for row in self.catalogue.stream_entries():
            if row[0] >= vectors.total:
                return
            if row[0] not in removed:
                yield row

    def size(self) -> int:
        """Return the bytes of the catalogue and the segments."""
        files = [NAME, *(name for s in self.current().segments for name in files_of(s.row, self.dtype))]
        return sum(file.stat().st_size for name in files if (file := self.path / name).is_file())

    def verify(self) -> None:
        """Compare the catalogue and the files of the segments with their digests; ValueError for a damaged file."""
        segments = self.current().segments
        if self._old is not None:
            manifest.check_lists(self.path, self._old)
        self.catalogue.check()
        history = self.catalogue.history()
        for segment in segments:
            for first, added in zip([0, *(a.last for a in history)], history, strict=False):
                inside = segment.first <= first and added.last <= segment.first + segment.count
                if inside and segment.digest(first, added.last) != added.vectors:
                    raise self._damaged("vectors", segment.row, added.vectors)
            if segment.row.digest is not None:
                found = digest(np.concatenate([array.view(np.uint8) for array in segment.terms]))
                if found != segment.row.digest:
                    raise self._damaged("terms", segment.row, segment.row.digest)

    def _damaged(self, what: str, row: Row, expected: str) -> ValueError:
        return ValueError(
            f"{shown(self.path / file_name(what, row))} is damaged: its digest is not {shown(expected, 64)}"
        )

    # Writing.

    @contextlib.contextmanager
    def writing(self) -> Iterator[Vectors]:
        """Lock the index for writing, and yield the vectors with what others wrote before.

        Raises:
            Locked: another process holds it for longer than _LOCK_SECONDS.
        """
        with self._lock, lock(self.path / ".lock", _LOCK_SECONDS):
            if self._old is not None and self.exists(self.path):  # another process may have written it since
                close = self._finalizer
                self._use(*_read(self.path))
                close()
            yield self.current()

    def append(
        self,
        vectors: np.ndarray,
        ids: Sequence[str],
        metadata: Sequence[str | None],
        changed: Mapping,
        left_out: Mapping[str, str | None],
        removed: Sequence[int] = (),
    ) -> None:
        """Write a segment, if there are vectors, and then the catalogue; inside `writing`.

        Args:
            ids, metadata: see `checked_entries`.
            changed: facts to change.
            left_out: {id: reason, or None to drop it}.
            removed: places to remove.
        """
        facts: dict = json.loads(json.dumps({**self.facts, **changed}))
        reasons = dict(left_out)
        if "left_out" in changed:  # all of them
            reasons |= dict.fromkeys(self.catalogue.left_out()) | facts["left_out"]
            facts["left_out"] = {}
        self._convert()
        before, number = self.current(), self.catalogue.info()["next"]
        if len(vectors):
            terms = collect_terms(ids, map(parse_metadata, metadata))
            row, digests = write_segment(self.path, number, before.total, vectors, terms, self.dtype)
        with self.catalogue.transaction():
            self.catalogue.set_info({"facts": facts, "next": number + 1})
            self.catalogue.set_left_out(reasons)
            self.catalogue.query("INSERT INTO removed VALUES (?)", [(place,) for place in removed], many=True)
            if len(vectors):
                self.catalogue.append(before.total, ids, metadata, digests)
                self.catalogue.set_segments([row])
        opened = (self._open_segment(row),) if len(vectors) else ()
        gone = np.union1d(before.removed, np.array(list(removed), np.int64))
        self.facts, self._vectors = facts, Vectors(self.path, self.dim, (*before.segments, *opened), gone)

    def _convert(self) -> None:
        """Give an index of the earlier layout, or a new one, its catalogue."""
        if self._old is None:
            return
        manifest.check_lists(self.path, self._old)
        rows = [write_terms(self.path, s.row, s.terms) for s in self.current().segments]
        with self.catalogue.transaction():
            self.catalogue.set_segments(rows, self.catalogue.segments())
        old, published = self._old, self.catalogue.publish(self.path / NAME)
        self._finalizer.detach()
        self._use(published)
        manifest.remove_old_files(self.path, old)

    def merge(self) -> None:
        """Start merging small segments in a thread, if there are many."""
        if self._merger is not None and self._merger.is_alive():
            return
        if group := self._group():
            self._merger = threading.Thread(target=self._merge_group, args=(group,), name="merge segments")
            self._merger.start()

    def finish_merge(self) -> None:
        """Wait for a merge that is under way."""
        if self._merger is not None:
            self._merger.join()

    def _group(self) -> list[Segment]:
        """Return neighbours to merge: MERGED small ones with the fewest vectors, once there are MOST_SMALL; or none."""
        segments = self.current().segments
        small = [segment.matrix.nbytes < _LARGE_BYTES for segment in segments]
        if sum(small) <= MOST_SMALL:
            return []
        starts = [i for i in range(len(small) - MERGED + 1) if all(small[i : i + MERGED])]
        groups = [list(segments[i : i + MERGED]) for i in starts]
        return min(groups, key=lambda group: sum(segment.count for segment in group), default=[])

    def _merge_group(self, group: list[Segment]) -> None:
        """Replace segments by one with the same places; nothing if that is not possible now."""
        with contextlib.suppress(OSError, ValueError):
            with self.writing():  # reserves a number, so that no other file gets the name
                number = self.catalogue.info()["next"]
                with self.catalogue.transaction():
                    self.catalogue.set_info({"next": number + 1})
            row = merge_segments(self.path, number, group)
            with self.writing():
                old = [segment.row for segment in group]
                self._open_segment(row)  # another process may have swept its files
                if set(old) <= set(self.catalogue.segments()):
                    with self.catalogue.transaction():
                        self.catalogue.set_segments([row], old)
                    self._load(self._vectors.segments)
                self._sweep()

    def _sweep(self) -> None:
        """Remove files of segments that the catalogue does not list: merged ones, and those of killed writers."""
        listed = {name for s in self.current().segments for name in files_of(s.row, self.dtype)}
        for what in ("vectors", "scales", "terms"):
            for file in self.path.glob(f"{what}-*.bin"):
                if file.name not in listed:
                    with contextlib.suppress(OSError):  # Windows keeps a file that is mapped
                        file.unlink()


def _read(path: Path) -> tuple[Catalogue, dict | None]:
    """Return the catalogue of an index; of one of the earlier layout, a temporary one and the manifest."""
    if os.path.isfile(path / NAME):
        return Catalogue(path / NAME), None
    return manifest.read_manifest(path)


def _collect_terms(catalogue: Catalogue, row: Row) -> Terms:
    """Return the terms of a segment of the earlier layout."""
    rows = list(itertools.islice(catalogue.stream_entries(row.first), row.size))
    return collect_terms([name for _, name, _ in rows], (parse_metadata(text) for _, _, text in rows))


def checked_entries(
    vectors: np.ndarray,
    ids: Sequence[str] | None,
    metadata: Sequence[Mapping] | None,
    dim: int,
    first: int = 0,
) -> tuple[list[str], list[str | None]]:
    """Return the ids of new vectors, and their metadata as JSON, None for an empty one.

    Args:
        vectors, ids, metadata: see `Index.build`.
        first: the first of the ids by default.

    Raises:
        ValueError, TypeError: vectors, ids and metadata that do not fit each other, an id given twice, or metadata that
            cannot be written as JSON.
    """
    if vectors.ndim != 2 or vectors.shape[1] != dim or not np.isfinite(vectors).all():
        raise ValueError(f"vectors have shape {vectors.shape}; they must be finite and (N, {dim})")
    ids = [str(first + i) for i in range(len(vectors))] if ids is None else list(ids)
    metadata = [{}] * len(vectors) if metadata is None else metadata
    if not len(ids) == len(vectors) == len(metadata):
        raise ValueError(f"{len(vectors)} vectors, {len(ids)} ids, {len(metadata)} metadata; the counts must be equal")
    for identity in ids:
        if not isinstance(identity, str) or not is_utf8(identity):
            raise ValueError(f"{quoted(identity)} is not an id; it must be a string that can be encoded as UTF-8")
    if twice := [identity for identity, count in Counter(ids).items() if count > 1]:
        raise ValueError(f"{quoted(twice[0])} is already in the index, or given twice")
    texts = [json.dumps(dict(entry), ensure_ascii=False) if entry else None for entry in metadata]
    for text in texts:
        (text or "").encode()  # raises for a lone surrogate
    return ids, texts


def parse_metadata(text: str | None) -> dict:
    """Return metadata of the catalogue; ValueError if it is not a mapping in JSON."""
    try:
        entry = json.loads(text) if text else {}
    except (ValueError, RecursionError) as error:
        raise ValueError(f"metadata {quoted(text)} is not JSON: {shown(error)}") from None
    if not isinstance(entry, dict):
        raise ValueError(f"metadata {quoted(text)} is not a mapping")
    return entry
