"""An index as a Lance data set, for collections that outgrow one machine's memory: `zoo index export`.

Rows are written as fragments first and become a data set by one commit, so a killed export leaves none. The schema
holds the fingerprint of the model, and a query by another model is refused.
"""

import json
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from zoo.embeddings import Index
from zoo.utils.env import require_packages
from zoo.utils.strict_json import OBJECT, parse_json
from zoo.utils.text import quoted, shown

_FORMAT = "convnext-clip-zoo vectors 1"
_INDEXED_FROM = 1_000_000  # vectors; below, comparing with all of them is fast enough
_BLOCK = 8192  # rows written at a time
_PARTITION_ROWS = 4096  # of IVF, about; Lance's advice
_SUBVECTOR = 8  # dimensions coded by one byte of PQ
PROBES, _REFINE = 32, 8  # of a search with an index: partitions read, and candidates scored exactly for each result


def is_lance(path: str | Path) -> bool:
    """Whether a path is, or would be, a Lance data set."""
    return Path(path).suffix == ".lance"


def export_index(index: str, *, to: str, ann: bool = False) -> dict:
    """Write the vectors of an index as a Lance data set: `zoo index export`.

    Columns: `id`, `vector` (float16, D), `metadata` (JSON), `sha256`.

    Args:
        index: folder of the index.
        to: folder of the data set, ending in .lance, which must not exist.
        ann: make an approximate index (IVF_PQ) at any size; by default from a million vectors on.

    Returns:
        {"vectors", "dim", "approximate"}.

    Raises:
        FileExistsError: there is a data set. ValueError: another ending. ImportError: Lance is not installed.
    """
    lance, arrow = _import_lance()
    if not is_lance(to):
        raise ValueError(f"{quoted(str(to))} must end in .lance")
    if os.path.lexists(to) and _is_committed(lance, to):
        raise FileExistsError(f"{quoted(str(to))} already exists; give another name")
    opened = Index.open(index)
    if not len(opened):
        raise ValueError(f"{shown(index)} holds no vectors")
    facts = {"weights", "runtime", "precision", "sources", "data_roots"} & opened.facts.keys()
    about = {"format": _FORMAT, "facts": json.dumps({name: opened.facts[name] for name in sorted(facts)})}
    about |= {"model": opened.model} if opened.model else {}
    columns = [("id", arrow.string()), ("vector", arrow.list_(arrow.float16(), opened.dim))]
    schema = arrow.schema([*columns, ("metadata", arrow.string()), ("sha256", arrow.string())], metadata=about)
    reader = arrow.RecordBatchReader.from_batches(schema, _batches(opened, schema, arrow))
    fragments = lance.fragment.write_fragments(reader, to, schema=schema)
    data = lance.LanceDataset.commit(to, lance.LanceOperation.Overwrite(schema, fragments))
    approximate = ann or len(opened) >= _INDEXED_FROM
    if approximate:
        partitions = max(1, len(opened) // _PARTITION_ROWS)
        subvectors = max(1, opened.dim // _SUBVECTOR)
        data.create_index("vector", "IVF_PQ", metric="cosine", num_partitions=partitions, num_sub_vectors=subvectors)
    return {"vectors": len(opened), "dim": opened.dim, "approximate": approximate}


def _is_committed(lance, path: str) -> bool:
    try:
        lance.dataset(path)
    except (ValueError, OSError):  # what a killed export has left
        return False
    return True


def _batches(index: Index, schema, arrow) -> Iterator[Any]:
    for ids, metadata, vectors in index.blocks(_BLOCK):
        numbers = arrow.array(vectors.astype(np.float16).ravel())
        texts = [json.dumps(entry, ensure_ascii=False) for entry in metadata]
        columns = [
            arrow.array(ids),
            arrow.FixedSizeListArray.from_arrays(numbers, index.dim),
            arrow.array(texts),
            arrow.array([str(entry.get("sha256", "")) for entry in metadata]),
        ]
        yield arrow.RecordBatch.from_arrays(columns, schema=schema)


class LanceStore:
    """A data set that `export_index` has written.

    Args:
        path: its folder.

    Raises:
        FileNotFoundError: no data set. ValueError: another one.
    """

    def __init__(self, path: str | Path):
        lance, _ = _import_lance()
        self.path = Path(path)
        try:
            self.data = lance.dataset(str(path))
        except (ValueError, OSError) as error:
            raise FileNotFoundError(f"No Lance data set at {quoted(str(path))}: {shown(error)}") from None
        about = {key.decode(): value.decode() for key, value in (self.data.schema.metadata or {}).items()}
        if about.get("format") != _FORMAT:
            raise ValueError(f"{shown(path)} was not written by zoo index export")
        self.model = about.get("model")
        self.facts = parse_json(about.get("facts", "{}"), f"facts of {path}", OBJECT)

    def __len__(self) -> int:
        return self.data.count_rows()

    def require(self, model: str | None) -> None:
        """Raise ValueError if the vectors were made by another model."""
        if model is not None and self.model is not None and model != self.model:
            raise ValueError(
                f"{shown(self.path)} was built with another model than the one given; its scores would be wrong"
            )

    def search(
        self, query: np.ndarray, k: int = 5, *, approximate: bool = True, probes: int = PROBES
    ) -> list[tuple[str, float, dict]]:
        """Return (id, cosine, metadata) of the best matches, best first.

        Args:
            query: float32 (D,).
            k: number of results.
            approximate: use the data set's IVF_PQ index where it has one; else every vector is compared.
            probes: partitions of the index that are read.
        """
        nearest = {"column": "vector", "q": np.asarray(query, np.float32), "k": k, "metric": "cosine"}
        nearest |= {"nprobes": probes, "refine_factor": _REFINE} if approximate else {"use_index": False}
        table = self.data.to_table(columns=["id", "metadata", "_distance"], nearest=nearest).to_pylist()
        return [(row["id"], 1 - row["_distance"], parse_json(row["metadata"], "metadata", OBJECT)) for row in table]


def _import_lance():
    require_packages("A .lance data set", ["lance"], extras="lance")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import lance
        import pyarrow
    return lance, pyarrow
