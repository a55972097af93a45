"""Embed the images of a source in portions: for an index, or for the files of `zoo embed`."""

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from zoo.data import Dataset, Record
from zoo.embeddings.segment import is_utf8
from zoo.inference.encoder import Encoder

PORTION = 1024  # images between two commits


class Portion(NamedTuple):
    """The embeddings of consecutive records.

    Args:
        names: of the n records embedded.
        vectors: float32 (n, D), unit rows.
        digests: SHA-256 of each image, in hexadecimal.
        left_out: {name: reason} of the others.
    """

    names: list[str]
    vectors: np.ndarray
    digests: list[str]
    left_out: dict[str, str]


def embed_portions(encoder: Encoder, records: Dataset) -> Iterator[Portion]:
    """Yield portions of at least PORTION records, the last one smaller, each a whole number of batches."""
    digests: dict[int, str] = {}
    parts: list = []
    for part in encoder.iterate_records(_with_digests(records, digests), progress=True):
        parts.append(part)
        if sum(len(part.indices) + len(part.bad) for part in parts) >= PORTION:
            yield _join(parts, records, digests)
            parts = []
    if parts:
        yield _join(parts, records, digests)


def _join(parts: list, records: Dataset, digests: dict[int, str]) -> Portion:
    indices = [int(i) for part in parts for i in part.indices]
    bad = {i: reason for part in parts for i, reason in part.bad.items()}
    return Portion(
        [records.names[i] for i in indices],
        np.concatenate([part.vectors for part in parts]),
        [digests.pop(i) for i in indices],
        {records.names[i].encode("utf-8", "backslashreplace").decode(): reason for i, reason in bad.items()},
    )


def _with_digests(records: Dataset, digests: dict[int, str]) -> Dataset:
    """Return the records; reading one notes the digest of its bytes. A name that is not UTF-8 is a bad record."""

    def read(i: int) -> Record:
        if not is_utf8(records.names[i]):
            raise ValueError("its name is not UTF-8")
        record = records.read(i)
        data = record.image.tobytes() if isinstance(record.image, np.ndarray) else record.image
        digests[i] = hashlib.sha256(data).hexdigest()
        return record

    return replace(records, read=read)
