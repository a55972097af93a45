"""An index of vectors on disk: exact search over memory-mapped matrices, written whole or not at all.

A folder of segments, each a matrix of raw little-endian numbers with its ids and metadata, and `manifest.json`, which
names the segments with their digests. The manifest is written last and atomically: what it does not name is not there,
so that a killed writer leaves the index as it was. Vectors are added as further segments; removed ones are listed.

Storage: float32 is searched in place; float16 halves the file and int8 (a scale a row) quarters it, and both are
widened block by block, so that memory stays near one block.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from zoo.files import atomic_write, lock, sha256

FORMAT, VERSION = "convnext-clip-zoo index", 1
DTYPES = {"float32": "<f4", "float16": "<f2", "int8": "|i1"}
BLOCK_BYTES = 1 << 20  # of widened vectors at a time: they stay in the processor's cache
INT8_MAX = 127


class Index:
    """Vectors with ids and metadata, searched by inner product; `Index.build` and `Index.open` make one.

    Args:
        path: of the folder.
        manifest: what its manifest.json says.
    """

    def __init__(self, path: Path, manifest: dict):
        self.path, self.manifest = path, manifest
        self.segments = [_Segment(path, entry, manifest["dim"], manifest["dtype"]) for entry in manifest["segments"]]
        self._ids = [identity for segment in self.segments for identity in segment.ids]
        self._kept = ~np.isin(np.arange(len(self._ids)), manifest["removed"])
        self._places = None  # {id: place}, made when first asked for

    @classmethod
    def build(
        cls,
        vectors: np.ndarray,
        path: str | Path,
        *,
        ids: Sequence[str] | None = None,
        metadata: Sequence[Mapping] | None = None,
        dtype: str = "float32",
        model: str | None = None,
        facts: Mapping | None = None,
    ) -> "Index":
        """Writes an index of N vectors.

        Args:
            vectors: float (N, D), finite; N may be 0. Scores are inner products: cosines of unit rows.
            path: of the folder, not there yet or empty.
            ids: N distinct strings; "0", "1", … unless given.
            metadata: N mappings that JSON can say.
            dtype: "float32", "float16" or "int8".
            model: fingerprint of what made the vectors; `open` can insist on it.
            facts: what else the manifest should say.

        Raises:
            ValueError: an index is there, or arguments do not fit each other.
        """
        path = Path(path)
        if (path / "manifest.json").exists():
            raise ValueError(f"{path} holds an index already; add to it, or name another folder")
        if dtype not in DTYPES:
            raise ValueError(f"dtype={dtype!r}; it must be one of {', '.join(DTYPES)}")
        vectors = np.asarray(vectors, np.float32)
        if vectors.ndim != 2 or not vectors.shape[1]:
            raise ValueError(f"vectors are {vectors.shape}; they must be (N, D)")
        path.mkdir(parents=True, exist_ok=True)
        manifest = {"format": FORMAT, "version": VERSION, "dim": vectors.shape[1], "dtype": dtype, "model": model}
        manifest |= {"facts": dict(facts or {}), "segments": [], "removed": []}
        _write_manifest(path, manifest)
        index = cls(path, manifest)
        index.add(vectors, ids=ids, metadata=metadata)
        return index

    @classmethod
    def open(cls, path: str | Path, *, model: str | None = None) -> "Index":
        """The index in a folder; the matrices are mapped, not read.

        Args:
            model: fingerprint of what will make the queries.

        Raises:
            FileNotFoundError: no index. ValueError: it is damaged, or was made with another model.
        """
        path = Path(path)
        if not (path / "manifest.json").is_file():
            raise FileNotFoundError(f"No index at {str(path)!r}.")
        manifest = _read_manifest(path)
        if model is not None and manifest["model"] is not None and manifest["model"] != model:
            raise ValueError(
                f"{path} was made with another model ({manifest['model'][:16]}…) than the queries' ({model[:16]}…); "
                "their vectors cannot be compared. Build it anew."
            )
        return cls(path, manifest)

    def __len__(self) -> int:
        return int(self._kept.sum())

    @property
    def dim(self) -> int:
        return self.manifest["dim"]

    @property
    def ids(self) -> list[str]:
        """Of all that is not removed, in the order they were added."""
        return [identity for identity, kept in zip(self._ids, self._kept, strict=True) if kept]

    def metadata(self, identity: str) -> dict:
        """What was said of an id; {} when nothing was."""
        segment, place = self._find(identity)
        return segment.metadata[place]

    def vector(self, identity: str) -> np.ndarray:
        """float32 (D,), as it is stored."""
        segment, place = self._find(identity)
        return segment.rows(slice(place, place + 1))[0]

    def search(self, query: np.ndarray, k: int = 10, *, where: Mapping | None = None):
        """The k vectors of the highest inner product, best first; of equals the one added first.

        Args:
            query: float (D,), or (Q, D).
            k: 1 or more; all there are, where there are fewer.
            where: {key: value} that the metadata must have.

        Returns:
            (ids, scores): a list and float32 (k,); for (Q, D) a list of lists and float32 (Q, k).
        """
        query = np.asarray(query, np.float32)
        single = query.ndim == 1
        queries = query[None] if single else query
        if queries.ndim != 2 or queries.shape[1] != self.dim:
            raise ValueError(f"query is {query.shape}; it must be ({self.dim},) or (Q, {self.dim})")
        if not isinstance(k, int) or k < 1:
            raise ValueError(f"k={k!r}; it must be an integer of at least 1")
        if not np.isfinite(queries).all():
            raise ValueError("the query is not finite")
        allowed = self._kept & self._matching(where)
        scores = self._scores(queries)
        if not allowed.all():
            scores[:, ~allowed] = -np.inf
        places = np.stack([best(row, min(k, int(allowed.sum()))) for row in scores])
        ids = [[self._ids[place] for place in row] for row in places]
        found = np.take_along_axis(scores, places, axis=1)
        return (ids[0], found[0]) if single else (ids, found)

    def _scores(self, queries: np.ndarray) -> np.ndarray:
        """float32 (Q, N), all inner products, a block of vectors at a time."""
        scores = np.empty((len(queries), len(self._ids)), np.float32)
        start = 0
        for segment in self.segments:
            for part, rows, scales in segment.blocks():
                # One query: a matrix times a vector reads the matrix once, in order.
                products = (rows @ queries[0])[None] if len(queries) == 1 else queries @ rows.T
                scores[:, start + part.start : start + part.stop] = products * scales
            start += segment.count
        return scores

    def _matching(self, where: Mapping | None) -> np.ndarray:
        if not where:
            return np.ones(len(self._ids), bool)
        rows = (entry for segment in self.segments for entry in segment.metadata)
        return np.array([all(entry.get(key) == value for key, value in where.items()) for entry in rows], bool)

    def add(
        self, vectors: np.ndarray, *, ids: Sequence[str] | None = None, metadata: Sequence[Mapping] | None = None
    ) -> None:
        """Adds N vectors as a segment of their own; all of them or, when this fails, none.

        Raises:
            ValueError: an id that is there already, or arguments that do not fit; Locked while another process writes.
        """
        vectors = np.asarray(vectors, np.float32)
        with lock(self.path / ".lock"):
            self._reload()
            known = set(self.ids)
            first = len(self._ids)
            ids = [str(first + i) for i in range(len(vectors))] if ids is None else list(ids)
            _check_rows(vectors, ids, metadata, self.dim, known)
            if not len(vectors):
                return
            name = f"{1 + max((int(entry['name']) for entry in self.manifest['segments']), default=0):06d}"
            entry = _write_segment(self.path, name, vectors, ids, metadata, self.manifest["dtype"])
            self._commit({**self.manifest, "segments": [*self.manifest["segments"], entry]})

    def remove(self, ids: Sequence[str]) -> None:
        """Takes ids out; their bytes stay in the file until it is built anew. KeyError for one that is not there."""
        with lock(self.path / ".lock"):
            self._reload()
            places = sorted({*self.manifest["removed"], *(self._place(identity) for identity in ids)})
            self._commit({**self.manifest, "removed": places})

    def verify(self) -> int:
        """How many vectors there are, once every file's digest is found to be the manifest's; else ValueError."""
        for segment in self.segments:
            for name, digest in segment.entry["sha256"].items():
                if sha256(self.path / name) != digest:
                    raise ValueError(f"{self.path / name} is damaged: its digest is not {digest}")
        return len(self)

    def state(self, facts: Mapping) -> None:
        """Changes what `facts` in the manifest says."""
        with lock(self.path / ".lock"):
            self._reload()
            self._commit({**self.manifest, "facts": {**self.manifest["facts"], **facts}})

    def info(self) -> dict:
        """{"vectors", "dim", "dtype", "segments", "removed", "bytes", "model", …facts}."""
        size = sum((self.path / name).stat().st_size for s in self.segments for name in s.entry["sha256"])
        named = {"vectors": len(self), "dim": self.dim, "dtype": self.manifest["dtype"]}
        counts = {"segments": len(self.segments), "removed": len(self.manifest["removed"]), "bytes": size}
        return {**named, **counts, "model": self.manifest["model"], **self.manifest["facts"]}

    def _place(self, identity: str) -> int:
        """Where an id is among all that were ever added."""
        if self._places is None:
            self._places = {self._ids[place]: int(place) for place in np.flatnonzero(self._kept)}
        if identity not in self._places:
            raise KeyError(f"{identity!r} is not in the index")
        return self._places[identity]

    def _find(self, identity: str) -> tuple["_Segment", int]:
        """The segment of an id, and its place there."""
        place = self._place(identity)
        starts = np.cumsum([0, *(segment.count for segment in self.segments)])
        number = int(np.searchsorted(starts, place, side="right")) - 1
        return self.segments[number], place - int(starts[number])

    def _reload(self) -> None:
        """Another process may have written since this one looked."""
        manifest = _read_manifest(self.path)
        if manifest != self.manifest:
            self.__init__(self.path, manifest)

    def _commit(self, manifest: dict) -> None:
        _write_manifest(self.path, manifest)
        self.__init__(self.path, manifest)


class _Segment:
    """One matrix with its ids and metadata."""

    def __init__(self, path: Path, entry: dict, dim: int, dtype: str):
        self.entry, self.count, self._path, self._dim = entry, entry["count"], path, dim
        self._matrix = _mapped(path / f"vectors-{entry['name']}.bin", DTYPES[dtype], (self.count, dim))
        self._scales = _mapped(path / f"scales-{entry['name']}.bin", "<f4", (self.count,)) if dtype == "int8" else None
        self.ids = self._read("ids")
        self._metadata = None

    @property
    def metadata(self) -> list[dict]:
        if self._metadata is None:
            self._metadata = self._read("metadata") if self.entry["metadata"] else [{}] * self.count
        return self._metadata

    def _read(self, what: str) -> list:
        path = self._path / f"{what}-{self.entry['name']}.json"
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(f"{path} is damaged: {error}") from error
        if not isinstance(values, list) or len(values) != self.count:
            raise ValueError(f"{path} does not hold {self.count} entries")
        return values

    def rows(self, part: slice) -> np.ndarray:
        """float32 (n, D); of a float32 segment the mapped file itself."""
        rows = self._matrix[part].astype(np.float32, copy=False)
        return rows if self._scales is None else rows * self._scales[part, None]

    def blocks(self) -> Iterator[tuple[slice, np.ndarray, np.ndarray | float]]:
        """(places, float32 rows, what their products are to be multiplied by) in turn; a float32 segment is one block,
        for nothing is copied."""
        size = self.count if self._matrix.dtype == np.float32 else max(1, BLOCK_BYTES // (4 * self._dim))
        for first in range(0, self.count, size):
            part = slice(first, min(first + size, self.count))
            rows = self._matrix[part].astype(np.float32, copy=False)
            yield part, rows, 1.0 if self._scales is None else self._scales[part]


def best(scores: np.ndarray, k: int) -> np.ndarray:
    """The places of the k highest, best first; of equals the lower place: int (k,)."""
    if k < len(scores):
        threshold = np.partition(scores, len(scores) - k)[len(scores) - k] if k else np.inf
        above = np.flatnonzero(scores > threshold)
        level = np.flatnonzero(scores == threshold)[: k - len(above)]
        chosen = np.sort(np.concatenate([above, level]))
    else:
        chosen = np.arange(len(scores))
    return chosen[np.argsort(-scores[chosen], kind="stable")][:k]


def _check_rows(vectors, ids, metadata, dim: int, known: set[str]) -> None:
    if vectors.ndim != 2 or vectors.shape[1] != dim or not np.isfinite(vectors).all():
        raise ValueError(f"vectors are {vectors.shape}; they must be finite, (N, {dim})")
    if len(ids) != len(vectors) or (metadata is not None and len(metadata) != len(vectors)):
        raise ValueError(f"{len(vectors)} vectors, {len(ids)} ids, {len(metadata or ids)} metadata; as many are needed")
    if not all(isinstance(identity, str) for identity in ids):
        raise ValueError("ids must be strings")
    counts = Counter(ids)
    twice = [identity for identity in counts if counts[identity] > 1 or identity in known]
    if twice:
        raise ValueError(f"{twice[0]!r} is in the index already, or twice among the new ones")


def _write_segment(path: Path, name: str, vectors, ids, metadata, dtype: str) -> dict:
    """Writes a segment's files; returns its entry in the manifest."""
    arrays = {f"vectors-{name}.bin": vectors}
    if dtype == "int8":
        scales = np.maximum(np.abs(vectors).max(axis=1), 1e-30) / INT8_MAX
        arrays = {f"vectors-{name}.bin": np.rint(vectors / scales[:, None]), f"scales-{name}.bin": scales}
    for file_name, array in arrays.items():
        stored = DTYPES[dtype] if file_name.startswith("vectors") else "<f4"
        with atomic_write(path / file_name) as file:
            file.write(np.ascontiguousarray(array.astype(stored)).data)
    texts = {f"ids-{name}.json": ids}
    if metadata is not None:
        texts[f"metadata-{name}.json"] = [dict(entry) for entry in metadata]
    for file_name, content in texts.items():
        with atomic_write(path / file_name, "w") as file:
            json.dump(content, file, ensure_ascii=False)
    digests = {file_name: sha256(path / file_name) for file_name in (*arrays, *texts)}
    return {"name": name, "count": len(vectors), "metadata": metadata is not None, "sha256": digests}


