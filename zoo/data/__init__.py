"""Data for training and evaluation: records and stateless batches of them. NumPy and PIL only.

`open_dataset` makes a `Dataset` of N records from a path or a benchmark's name, by `read_csv`, `read_folder`,
`read_shards`, `read_parquet`, `read_jsonl` or `read_coco`; `from_arrays` from arrays. `Batches` gives its batches, each
a function of (seed, epoch, step). Input may be damaged or hostile: a record that cannot be used is skipped, counted,
logged and replaced, and no file outside the data root is opened.
"""

from zoo.data.augment import CLASSIFICATION, CONTRASTIVE, Augment
from zoo.data.bad_samples import BadSamples, TooManyBadSamples
from zoo.data.batches import Batches
from zoo.data.folders import read_folder
from zoo.data.mix import Mix, one_hot
from zoo.data.rand_augment import RandAugment
from zoo.data.records import BadSample, Dataset, Record, from_arrays, open_record
from zoo.data.shards import read_shards
from zoo.data.sources import open_dataset
from zoo.data.tables import read_coco, read_csv, read_jsonl, read_parquet

__all__ = [
    "CLASSIFICATION",
    "CONTRASTIVE",
    "Augment",
    "BadSample",
    "BadSamples",
    "Batches",
    "Dataset",
    "Mix",
    "RandAugment",
    "Record",
    "TooManyBadSamples",
    "from_arrays",
    "one_hot",
    "open_dataset",
    "open_record",
    "read_coco",
    "read_csv",
    "read_folder",
    "read_jsonl",
    "read_parquet",
    "read_shards",
]
