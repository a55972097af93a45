"""The index that the service searches: opened again when it changes on disk; its thumbnails and filters."""

import contextlib
import io
import itertools
import logging
import os
import threading
from collections import OrderedDict
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from zoo.data import open_record
from zoo.data.preprocess import to_display
from zoo.embeddings import Index
from zoo.embeddings.catalogue import NAME
from zoo.search.build import facts_of
from zoo.search.sheet import records_by_id
from zoo.utils.arrays import to_json_types
from zoo.utils.text import shown

THUMBNAIL = 320  # pixels of the longer side
MAX_THUMBNAILS = 512  # kept
MAX_VALUES, MAX_FILTERS, MAX_ROWS = 50, 12, 100_000  # of a filter, of an index, read to find them
PORTION = 1000  # ids looked up together
FILES = (NAME, "manifest.json")  # that an index has; the second in its earlier layout
NOT_FILTERS = {"sha256", "filepath"}
log = logging.getLogger("zoo.serve")


class Snapshot:
    """An index, with what is read from its images as long as it does not change. Threads may share one.

    Args:
        index: the index.
        max_pixels: of an image whose thumbnail is drawn.
    """

    def __init__(self, index: Index, max_pixels: int):
        self.index, self._max_pixels = index, max_pixels
        self._lock = threading.Lock()
        self._records: dict | None = None
        self._filters: dict[str, list] | None = None
        self._thumbnails: OrderedDict[int, bytes] = OrderedDict()

    def search(self, vector: np.ndarray, k: int, where: dict | None, min_score: float | None) -> list[dict]:
        """Return the matches, best first: [{"rank", "id", "number", "score", "metadata", "thumbnail"}, …]."""
        ids, scores = self.index.search(vector, k, where=where or None, min_score=min_score)
        entries = self.index.entries(ids)
        matches: list[dict] = []
        for identity, score in zip(ids, scores, strict=True):
            if identity not in entries:  # removed in this moment
                continue
            number, metadata = entries[identity]
            facts = {"rank": len(matches) + 1, "id": identity, "number": number, "score": float(score)}
            matches.append(facts | {"metadata": to_json_types(metadata), "thumbnail": f"/v1/thumbnails/{number}"})
        return matches

    def filters(self) -> dict[str, list]:
        """Return {key: values} of the metadata that can be filtered by: at most MAX_VALUES values a key."""
        with self._lock:
            if self._filters is None:
                self._filters = _filters(self.index)
            return self._filters

    def thumbnail(self, number: int) -> bytes:
        """Return a JPEG of an image in the index, drawn from its source.

        Raises:
            KeyError: the index has no such number, or its source no such image any more.
            ValueError, OSError: the image cannot be read.
        """
        with self._lock:
            if number in self._thumbnails:
                self._thumbnails.move_to_end(number)
                return self._thumbnails[number]
            if self._records is None:
                self._records = records_by_id(facts_of(self.index))
            records, place = self._records[self.index.id_of(number)]
        image = open_record(records.record(place), max_pixels=self._max_pixels, least_size=(THUMBNAIL, THUMBNAIL))
        data = _draw(image)
        with self._lock:
            self._thumbnails[number] = data
            while len(self._thumbnails) > MAX_THUMBNAILS:
                self._thumbnails.popitem(last=False)
        return data


class Library:
    """The index of a folder, as it is on disk now.

    Args:
        path: folder of the index.
        model: fingerprint of the model whose queries it answers.
        max_pixels: see `Snapshot`.

    Raises:
        FileNotFoundError, ValueError: no index, a damaged one, or one of another model.
    """

    def __init__(self, path: str | Path, model: str, max_pixels: int):
        self.path, self._model, self._max_pixels = Path(path), model, max_pixels
        self._lock = threading.Lock()
        self._seen = self._state()
        self._snapshot = Snapshot(Index.open(self.path, model=model), max_pixels)
        self._version = self._snapshot.index.version

    def current(self) -> Snapshot:
        """Return the index, opened again if it was replaced. If that fails, the one before stays in use."""
        with self._lock:
            state = self._state()
            if state != self._seen:
                self._seen = state
                try:
                    self._snapshot = Snapshot(Index.open(self.path, model=self._model), self._max_pixels)
                    log.info("the index was replaced and opened again: %d images", len(self._snapshot.index))
                except (OSError, ValueError) as error:
                    log.warning("the index was replaced and cannot be used; the one before stays: %s", shown(error))
            version = self._snapshot.index.version
            if version != self._version:
                self._version, self._snapshot = version, Snapshot(self._snapshot.index, self._max_pixels)
        return self._snapshot

    def _state(self) -> tuple[int, ...]:
        """Return what differs for another index in the same folder; `Index` itself sees what is added to one."""
        found: list[int] = []
        for name in FILES:
            with contextlib.suppress(OSError):
                found.append(os.stat(self.path / name).st_ino)
        return tuple(found)


def _filters(index: Index) -> dict[str, list]:
    values: dict[str, set] = {}
    ids = itertools.islice(index.iterate_ids(), MAX_ROWS)
    while portion := list(itertools.islice(ids, PORTION)):
        for _, metadata in index.entries(portion).values():
            for key, value in to_json_types(metadata).items():
                if key not in NOT_FILTERS and isinstance(value, str | int | float | bool):
                    found = values.setdefault(key, set())
                    if len(found) <= MAX_VALUES:
                        found.add(value)
    few = {key: sorted(found, key=str) for key, found in values.items() if 1 < len(found) <= MAX_VALUES}
    return dict(list(few.items())[:MAX_FILTERS])


def _draw(image: Image.Image) -> bytes:
    with contextlib.suppress(Exception):  # damaged EXIF data; the image itself is sound
        image = ImageOps.exif_transpose(image)
    small = Image.fromarray(to_display(image))
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    content = io.BytesIO()
    small.save(content, "JPEG", quality=85)
    return content.getvalue()
