"""Writes an index in the layout before the catalogue, from an index of today."""

import hashlib
import json
from pathlib import Path

import numpy as np

from zoo.embeddings.segment import INT8_MAX
from zoo.search import Index


def write_old(index: Index, path: Path, parts: int = 2) -> None:
    """Write the vectors, ids, metadata and facts of an index in `parts` segments, and a removed one at the end."""
    path.mkdir()
    ids = index.ids
    manifest = {"format": "convnext-clip-zoo index", "version": 1, "dim": index.dim, "dtype": index.dtype}
    manifest |= {"model": index.model, "facts": index.facts, "segments": [], "removed": [len(ids)]}
    for number, names in enumerate(np.array_split([*ids, "removed"], parts), 1):
        names = names.tolist()
        vectors = np.stack([index.vector(ids[0] if name == "removed" else name) for name in names])
        metadata = [{} if name == "removed" else index.metadata(name) for name in names]
        files = {f"ids-{number:06d}.json": json.dumps(names), f"metadata-{number:06d}.json": json.dumps(metadata)}
        files = {name: text.encode() for name, text in files.items()}
        if index.dtype == "int8":
            scales = (np.abs(vectors).max(axis=1) / INT8_MAX).astype("<f4")
            files[f"scales-{number:06d}.bin"] = scales.tobytes()
            vectors = np.rint(vectors / scales[:, None])
        stored = {"float32": "<f4", "float16": "<f2", "int8": "|i1"}[index.dtype]
        files[f"vectors-{number:06d}.bin"] = vectors.astype(stored).tobytes()
        for name, data in files.items():
            (path / name).write_bytes(data)
        digests = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
        entry = {"name": f"{number:06d}", "count": len(names), "metadata": True, "sha256": digests}
        manifest["segments"].append(entry)
    (path / "manifest.json").write_text(json.dumps(manifest))
