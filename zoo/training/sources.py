"""A data set from what a command line can say: one path, and the names of its columns."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from zoo.data import Dataset, read_csv, read_folder, read_parquet, read_shards
from zoo.data.paths import refuse_url

TABLES = (".csv", ".tsv", ".txt")


def read_data(
    path: str | Path | Dataset,
    *,
    image_key: str = "filepath",
    caption_key: str | None = "caption",
    label_key: str | None = None,
    data_root: str | Path | None = None,
    class_names: Sequence[str] | None = None,
) -> Dataset:
    """Records from a CSV or TSV file, a parquet file, a folder, or tar shards ("train-{0000..0127}.tar").

    Args:
        path: or a data set that is there already, `zoo.data.from_arrays(…)`, which is taken as it is.
        image_key, caption_key, label_key, data_root: of tables; see `read_csv`.
        class_names: what labels are numbered by.

    Raises:
        ValueError: a URL, another kind of file, or one without such records; FileNotFoundError: it is not there.
    """
    if isinstance(path, Dataset):
        return path
    name = str(path)
    if name.endswith(".tar"):
        return read_shards(name, class_names=class_names)
    columns = {"label_key": label_key, "data_root": data_root, "class_names": class_names}
    refuse_url(name)
    if not Path(path).exists():
        raise FileNotFoundError(f"{name!r} is not there")
    if Path(path).is_dir():
        return read_folder(path, class_names=class_names)
    if name.endswith(".parquet"):
        return read_parquet(path, image_key, caption_key, **columns)
    if name.endswith(TABLES):
        return read_csv(path, image_key, caption_key, **columns)
    raise ValueError(f"{name!r} is none of the data read here: {', '.join(TABLES)}, .parquet, .tar, a folder")


def without_labels(dataset: Dataset) -> Dataset:
    """The same records, their labels not shown."""
    return dataclasses.replace(dataset, labels=None, class_names=None)