def _mapped(path: Path, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """A file as an array, mapped; ValueError when its size is not the shape's."""
    wanted = int(np.prod(shape)) * np.dtype(dtype).itemsize
    there = path.stat().st_size if path.is_file() else None
    if there != wanted:
        raise ValueError(f"{path} is damaged: it has {there} bytes, and {wanted} were written")
    return np.memmap(path, dtype, mode="r", shape=shape).view(np.ndarray)


def _write_manifest(path: Path, manifest: dict) -> None:
    with atomic_write(path / "manifest.json", "w") as file:
        json.dump(manifest, file, indent=1, ensure_ascii=False)


def _read_manifest(path: Path) -> dict:
    file = path / "manifest.json"
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT or manifest["version"] != VERSION:
            raise ValueError(f"format {manifest['format']!r}, version {manifest['version']!r}")
        if manifest["dtype"] not in DTYPES or not isinstance(manifest["dim"], int) or manifest["dim"] < 1:
            raise ValueError(f"dim {manifest['dim']!r} of {manifest['dtype']!r}")
        for entry in manifest["segments"]:
            if not entry["name"].isdigit() or not isinstance(entry["count"], int) or entry["count"] < 1:
                raise ValueError(f"a segment {entry['name']!r} of {entry['count']!r}")
        if not {"model", "facts", "removed"} <= set(manifest):
            raise ValueError("it lacks entries")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} is not the manifest of an index: {error}") from error
    return manifest
