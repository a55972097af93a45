"""`StoredEncoder`: a pair whose image embeddings were made before, by `zoo embed`."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from zoo.data import BadSample, Dataset
from zoo.data.records import image_digest
from zoo.embeddings.parts import read_parts
from zoo.inference.encoder import Embedded, Encoder, load_encoder
from zoo.inference.pipeline import ClipPipeline
from zoo.utils.progress import show_progress

BATCH = 1024  # records read between two lines of progress


@dataclass(frozen=True)
class StoredEncoder(Encoder):
    """An `Encoder` that looks up images by the SHA-256 of their bytes and embeds only texts.

    Args:
        vector_of: SHA-256 in hexadecimal → float32 (D,), a unit vector.
    """

    vector_of: Mapping[str, np.ndarray] = field(default_factory=dict)

    def iterate_records(self, records: Dataset, *, progress: bool = False) -> Iterator[Embedded]:
        """Yield `Embedded` batch by batch, in the order of the records; an image without a vector is left out."""
        for first in show_progress(range(0, len(records), BATCH), "batches", progress):
            vectors, indices, bad = [], [], {}
            for i in range(first, min(first + BATCH, len(records))):
                try:
                    record = records.record(i)
                except BadSample as error:
                    bad[i] = str(error)
                    continue
                vector = self.vector_of.get(image_digest(record))
                if vector is None:
                    bad[i] = "its bytes are not among the embeddings"
                else:
                    indices.append(i)
                    vectors.append(vector)
            yield Embedded(np.reshape(vectors, (-1, self.dim)).astype(np.float32), np.array(indices, int), bad)


def open_encoder(
    model_or_name,
    embeddings: str | Path | Sequence[str | Path] | None = None,
    *,
    batch_size: int = 64,
) -> Encoder:
    """Return the `Encoder` of a pair; with `embeddings`, one that takes its image embeddings from there.

    Args:
        model_or_name, batch_size: as in `load_encoder`.
        embeddings: folders that `zoo embed` has written with this pair.

    Raises:
        ValueError: embeddings of another model, or embedding is not finished.
    """
    if not embeddings:
        return load_encoder(model_or_name, batch_size=batch_size)
    folders = [embeddings] if isinstance(embeddings, str | Path) else list(embeddings)
    read = [read_parts(folder) for folder in folders]
    encoded = {(stored.runtime, stored.precision) for stored in read}
    if len(encoded) > 1:
        raise ValueError(f"{', '.join(map(str, folders))} were embedded with different runtimes or precisions")
    ((runtime, precision),) = encoded
    pipeline = ClipPipeline(model_or_name, batch_size=batch_size, runtime=runtime, precision=precision, cache=False)
    vector_of: dict[str, np.ndarray] = {}
    for folder, stored in zip(folders, read, strict=True):
        if stored.model != pipeline.fingerprint:
            raise ValueError(f"{folder} was embedded by another model than {pipeline.encoder.name!r}")
        for part in stored.parts:
            vector_of |= zip(part.digests, part.vectors, strict=True)
    return StoredEncoder(**vars(pipeline.encoder), vector_of=vector_of)
